import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { inDatabase, openPool, redisConnection } from "@tephra/control/process";
import { Redis } from "ioredis";
import { inject } from "vitest";
import { withClient } from "../../scripts/postgres.ts";
import { redisDatabases, startRedis } from "../../scripts/redis.ts";
import { freePort, type Program } from "../../scripts/spawn-program.ts";
import type { TestServers } from "./global-setup.ts";
import { layOut, programsOf } from "./programs.ts";
import { patience, type Truthy, type WaitOptions, waitFor } from "./wait-for.ts";
import { checkWireAnswer } from "./wire-answers.ts";

export interface InstanceOptions {
  /** Number of worker processes at start; default 1. */
  workers?: number;
  /** Whether an API process is started; default true. */
  api?: boolean;
  /** Merged over the default configuration, key by key at the top level. */
  config?: Record<string, unknown>;
  /** Merged over the settings of the default repository. */
  repository?: Record<string, unknown>;
  /** Environment of every process, overriding the default one. */
  env?: Record<string, string>;
  /** A private Redis, for tests that empty, pause or kill it. */
  ownRedis?: boolean;
  /** Password of the private Redis. */
  redisPassword?: string;
  /** Overrides for the servers of this run. */
  servers?: Partial<TestServers>;
  /** Database-level defaults for every connection, as an administrator may set them. */
  databaseSettings?: Record<string, string>;
  /** A folder that keeps the output of all processes, one file each. */
  logs?: string;
}

export interface Reply {
  status: number;
  headers: Headers;
  /** The parsed JSON; undefined when the body is empty or not JSON. */
  // biome-ignore lint/suspicious/noExplicitAny: tests reach into bodies whose shape is what they check
  body: any;
  text: string;
}

