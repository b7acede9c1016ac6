// Bundles the command lines after they are compiled: one of hundreds of modules spends most of its start-up on finding and linking them.
import { existsSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const folder = join(root, "apps/cli/dist/bundle");

/** The two programs, and the threads that they start from files beside them. */
const entries = {
  tephra: join(root, "apps/cli/dist/tephra.js"),
  "tephra-engine": join(root, "apps/cli/dist/tephra-engine.js"),
  "cpu-thread": join(root, "packages/engine/dist/threads/cpu-thread.js"),
  "files-thread": join(root, "packages/engine/dist/files/files-thread.js"),
};

/** Whether every program has been bundled, of whatever sources. */
export function bundlesPresent() {
  return Object.keys(entries).every((name) => existsSync(join(folder, `${name}.js`)));
}

/**
 * Bundles what the compiler has written. What has a native part stays outside. What is imported on demand becomes a file of its own, so
 * that it still costs nothing until then.
 * @returns {Promise<void>}
 */
export async function bundlePrograms() {
  const { rolldown } = await import("rolldown");
  const bundle = await rolldown({
    input: entries,
    platform: "node",
    external: ["koffi", /\.node$/],
    logLevel: "warn",
  });
  await bundle.write({ dir: folder, format: "esm", cleanDir: true });
  await bundle.close();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await bundlePrograms();
