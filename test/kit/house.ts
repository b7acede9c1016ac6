import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openPool } from "@tephra/control/process";
import type pg from "pg";
import { poll } from "../../scripts/poll.ts";
import { type Services, startServices } from "../../scripts/services.ts";
import { freePort, type Program } from "../../scripts/spawn-program.ts";
import { layOut, type Place, programsOf } from "./programs.ts";

/** As GET /ops/operations shows it; sizes in bytes. */
export interface Operation {
  id: string;
  kind: string;
  state: string;
  volume_id: string | null;
  bytes_total: number;
  bytes_done: number;
  bytes_stored: number;
  bytes_copied_twice: number;
  fail_reason: string | null;
}

export interface HouseOptions {
  workers: number;
  /** Keys of the configuration file beside those that name folders. */
  config: Record<string, unknown>;
  /** Where files may be imported from and exported to, beside the house's own folder. */
  importRoots?: readonly string[];
  say?: (line: string) => void;
  /** Added to the environment of the API, the workers and the server of images. */
  env?: Readonly<Record<string, string>>;
  /** Added to the environment of its PostgreSQL. */
  postgresEnv?: Readonly<Record<string, string>>;
  /** By which addresses the programs reach the servers; the house itself asks them directly. */
  via?: (servers: ServerUrls) => Promise<ServerUrls>;
  /** Where the API and the workers run, which take the places in turn; on this machine by default. */
  places?: { api: Place; workers: readonly Place[] } | undefined;
}

export interface ServerUrls {
  databaseUrl: string;
  redisUrl: string;
}

/** A whole Tephra of its own: servers, API, workers, repository and volumes in a temporary folder. */
export interface House extends AsyncDisposable {
  readonly url: string;
  readonly dir: string;
  readonly workers: readonly Program[];
  /** The API and all workers; those that ended stay in it. */
  readonly programs: readonly Program[];
  /** The file of a volume, as the `file` backend names it. */
  volumeFile(volumeId: string): string;
  /** @throws with the service's message unless the answer is a success */
  call<T>(method: string, path: string, body?: unknown): Promise<T>;
  sql<Row extends pg.QueryResultRow>(text: string, params?: readonly unknown[]): Promise<Row[]>;
  /** Polls until the operation has ended. @throws with its reason unless it succeeded */
  finished(query: { id: string } | { kind: string; backupId?: string; volumeId?: string }): Promise<Operation>;
  /** The configuration file: JSON. */
  readonly configPath: string;
  /** Settles when the new worker is known to the service. `env` is added to its environment; with it, an end is as good. */
  startWorker(env?: Record<string, string>): Promise<Program>;
  /** Settles when the service knows the server of images; needs `image_transfers` in the configuration. */
  startTransfer(): Promise<Program>;
  /** The API's process; another one after each restart. */
  api(): Program;
  /** Ends the API and starts it again on the same port; settles when it answers. `env` is added to its environment; with it, an end is as good. */
  restartApi(signal: NodeJS.Signals, env?: Record<string, string>): Promise<void>;
  readonly services: Pick<Services, "databaseUrl" | "redisUrl" | "servers">;
}

/** The project of a caller who says nothing. */
export const project = "00000000000000000000000000000001";

const operationMaxMs = 10 * 60_000;
/**
 * `await using` stops every program and removes the folder, whatever happened. So does SIGINT or SIGTERM, with which this
 * process then ends.
 */
export async function openHouse(options: HouseOptions): Promise<House> {
  const opening = build(options);
  const leave = async (): Promise<void> => {
    options.say?.("stopping");
    // What is half built is finished first: that takes seconds, and then all of it can be taken down.
    const built = await opening.catch(() => null);
    await built?.[Symbol.asyncDispose]();
    process.exit(130);
  };
  process.once("SIGINT", leave).once("SIGTERM", leave);
  const forget = (): void => void process.off("SIGINT", leave).off("SIGTERM", leave);
  const house = await opening.catch((error: unknown) => {
    forget();
    throw error;
  });
  return {
    ...house,
    [Symbol.asyncDispose]: async () => {
      await house[Symbol.asyncDispose]();
      forget();
    },
  };
}

