import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { unpackFaketime } from "../../scripts/faketime-package.ts";
import { type Server, startPostgres } from "../../scripts/postgres.ts";

interface SteppedPostgres extends AsyncDisposable {
  server: Server;
  /** Sets its clock: from now on it shows the true time and so many seconds, more or less. */
  set(seconds: number): void;
}

/** A PostgreSQL of its own, in a folder of its own, whose clock can be set while it runs. How long things take it measures as ever. */
export async function startSteppedPostgres(dir: string): Promise<SteppedPostgres> {
  const faketime = await unpackFaketime((line) => process.stderr.write(`${line}\n`));
  mkdirSync(dir, { recursive: true });
  const file = join(dir, "clock");
  const set = (seconds: number): void => writeFileSync(file, `${seconds < 0 ? "" : "+"}${seconds}s\n`);
  set(0);
  chmodSync(file, 0o644);
  const { FAKETIME: _fixed, ...library } = faketime("+0s");
  const env = { ...library, FAKETIME_TIMESTAMP_FILE: file, FAKETIME_NO_CACHE: "1" };
  const server = await startPostgres({ dataDir: join(dir, "postgres"), log: join(dir, "postgres.log"), env });
  return { server, set, [Symbol.asyncDispose]: () => server.stop() };
}
