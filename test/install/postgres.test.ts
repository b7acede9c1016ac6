import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { expect, inject, onTestFinished, test } from "vitest";
import { startPostgres, withClient } from "../../scripts/postgres.ts";
import { giveTo } from "../../scripts/private-user.ts";
import { makeCertificate } from "../kit/certificate.ts";

/** A folder for one server; `private` ones can be reached by their owner alone. */
function folder(kind: "open" | "private"): { dataDir: string; log: string } {
  const parent = mkdtempSync(join(inject("servers").dir, "postgres-"));
  chmodSync(parent, kind === "open" ? 0o711 : 0o700);
  const dataDir = join(parent, "data");
  mkdirSync(dataDir);
  onTestFinished(() => {
    const record = join(dataDir, "cluster-is-in");
    if (existsSync(record)) rmSync(readFileSync(record, "utf8"), { recursive: true, force: true });
    rmSync(parent, { recursive: true, force: true });
  });
  return { dataDir, log: join(parent, "postgres.log") };
}

const write = (url: string) => withClient(url, (client) => client.query("CREATE TABLE kept AS SELECT 42 AS answer"));

async function read(url: string): Promise<unknown> {
  return withClient(url, async (client) => (await client.query("SELECT answer FROM kept")).rows);
}

test("a server that was killed is recovered with everything that it had committed", async () => {
  const place = folder("open");
  const first = await startPostgres(place);
  await write(first.url);
  await first.program.stop({ signal: "SIGKILL" });
  const second = await startPostgres(place);
  expect(await read(second.url)).toEqual([{ answer: 42 }]);
  await second.stop();
});

test("a server speaks TLS by a key that its own user alone can read, whoever starts it", async () => {
  const place = folder("open");
  const { ca, cert, key } = await makeCertificate(join(place.dataDir, "certificates"));
  const server = await startPostgres({ ...place, tls: { cert, key } });
  const url = `${server.url}?sslmode=verify-full&sslrootcert=${encodeURIComponent(ca)}`;
  const asked = await withClient(url, (client) =>
    client.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"),
  );
  expect(asked.rows).toEqual([{ ssl: true }]);
  const cluster = join(place.dataDir, "cluster");
  const { mode, uid } = statSync(join(cluster, "server.key"));
  expect([mode & 0o777, uid]).toEqual([0o600, statSync(cluster).uid]);
  await server.stop();
  await (await startPostgres({ ...place, tls: { cert, key } })).stop();
});

test("a server left over by a killed parent is stopped before the next one starts", async () => {
  const place = folder("open");
  const left = await startPostgres(place);
  await write(left.url);
  const said: string[] = [];
  const next = await startPostgres({ ...place, say: (line) => said.push(line) });
  expect(left.program.running()).toBe(false);
  expect(said).toEqual(["stopping the PostgreSQL of an earlier run"]);
  expect(await read(next.url)).toEqual([{ answer: 42 }]);
  await next.stop();
});

test("a pid file that names another program's process does not keep the server from starting", async () => {
  const place = folder("open");
  await (await startPostgres(place)).stop();
  writeFileSync(join(place.dataDir, "cluster/postmaster.pid"), `${process.pid}\n`);
  const server = await startPostgres(place);
  await server.stop();
});

test("a set-up that was cut off is begun anew", async () => {
  const place = folder("open");
  mkdirSync(join(place.dataDir, "cluster.new/base"), { recursive: true });
  const server = await startPostgres(place);
  await server.stop();
});

test("the password is its owner's alone, and nobody gets in without it", async () => {
  const place = folder("open");
  const server = await startPostgres(place);
  expect(statSync(join(place.dataDir, "password")).mode & 0o777).toBe(0o600);
  const wrong = new URL(server.url);
  wrong.password = "guessed";
  await expect(withClient(wrong.href, (client) => client.query("SELECT 1"))).rejects.toThrow("password");
  await server.stop();
});

test("as root, the server runs as a user that nobody else is, also on a cluster that an older version gave to nobody", async () => {
  const place = folder("open");
  const cluster = join(place.dataDir, "cluster");
  const isRoot = process.getuid?.() === 0;
  const check = async (): Promise<number> => {
    const server = await startPostgres(place);
    const { uid } = statSync(`/proc/${server.program.pid}`);
    const owners = readdirSync(cluster, { recursive: true }).map((name) => lstatSync(join(cluster, String(name))).uid);
    await server.stop();
    expect(new Set(owners)).toEqual(new Set([uid]));
    expect(statSync(cluster).mode & 0o777).toBe(0o700);
    if (isRoot) expect([0, 65534]).not.toContain(uid);
    return uid;
  };
  const first = await check();
  expect(await check()).toBe(first);
  expect(readFileSync("/etc/passwd", "utf8").includes(`:x:${first}:`)).toBe(!isRoot && first < 60_600);
  if (!isRoot) return;
  giveTo(cluster, { uid: 65534, gid: 65534 });
  await check();
});

test("as root, data that the server's user cannot reach is kept elsewhere, for good, and that is said", async () => {
  const place = folder("private");
  const isRoot = process.getuid?.() === 0;
  const said: string[] = [];
  const start = () => startPostgres({ ...place, say: (line) => said.push(line) });
  const first = await start();
  await write(first.url);
  await first.stop();
  const second = await start();
  expect(await read(second.url)).toEqual([{ answer: 42 }]);
  await second.stop();
  expect(existsSync(join(place.dataDir, "cluster"))).toBe(!isRoot);
  expect(said.filter((line) => line.includes("its data is in /var/tmp/tephra-"))).toHaveLength(isRoot ? 2 : 0);
});
