import { ensureBuilt } from "../../scripts/bootstrap.mjs";

/** For suites that need no server: the engine and its command line, built from the sources as they are now. */
export async function setup(): Promise<void> {
  await ensureBuilt(["apps/cli"], { typeErrors: "warn" });
}
