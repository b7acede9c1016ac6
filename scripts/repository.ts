import { join } from "node:path";
import { projectNode, root } from "./bootstrap.mjs";
import { spawnProgram } from "./spawn-program.ts";

/**
 * Creates and marks an empty repository with the engine's own command line.
 *
 * @throws with the command line's output
 */
export async function initialiseRepository(url: string): Promise<void> {
  const program = await spawnProgram({
    name: "tephra-engine",
    command: projectNode(),
    args: [join(root, "apps/cli/dist/bundle/tephra-engine.js"), "init", "--repository", url],
    env: { PATH: process.env["PATH"] },
  });
  const { code } = await program.exited;
  if (code !== 0) throw new Error(`the repository ${url} could not be initialised:\n${program.tail()}`);
}