async function build(options: HouseOptions): Promise<House> {
  const say = options.say ?? (() => {});
  await using stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), "tephra-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  chmodSync(dir, 0o711); // As root, PostgreSQL runs as another user, who must reach its folder in here.
  const services = await startServices({ dataDir: dir, say, postgresEnv: options.postgresEnv ?? {} });
  stack.defer(services.stop);
  const pool = openPool(services.databaseUrl, "script", { connectionsMax: 4 });
  pool.on("error", () => {}); // The server stops under idle connections at the end.
  stack.defer(() => pool.end());
  const { repository = {}, ...config } = options.config as { repository?: object };
  await layOut(dir, { import_roots: [dir, ...(options.importRoots ?? [])], log_level: "warn", ...config }, repository);
  const port = await freePort();
  const { places } = options;
  const url = `http://${places?.api.address ?? "127.0.0.1"}:${port}`;
  const reached = options.via ? await options.via(services) : services;
  const sql: House["sql"] = async (text, params = []) => (await pool.query(text, [...params])).rows;
  const programs = programsOf({
    ...{ dir, databaseUrl: reached.databaseUrl, redisUrl: reached.redisUrl, port, logs: join(dir, "log") },
    env: options.env ?? {},
    isKnown: async (pid) => (await sql("SELECT 1 FROM workers WHERE pid = $1", [pid])).length > 0,
    servesImages: async (pid) => (await sql("SELECT 1 FROM image_servers WHERE pid = $1", [pid])).length > 0,
  });
  stack.defer(() => programs.stop({ timeoutMs: 10_000 }));
  const call: House["call"] = (method, path, body) => callService(url + path, method, body);
  /** One that was told to die may have done so before anybody looked. */
  const alive = (program: Program, mayEnd: boolean): Program => {
    if (!program.running() && !mayEnd) throw new Error(`${program.name} ended while it started:\n${program.tail()}`);
    return program;
  };
  const startWorker: House["startWorker"] = async (env) => {
    const place = places?.workers[programs.workers.length % places.workers.length];
    return alive(await programs.startWorker({ env, prefix: place?.prefix }), env !== undefined);
  };
  await places?.api.publish(port);
  let api = alive(await programs.startApi({ ...places?.api }), false);
  await Promise.all(Array.from({ length: options.workers }, () => startWorker()));
  const restartApi: House["restartApi"] = async (signal, env) => {
    await api.stop({ signal });
    api = alive(await programs.startApi({ ...places?.api, env }), env !== undefined);
  };
  const owned = stack.move();
  return {
    url,
    dir,
    workers: programs.workers,
    programs: programs.all,
    volumeFile: (volumeId) => join(dir, "volumes", `volume-${volumeId}`),
    call,
    sql,
    finished: (query) => operationEnd(call, query),
    configPath: join(dir, "tephra.yml"),
    startWorker,
    startTransfer: async () => alive(await programs.startTransfer(), false),
    api: () => api,
    restartApi,
    services,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function callService<T>(url: string, method: string, body: unknown): Promise<T> {
  const response = await fetch(url, {
    method,
    ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
    signal: AbortSignal.timeout(60_000),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${method} ${new URL(url).pathname}: ${response.status} ${text}`);
  return (text === "" ? {} : JSON.parse(text)) as T;
}

async function operationEnd(call: House["call"], query: Parameters<House["finished"]>[0]): Promise<Operation> {
  const read = async (): Promise<Operation | undefined> => {
    if ("id" in query) return (await call<{ operation: Operation }>("GET", `/ops/operations/${query.id}`)).operation;
    const search = new URLSearchParams();
    if (query.backupId !== undefined) search.set("backup_id", query.backupId);
    if (query.volumeId !== undefined) search.set("volume_id", query.volumeId);
    const { operations } = await call<{ operations: Operation[] }>("GET", `/ops/operations?${search}`);
    return operations.find((operation) => operation.kind === query.kind);
  };
  const ended = async (): Promise<Operation | undefined> => {
    const operation = await read();
    return operation !== undefined && !["queued", "running"].includes(operation.state) ? operation : undefined;
  };
  const operation = await poll(ended, { what: "the operation ends", timeoutMs: operationMaxMs });
  if (operation.state === "succeeded") return operation;
  throw new Error(`${operation.kind} ${operation.state}: ${operation.fail_reason}`);
}
