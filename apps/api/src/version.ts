import { createRequire } from "node:module";

/** Of Tephra. */
export const { version } = createRequire(import.meta.url)("../package.json") as { version: string };
