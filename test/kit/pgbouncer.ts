import { chmodSync, chownSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { connectDatabase } from "@tephra/control/process";
import { unpackPgbouncer } from "../../scripts/pgbouncer-package.ts";
import { poll } from "../../scripts/poll.ts";
import { freePort, spawnProgram } from "../../scripts/spawn-program.ts";

/** The user for PgBouncer, which refuses to run as root. */
export const unprivileged = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : null;

interface Pgbouncer extends AsyncDisposable {
  /** The same database, through the pooler. */
  url: string;
}

/** A real PgBouncer in transaction mode, in front of all databases of the server in `url`. */
export async function startPgbouncer(
  url: string,
  options: { dir: string; settings?: Record<string, string> },
): Promise<Pgbouncer> {
  const { command, env } = await unpackPgbouncer((line) => process.stderr.write(`${line}\n`));
  const { hostname, port: serverPort, username, password } = new URL(url);
  const dir = mkdtempSync(join(options.dir, "pgbouncer-"));
  const port = await freePort();
  const settings = {
    listen_addr: "127.0.0.1",
    listen_port: port,
    unix_socket_dir: "",
    auth_type: "any",
    pool_mode: "transaction",
    max_client_conn: 500,
    default_pool_size: 40,
    ...options.settings,
  };
  const server = `host=${hostname} port=${serverPort} user=${username} password=${password}`;
  const lines = Object.entries(settings).map(([name, value]) => `${name} = ${value}`);
  const file = join(dir, "pgbouncer.ini");
  writeFileSync(file, `[databases]\n* = ${server}\n[pgbouncer]\n${lines.join("\n")}\n`, { mode: 0o600 });
  chmodSync(dir, 0o711);
  if (unprivileged !== null) chownSync(file, unprivileged.uid, unprivileged.gid);
  const program = await spawnProgram({
    name: "pgbouncer",
    command,
    args: [file],
    env: { PATH: process.env["PATH"], ...env },
    cwd: dir,
    ...unprivileged,
  });
  const through = new URL(url);
  through.host = `127.0.0.1:${port}`;
  const answers = async (): Promise<true> => {
    if (!program.running()) throw new Error(`PgBouncer ended:\n${program.tail()}`);
    const connection = await connectDatabase(through.href, "script");
    await connection.end();
    return true;
  };
  await poll(answers, { what: "PgBouncer answers", timeoutMs: 30_000 });
  return {
    url: through.href,
    [Symbol.asyncDispose]: async () => {
      await program.stop({ signal: "SIGKILL" });
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
