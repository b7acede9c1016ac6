#!/usr/bin/env -S node --max-semi-space-size=8
// Launcher: builds what is missing, then runs the command line on the project's own Node.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const entry = fileURLToPath(new URL("../dist/tephra.js", import.meta.url));
const bootstrap = new URL("../../../scripts/bootstrap.mjs", import.meta.url);

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
