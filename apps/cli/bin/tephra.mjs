#!/bin/sh
// 2>/dev/null; self=$(readlink -f "$0"); node="${self%/apps/*}/node_modules/node/bin/node"; [ -x "$node" ] || node=node; exec "$node" --max-semi-space-size=8 "$self" "$@"
// Launcher: builds what is missing, then runs the command line. For the shell, the second line starts the project's own Node where it is
// installed, and for Node it is a comment: a second Node would cost as much as the work of a short command.
import { existsSync } from "node:fs";
import module from "node:module";
import { fileURLToPath } from "node:url";

const entry = fileURLToPath(new URL("../dist/bundle/tephra.js", import.meta.url));
const bootstrap = new URL("../../../scripts/bootstrap.mjs", import.meta.url);

// Absent in Node 20, which only sets up. A folder that cannot be written, as in an image, means no cache.
module.enableCompileCache?.(fileURLToPath(new URL("../../../node_modules/.cache/tephra/compiled", import.meta.url)));

if (existsSync(bootstrap)) {
  const { launch } = await import(bootstrap.href);
  const args = process.argv.slice(2);
  // "doctor" is a program of the worker's: it knows the servers.
  const projects = args.includes("doctor") ? ["apps/cli", "apps/worker"] : ["apps/cli"];
  await launch({ entry, args, projects });
} else {
  // An image that holds only dist: there is nothing to build and one Node.
  await import(entry);
}
