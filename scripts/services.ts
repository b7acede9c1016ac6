import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { dirname, join } from "node:path";
import { BootstrapError, projectNode, root } from "./bootstrap.mjs";
import { poll } from "./poll.ts";
import { type PostgresOptions, type Server, startPostgres, withClient } from "./postgres.ts";
import { type RedisOptions, startRedis } from "./redis.ts";
import type { Program } from "./spawn-program.ts";

export interface Services {
  databaseUrl: string;
  redisUrl: string;
  /** The servers started here, as currently running: one that exits by itself is restarted. */
  servers: { postgres?: () => Program; redis?: () => Program };
  /** Stops Redis first, then PostgreSQL, whose log other programs may still write to. Idempotent. */
  stop(): Promise<void>;
}

/**
 * PostgreSQL and Redis as private children of this process, with their data and logs under `dataDir`, and the schema migrated.
 * `env.DATABASE_URL` and `env.REDIS_URL` name existing servers to use instead; those are neither started nor stopped.
 */
export async function startServices(options: {
  dataDir: string;
  env?: NodeJS.ProcessEnv;
  say?: (line: string) => void;
  /** Settings of the PostgreSQL started here. */
  postgresSettings?: Readonly<Record<string, string>>;
  /** Added to PostgreSQL's environment. */
  postgresEnv?: Readonly<Record<string, string>>;
  postgresTls?: PostgresOptions["tls"];
  /** Options of the Redis started here: configuration lines, files for TLS. */
  redisOptions?: Pick<RedisOptions, "settings" | "tls">;
  /** Parameters of PostgreSQL's connection URL, such as `sslmode=…&schema=…`. */
  databaseParameters?: string;
}): Promise<Services> {
  const { dataDir, env = {}, say = () => {}, postgresSettings: settings = {}, databaseParameters = "" } = options;
  const { postgresEnv: pgEnv = {}, postgresTls: tls, redisOptions = {} } = options;
  await using started = new AsyncDisposableStack();
  const log = (name: string): string => join(dataDir, "log", `${name}.log`);
  const servers: Services["servers"] = {};
  let databaseUrl = env["DATABASE_URL"];
  if (databaseUrl === undefined) {
    const options = { dataDir: join(dataDir, "postgres"), log: log("postgres"), say, settings, env: pgEnv, tls };
    const postgres = await keepServing((port) => startPostgres({ ...options, ...port }), say);
    started.defer(postgres.stop);
    databaseUrl = databaseParameters === "" ? postgres.url : `${postgres.url}?${databaseParameters}`;
    servers.postgres = postgres.program;
  }
  let redisUrl = env["REDIS_URL"];
  if (redisUrl === undefined) {
    const password = randomBytes(24).toString("hex");
    const options = { ...redisOptions, dir: join(dataDir, "redis"), log: log("redis"), say, password };
    const redis = await keepServing((port) => startRedis({ ...options, ...port }), say);
    started.defer(redis.stop);
    redisUrl = redis.url;
    servers.redis = redis.program;
  }
  const directUrl = env["DATABASE_DIRECT_URL"] || undefined;
  for (const url of [databaseUrl, ...(directUrl ? [directUrl] : [])]) await requireAnswer(url);
  migrate(databaseUrl, directUrl);
  const owned = started.move();
  return { databaseUrl, redisUrl, servers, stop: () => owned.disposeAsync() };
}

/** Restarts a server on the same port whenever it exits by itself. */
async function keepServing(
  start: (port?: { port: number }) => Promise<Server>,
  say: (line: string) => void,
): Promise<Pick<Server, "url" | "stop"> & { program: () => Program }> {
  let server = await start();
  const { url, port } = server;
  const stopping = new AbortController();
  const watch = async (): Promise<void> => {
    for (;;) {
      await server.program.exited;
      if (stopping.signal.aborted) return;
      say(`${server.program.name} ended by itself; it is started again`);
      await poll(() => restart(), {
        what: "it runs again",
        timeoutMs: 600_000,
        everyMs: 2000,
        signal: stopping.signal,
      });
    }
  };
  const restart = async (): Promise<true> => {
    server = await start({ port });
    return true;
  };
  const watching = watch().catch((error: unknown) => {
    if (!stopping.signal.aborted) say(String(error));
  });
  return {
    url,
    program: () => server.program,
    stop: async () => {
      stopping.abort();
      await server.stop();
      await watching;
    },
  };
}

/** @throws BootstrapError with PostgreSQL's own message, or that of the connection */
async function requireAnswer(url: string): Promise<void> {
  const { sentenceOf } = await import("@tephra/control/process");
  try {
    await withClient(url, (client) => client.query("SELECT 1"));
  } catch (error) {
    throw new BootstrapError(`PostgreSQL: ${sentenceOf(error)}`);
  }
}

/**
 * Applies missing migrations, bypassing a pooler where a direct URL is given. Idempotent.
 *
 * @throws BootstrapError with Prisma's message when one fails
 */
export function migrate(databaseUrl: string, directUrl = ""): void {
  const node = projectNode();
  const urls = { DATABASE_URL: databaseUrl, DATABASE_DIRECT_URL: directUrl };
  const quiet = { CHECKPOINT_DISABLE: "1", PRISMA_HIDE_UPDATE_MESSAGE: "1" };
  const result = spawnSync(node, [join(root, "node_modules/prisma/build/index.js"), "migrate", "deploy"], {
    cwd: root,
    encoding: "utf8",
    // The shebang of Prisma's CLI starts the schema engine with the first Node on the PATH.
    env: { ...process.env, ...urls, ...quiet, PATH: `${dirname(node)}:${process.env["PATH"]}` },
  });
  if (result.status !== 0) throw new BootstrapError(`the migrations do not apply:\n${result.stdout}${result.stderr}`);
}
