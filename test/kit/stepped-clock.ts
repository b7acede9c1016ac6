import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { unpackFaketime } from "../../scripts/faketime-package.ts";
import { type Server, startPostgres } from "../../scripts/postgres.ts";
import { childrenOf } from "./children-of.ts";

/** A clock that can be set while the programs that see it run. How long things take they measure as ever. */
export interface SteppedClock {
  /** The environment of a program that sees this clock. */
  env: Record<string, string>;
  /** From now on it shows the true time and so many seconds, more or less. */
  set(seconds: number): void;
}

/** `dir` must be open to the user of the programs. */
export async function makeSteppedClock(dir: string): Promise<SteppedClock> {
  const faketime = await unpackFaketime((line) => process.stderr.write(`${line}\n`));
  const file = join(dir, "clock");
  // Replaced as a whole: who read half of it would see the true time for a moment.
  const set = (seconds: number): void => {
    writeFileSync(`${file}.new`, `${seconds < 0 ? "" : "+"}${seconds}s\n`, { mode: 0o644 });
    renameSync(`${file}.new`, file);
  };
  set(0);
  const { FAKETIME: _fixed, ...preloaded } = faketime("+0s");
  return { env: { ...preloaded, FAKETIME_TIMESTAMP_FILE: file, FAKETIME_NO_CACHE: "1" }, set };
}

interface SteppedPostgres extends SteppedClock, AsyncDisposable {
  server: Server;
}

/**
 * A PostgreSQL of its own, in a folder of its own, with such a clock; `env` is for others that see the same. `pauses`: it stands still for up
 * to a second when its clock is set, which who does that for hours wants, and who has something running then does not. libfaketime opens its
 * file where PostgreSQL handles signals, too, and there allocates memory, from which PostgreSQL may die; so it shall look once a second at most.
 */
export async function startSteppedPostgres(dir: string, { pauses = false } = {}): Promise<SteppedPostgres> {
  mkdirSync(dir, { recursive: true });
  const { env, set } = await makeSteppedClock(dir);
  const server = await startPostgres({
    dataDir: join(dir, "postgres"),
    log: join(dir, "postgres.log"),
    env: pauses ? { ...env, FAKETIME_NO_CACHE: "0", FAKETIME_CACHE_DURATION: "0" } : env,
  });
  const setInPause = (seconds: number): void => {
    const { pid } = server.program;
    process.kill(pid, "SIGSTOP");
    const all = [pid, ...childrenOf(pid, "postgres")];
    for (const each of all) process.kill(each, "SIGSTOP");
    set(seconds);
    // Whoever has looked in one second looks again in the next one.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1_010 - (Date.now() % 1_000));
    for (const each of all.toReversed()) process.kill(each, "SIGCONT");
  };
  return { server, env, set: pauses ? setInPause : set, [Symbol.asyncDispose]: () => server.stop() };
}
