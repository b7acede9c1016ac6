#!/usr/bin/env -S node --max-semi-space-size=8
// Launcher: builds what is missing, then runs the command line on the project's own Node.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const entry = fileURLToPath(new URL("../dist/tephra.js", import.meta.url));
const bootstrap = new URL("../../../scripts/bootstrap.mjs", import.meta.url);

if (existsSync(bootstrap)) {
  const { launch } = await import(bootstrap.href);
  await launch({ entry, args: process.argv.slice(2), projects: ["apps/cli"] });
} else {
  // An image that holds only dist: there is nothing to build and one Node.
  await import(entry);
}
