// Runs the embedded Tephra: PostgreSQL, Redis, the API, two workers and, where configured, a server of images as children, restarted when
// they crash and stopped in dependency order.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { dirname, join, resolve, sep } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { type Config, ConfigError } from "@tephra/control";
import { backendFolder, exchangeFolder, loadConfig } from "@tephra/control/process";
import { parse } from "yaml";
import { BootstrapError, nodeFlags, orFail, projectNode, root } from "./bootstrap.mjs";
import { keepToOwner, keepToPassersBy } from "./owner-only.ts";
import { poll } from "./poll.ts";
import { commandLine } from "./postgres.ts";
import { initialiseRepository } from "./repository.ts";
import { startServices } from "./services.ts";
import { spawnProgram } from "./spawn-program.ts";

const workers = 2;
const drainMs = 15_000;
const backoffMaxMs = 30_000;
/** A program that ran this long counts as healthy: its next restart is immediate again. */
const healthyMs = 60_000;

interface Settings {
  host: string;
  port: number;
  dataDir: string;
  /** The base folder of relative paths in the configuration. */
  workingDir: string;
  /** Folders below the data folder that the embedded set-up creates itself. */
  repositoryDirs: string[];
  volumeDirs: string[];
  /** Folders for imports and exports, where the configuration names no others. */
  exchangeDirs: string[];
  /** Whether a process is started that serves image transfers. */
  transfersImages: boolean;
  /** Where the API answers over HTTPS, and the file with the certificate that clients are to trust, where it is known. */
  tls: { host: string; port: number; ca: string | null } | null;
  /** Whether oVirt's API has a user. */
  hasOvirt: boolean;
  /** Environment of the API and the workers, without the URLs of servers yet to be started. */
  env: NodeJS.ProcessEnv;
}

const stop = new AbortController();
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => stop.abort());

await orFail(async () => {
  try {
    await supervise(await readSettings(), stop.signal);
  } catch (error) {
    // Ctrl-C during start-up makes the current step fail; everything has been stopped by then.
    if (!stop.signal.aborted) throw error instanceof BootstrapError ? error : new BootstrapError(messageOf(error));
  }
});
process.exit();

async function supervise(settings: Settings, signal: AbortSignal): Promise<void> {
  const { dataDir } = settings;
  // Logs, queues and passwords are readable by the owner only, including those of earlier versions.
  process.umask(0o077);
  mkdirSync(dataDir, { recursive: true });
  keepToPassersBy(dataDir); // PostgreSQL may run as another user, and users who exchange files pass through here.
  for (const name of ["log", "run"]) {
    mkdirSync(join(dataDir, name), { recursive: true });
    keepToOwner(join(dataDir, name));
  }
  await using stack = new AsyncDisposableStack();
  stack.defer(claimDataDir(dataDir));
  await requireFreePort(settings);
  const services = await startServices({ dataDir, env: settings.env, say });
  stack.defer(services.stop);
  signal.throwIfAborted();
  await layOut(settings);
  const env = { ...settings.env, DATABASE_URL: services.databaseUrl, REDIS_URL: services.redisUrl };
  const doctor = await spawnProgram({
    name: "doctor",
    command: projectNode(),
    args: [join(root, "apps/worker/dist/doctor.js"), "--quick", "--problems"],
    env,
    cwd: settings.workingDir,
    onLine: say,
  });
  stack.defer(async () => void (await doctor.stop()));
  const programs = [
    { name: "api", entry: "apps/api/dist/main.js" },
    ...(settings.transfersImages ? [{ name: "transfer", entry: "apps/transfer/dist/main.js" }] : []),
    ...Array.from({ length: workers }, (_, i) => ({ name: `worker-${i + 1}`, entry: "apps/worker/dist/main.js" })),
  ];
  const stopping = new AbortController();
  const ready = new AbortController();
  const failed = Promise.withResolvers<never>();
  const running = programs.map((program) => keepRunning({ ...program, env, settings }, stopping.signal, ready.signal));
  for (const program of running) program.catch(failed.reject);
  stack.defer(async () => {
    say("stopping: the workers finish or hand back what they hold");
    stopping.abort();
    await Promise.allSettled(running);
  });
  await Promise.race([untilReady(settings, signal), failed.promise]);
  ready.abort();
  announce(settings);
  await Promise.race([new Promise((done) => signal.addEventListener("abort", done)), failed.promise]);
}