/** A complete Tephra: a database, an API and workers as processes, a repository and volumes, shared with no other test. */
export interface Instance extends AsyncDisposable {
  readonly url: string;
  readonly dataDir: string;
  readonly repositoryDir: string;
  readonly volumesDir: string;
  readonly databaseUrl: string;
  readonly redisUrl: string;
  readonly redis: Redis;
  /** In start order; includes those that have exited. */
  readonly workers: readonly Program[];
  /** The server of `ownRedis`. */
  readonly redisServer: Program | null;
  request(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<Reply>;
  // biome-ignore lint/suspicious/noExplicitAny: rows of whatever the test asked for
  sql(text: string, params?: readonly unknown[]): Promise<any[]>;
  /** Makes the schedule of that name due: its last start is set to a year ago. */
  setDue(schedule: string): Promise<void>;
  /**
   * Settles when the other processes see the worker. `prefix` is put before the command line: a program that runs the worker in a special
   * environment.
   */
  startWorker(env?: Record<string, string>, prefix?: readonly string[]): Promise<Program>;
  /** Settles when GET /readyz answers 200. The port stays the same across restarts. */
  startApi(env?: Record<string, string>): Promise<Program>;
  /** An API on a port of its own and a worker, of another checkout, beside the others. Settles when both are known. */
  startBeside(checkout: string): Promise<{ api: Program; worker: Program; url: string; request: Instance["request"] }>;
  /** Settles when the service knows the server of images; needs `image_transfers` in the configuration. */
  startTransfer(env?: Record<string, string>): Promise<Program>;
  /** Settles when the process has exited. */
  killApi(signal?: NodeJS.Signals): Promise<void>;
  /** Like the free function, with the end of every process's log in the error message. */
  waitFor<T>(fn: () => Promise<T> | T, options: WaitOptions): Promise<Truthy<T>>;
  logs(): string;
}

/** Starts an instance on the servers of this run. `await using` stops and removes it in any state. */
export async function startInstance(options: InstanceOptions = {}): Promise<Instance> {
  const servers = { ...inject("servers"), ...(options.servers && { pooledUrl: null, ...options.servers }) };
  await using stack = new AsyncDisposableStack();
  const dataDir = mkdtempSync(join(servers.dir, "instance-"));
  stack.defer(() => rmSync(dataDir, { recursive: true, force: true }));
  const databaseUrl = await createDatabase(servers, stack, options.databaseSettings);
  const redis = await connectRedis(servers, { own: options.ownRedis === true, dir: join(dataDir, "redis") }, stack);
  const pool = openPool(databaseUrl, "script", { connectionsMax: 4 });
  stack.defer(() => pool.end());
  const port = await freePort();
  if (options.redisPassword !== undefined) await protect(redis, options.redisPassword);
  await layOut(dataDir, { auth: { mode: "none" }, ...options.config }, options.repository);
  const programs = programsOf({
    ...{ dir: dataDir, databaseUrl, redisUrl: redis.url, port, env: options.env ?? {}, logs: options.logs },
    isKnown: async (pid) => (await pool.query("SELECT 1 FROM workers WHERE pid = $1", [pid])).rowCount === 1,
    servesImages: async (pid) => (await pool.query("SELECT 1 FROM image_servers WHERE pid = $1", [pid])).rowCount === 1,
  });
  stack.defer(() => programs.stop({ signal: "SIGKILL" }));
  const logs = programs.tails;
  const url = `http://127.0.0.1:${port}`;
  const startApi = async (how: Parameters<typeof programs.startApi>[0]): Promise<Program> => {
    const program = await programs.startApi(how);
    if (!program.running()) throw new Error(`${program.name} ended while it started\n${logs()}`);
    return program;
  };
  const instance: Omit<Instance, typeof Symbol.asyncDispose> = {
    url,
    dataDir,
    repositoryDir: join(dataDir, "repository"),
    volumesDir: join(dataDir, "volumes"),
    databaseUrl,
    redisUrl: redis.url,
    redis: redis.client,
    redisServer: redis.server,
    workers: programs.workers,
    request: (method, path, body, headers = {}) => request(url + path, { method, body, headers }),
    sql: async (text, params = []) => (await pool.query(text, [...params])).rows,
    setDue: async (schedule) => {
      await pool.query(
        `INSERT INTO schedules (name, ran_at) VALUES ($1, now() - interval '1 year')
         ON CONFLICT (name) DO UPDATE SET ran_at = EXCLUDED.ran_at`,
        [schedule],
      );
    },
    startWorker: (env, prefix) => programs.startWorker({ env, prefix }),
    startApi: (env) => startApi({ env }),
    startBeside: async (checkout) => {
      const besidePort = await freePort();
      const besideUrl = `http://127.0.0.1:${besidePort}`;
      return {
        url: besideUrl,
        api: await startApi({ name: "api-beside", port: besidePort, checkout }),
        worker: await programs.startWorker({ checkout }),
        request: (method, path, body, headers = {}) =>
          request(besideUrl + path, { method, body, headers, ofThisCheckout: false }),
      };
    },
    startTransfer: (env) => programs.startTransfer({ env }),
    killApi: async (signal = "SIGKILL") => {
      const api = programs.all.findLast(({ name }) => name === "api");
      api?.kill(signal);
      await api?.exited;
    },
    waitFor: (fn, wait) => waitFor(fn, { context: logs, ...wait }),
    logs,
  };
  await Promise.all([
    ...(options.api === false ? [] : [instance.startApi()]),
    ...Array.from({ length: options.workers ?? 1 }, () => instance.startWorker()),
  ]);
  const owned = stack.move();
  return { ...instance, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** A database with the schema but no rows; dropped when `stack` is disposed. `settings` are its defaults. Returns its URL. */
export async function createDatabase(
  servers: TestServers,
  stack: AsyncDisposableStack,
  settings: Record<string, string> = {},
): Promise<string> {
  const name = `test_${randomBytes(6).toString("hex")}`;
  await withClient(servers.adminUrl, (client) =>
    client.query(`CREATE DATABASE ${name} TEMPLATE ${servers.template} STRATEGY file_copy`),
  );
  for (const [setting, value] of Object.entries(settings)) {
    await withClient(servers.adminUrl, (client) => client.query(`ALTER DATABASE ${name} SET ${setting} = '${value}'`));
  }
  stack.defer(() =>
    withClient(servers.adminUrl, async (client) => void (await client.query(`DROP DATABASE ${name} WITH (FORCE)`))),
  );
  return inDatabase(servers.pooledUrl ?? servers.adminUrl, name);
}

interface ConnectedRedis {
  url: string;
  client: Redis;
  server: Program | null;
}

async function connectRedis(
  servers: TestServers,
  { own, dir }: { own: boolean; dir: string },
  stack: AsyncDisposableStack,
): Promise<ConnectedRedis> {
  let url = await ownNumber(servers.redisUrl);
  let server: Program | null = null;
  if (own) {
    const started = await startRedis({ dir, log: join(dir, "redis.log") });
    stack.defer(started.stop);
    url = started.url;
    server = started.program;
  }
  const client = new Redis({ ...redisConnection(url), maxRetriesPerRequest: null });
  client.on("error", () => {}); // Tests take the server down; ioredis reconnects by itself.
  stack.defer(async () => {
    if (!own) await client.flushdb();
    client.disconnect();
  });
  const { redisUser } = servers;
  return { url: own || redisUser === null ? url : asUser(url, redisUser), client, server };
}

function asUser(redisUrl: string, { name, password }: { name: string; password: string }): string {
  const url = new URL(redisUrl);
  url.username = encodeURIComponent(name);
  url.password = encodeURIComponent(password);
  return url.href;
}

/** Sets a Redis password, which becomes part of its URL. */
async function protect(redis: ConnectedRedis, password: string): Promise<void> {
  await redis.client.config("SET", "requirepass", password);
  await redis.client.auth(password);
  const url = new URL(redis.url);
  url.password = password;
  redis.url = url.href;
}

/** A database number of the shared Redis that no other instance of this run uses; database 0 holds the counter. */
async function ownNumber(redisUrl: string): Promise<string> {
  const counter = new Redis(redisConnection(redisUrl));
  const taken = await counter.incr("instances");
  counter.disconnect();
  const url = new URL(redisUrl);
  url.pathname = `/${1 + (taken % (redisDatabases - 1))}`;
  return url.href;
}

async function request(
  url: string,
  {
    method,
    body,
    headers,
    ofThisCheckout = true,
  }: { method: string; body: unknown; headers: Record<string, string>; ofThisCheckout?: boolean },
): Promise<Reply> {
  const raw = typeof body === "string" || body instanceof Uint8Array;
  const response = await fetch(url, {
    method,
    headers: { ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
    ...(body === undefined ? {} : { body: raw ? body : JSON.stringify(body) }),
    redirect: "manual",
    signal: AbortSignal.timeout(30_000 * patience),
  });
  const text = await response.text();
  const reply = { status: response.status, headers: response.headers, body: parseJson(text), text };
  if (ofThisCheckout) checkWireAnswer(method, url, reply);
  return reply;
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
