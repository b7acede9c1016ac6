import { ensureBuilt } from "../../scripts/bootstrap.mjs";
import { provideIsal } from "../../scripts/isal-package.ts";

const say = (line: string): void => void process.stderr.write(`${line}\n`);

/** For suites that need no server: the engine and its command line, built from the current sources, and ISA-L. */
export async function setup(): Promise<void> {
  await ensureBuilt(["apps/cli"], { typeErrors: "warn" });
  // The dynamic loader reads this when a process starts; the test processes are started after this set-up.
  await provideIsal(say).then(
    (environment) => Object.assign(process.env, environment),
    (error: Error) => say(`without ISA-L its suites fail: ${error.message}`),
  );
}