async function readSettings(): Promise<Settings> {
  const workingDir = process.env["TEPHRA_WORKING_DIR"] ?? process.env["INIT_CWD"] ?? process.cwd();
  const env: NodeJS.ProcessEnv = { ...process.env, TEPHRA_WORKING_DIR: workingDir };
  env["TEPHRA_DATA_DIR"] ??= join(root, "var");
  for (const name of ["DATABASE_URL", "REDIS_URL"]) {
    const path = env[`${name}_FILE`];
    delete env[`${name}_FILE`];
    if (path !== undefined) env[name] ??= readFileSync(path, "utf8").trim();
  }
  const file = env["TEPHRA_CONFIG"];
  if (file !== undefined) {
    const { database_url, database_direct_url, redis_url } = (parse(readFileSync(file, "utf8")) ?? {}) as Record<
      string,
      string | undefined
    >;
    env["DATABASE_URL"] ??= database_url;
    env["DATABASE_DIRECT_URL"] ??= database_direct_url;
    env["REDIS_URL"] ??= redis_url;
  }
  const config = await checkConfig(env);
  const below = (path: string): boolean => resolve(workingDir, path).startsWith(config.data_dir + sep);
  const posixDirs = config.repositories.flatMap(({ url }) => (url.startsWith("posix:") ? [url.slice(6)] : []));
  return {
    host: config.host,
    port: config.port,
    dataDir: config.data_dir,
    workingDir,
    repositoryDirs: posixDirs.filter(below),
    exchangeDirs: config.import_roots.filter((root) => root === join(config.data_dir, exchangeFolder)),
    volumeDirs: config.volume_backends.flatMap((backend) => backendFolder(backend) ?? []).filter(below),
    transfersImages: config.image_transfers !== null,
    tls: tlsOf(config, workingDir),
    hasOvirt: config.ovirt.users.length > 0,
    env: { ...env, TEPHRA_DATA_DIR: config.data_dir },
  };
}

/** Where HTTPS is answered, and the certificate for clients to trust. */
function tlsOf({ tls, host, data_dir }: Config, workingDir: string): Settings["tls"] {
  if (tls.port === null) return null;
  const own = join(tls.ca_dir ?? join(data_dir, "tls"), "ca.pem");
  const ca = tls.certificate_file === null ? own : tls.ca_file;
  return { host: tls.host ?? host, port: tls.port, ca: ca && resolve(workingDir, ca) };
}

/** Checked before anything is started; the two servers that this process starts itself have no address yet. */
async function checkConfig(env: NodeJS.ProcessEnv): Promise<Config> {
  const pending = { DATABASE_URL: "postgresql://pending", REDIS_URL: "redis://pending" };
  try {
    const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined));
    return loadConfig({ ...pending, ...given });
  } catch (error) {
    if (error instanceof ConfigError) throw new BootstrapError(error.message);
    throw error;
  }
}

/**
 * Keeps a second supervisor off the same data. The lock file names its holder, so that a killed one does not block.
 *
 * @returns a function that releases the folder
 */
function claimDataDir(dataDir: string): () => void {
  const path = join(dataDir, "run/supervisor.pid");
  mkdirSync(dirname(path), { recursive: true });
  const holder = existsSync(path) ? Number(readFileSync(path, "utf8")) : 0;
  if (holder > 0 && holder !== process.pid && /scripts\/(start\.mjs|supervisor\.ts)/.test(commandLine(holder))) {
    throw new BootstrapError(`${dataDir} is in use by another Tephra (process ${holder}): set TEPHRA_DATA_DIR`);
  }
  writeFileSync(path, `${process.pid}`);
  return () => rmSync(path, { force: true });
}

async function requireFreePort({ host, port, tls }: Settings): Promise<void> {
  await requireFree({ host, port, hint: "set TEPHRA_PORT or TEPHRA_HOST" });
  if (tls) await requireFree({ ...tls, hint: "set tls.port or tls.host" });
}

async function requireFree({ host, port, hint }: { host: string; port: number; hint: string }): Promise<void> {
  const server = createServer();
  const bound = Promise.withResolvers<void>();
  server.once("error", bound.reject);
  server.listen(port, host, bound.resolve);
  try {
    await bound.promise;
  } catch (error) {
    throw new BootstrapError(`${host}:${port} cannot be listened on (${messageOf(error)}): ${hint}`);
  } finally {
    server.close();
  }
}

/**
 * Creates the folders of the embedded set-up. A repository is marked only once: if its folder is empty later, it is an unmounted share or
 * lost data, and must not be written to as if it were new.
 */
