import { mkdirSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { unpackFaketime } from "../../scripts/faketime-package.ts";
import { type Server, startPostgres } from "../../scripts/postgres.ts";

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

/** A PostgreSQL of its own, in a folder of its own, with such a clock; `env` is for others that see the same. */
export async function startSteppedPostgres(dir: string): Promise<SteppedPostgres> {
  mkdirSync(dir, { recursive: true });
  const { env, set } = await makeSteppedClock(dir);
  const server = await startPostgres({ dataDir: join(dir, "postgres"), log: join(dir, "postgres.log"), env });
  return { server, env, set, [Symbol.asyncDispose]: () => server.stop() };
}
