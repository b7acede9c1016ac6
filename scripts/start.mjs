// `npm start`: sets up what is missing, then runs the whole of Tephra on this machine until Ctrl-C.
import { join } from "node:path";
import { launch, productProjects, root } from "./bootstrap.mjs";

const entry = join(root, "scripts/supervisor.ts");
await launch({ entry, args: process.argv.slice(2), projects: productProjects, withConsole: true });