async function layOut({ dataDir, repositoryDirs, volumeDirs, exchangeDirs }: Settings): Promise<void> {
  for (const dir of [...volumeDirs, ...exchangeDirs]) mkdirSync(dir, { recursive: true });
  for (const dir of repositoryDirs) {
    const record = join(dataDir, "run", `marked-${encodeURIComponent(dir)}`);
    if (existsSync(record)) continue;
    if (!existsSync(dir) || readdirSync(dir).length === 0) await initialiseRepository(`posix:${dir}`);
    writeFileSync(record, "");
  }
}

/** Restarts the program whenever it exits, until `stopping` aborts; then lets it drain. An exit before `ready` is final. */
async function keepRunning(
  program: { name: string; entry: string; settings: Settings; env: NodeJS.ProcessEnv },
  stopping: AbortSignal,
  ready: AbortSignal,
): Promise<void> {
  const log = join(program.settings.dataDir, "log", `${program.name}.log`);
  let backoffMs = 0;
  while (!stopping.aborted) {
    const startedAt = performance.now();
    const child = await spawnProgram({
      name: program.name,
      command: projectNode(),
      args: [...nodeFlags, join(root, program.entry)],
      env: program.env,
      cwd: program.settings.workingDir,
      log,
      onLine: (line) => warn(program.name, line),
    });
    const drain = (): void => void child.stop({ timeoutMs: drainMs });
    stopping.addEventListener("abort", drain);
    if (stopping.aborted) drain();
    const { code, signal } = await child.exited;
    stopping.removeEventListener("abort", drain);
    if (stopping.aborted) return;
    const how = signal === null ? `with status ${code}` : `by ${signal}`;
    if (!ready.aborted) throw new BootstrapError(`${program.name} ended ${how} while it started:\n${child.tail()}`);
    if (performance.now() - startedAt > healthyMs) backoffMs = 0;
    say(
      `${program.name} ended ${how}; it is started again${backoffMs > 0 ? ` in ${backoffMs / 1000} s` : ""} (${log})`,
    );
    await delay(backoffMs, undefined, { signal: stopping }).catch(() => {});
    backoffMs = Math.min(Math.max(1000, backoffMs * 2), backoffMaxMs);
  }
}

async function untilReady({ host, port }: Settings, signal: AbortSignal): Promise<void> {
  const answered = async (): Promise<boolean> => (await fetch(`${origin(host, port)}/readyz`)).status === 200;
  await poll(answered, { what: "GET /readyz answers 200", timeoutMs: 120_000, signal });
}

function announce({ host, port, tls, hasOvirt, dataDir, env }: Settings): void {
  const url = origin(host, port);
  const secure = tls && origin(tls.host, tls.port, "https");
  const elsewhere = port === 8776 && host === "127.0.0.1" ? "" : ` --url ${url}`;
  const lines = [
    `ready ${url}`,
    "",
    `  Cinder v3 endpoint   ${url}/v3`,
    ...(hasOvirt ? [`  oVirt's API          ${secure ?? url}/ovirt-engine/api`] : []),
    ...(secure ? [`  over HTTPS           ${secure}`] : []),
    ...(tls?.ca ? [`  its authority        ${tls.ca}`] : []),
    `  queues               ${url}/ops/queues`,
    `  data and logs        ${dataDir}`,
    "",
    "  Try it from another terminal:",
    `    npx tephra${elsewhere} volume create --size 1 --name first --wait`,
    `    npx tephra${elsewhere} backup create first --name monday --wait`,
    `    npx tephra${elsewhere} backup list`,
    `    npx tephra${elsewhere} status`,
    "",
    "  Ctrl-C stops it; the data stays.",
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
  if (env["DATABASE_URL"] !== undefined) say("using the PostgreSQL of DATABASE_URL");
}

function origin(host: string, port: number, scheme = "http"): string {
  return `${scheme}://${host.includes(":") ? `[${host}]` : host}:${port}`;
}

/** The part of a program's log that is shown at the terminal: warnings and worse, and lines that are not log entries. */
function warn(name: string, line: string): void {
  const entry = parseLogLine(line);
  if (entry === null) say(`${name}: ${line}`);
  else if (entry.level >= 40) say(`${name}: ${entry.msg ?? line}`);
}

function parseLogLine(line: string): { level: number; msg?: string } | null {
  try {
    const entry: unknown = JSON.parse(line);
    return typeof entry === "object" && entry !== null && "level" in entry ? (entry as { level: number }) : null;
  } catch {
    return null;
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function say(line: string): void {
  process.stderr.write(`tephra: ${line}\n`);
}
