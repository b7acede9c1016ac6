import { createHash } from "node:crypto";
import type { ZlibEncoder } from "../config.ts";
import type { Database, Transaction } from "../db/database.ts";
import { isLiveWorker } from "../db/live.ts";
import type { BandwidthLimit } from "../limits/bandwidth.ts";
import type { Lane } from "../priorities.ts";
import { backupBinary } from "./services.ts";

/** What a worker has found at a place: how long it took to answer, how much can be stored there, versions of the master keys for it, the current one first. */
export interface PlaceCard {
  ms: number;
  /** Null: nothing says. */
  free_bytes?: number | null;
  keys?: readonly string[];
}

export interface WorkerCard {
  id: string;
  /** As returned by installationOf(). */
  installation?: string;
  host: string;
  pid: number;
  slots: number;
  /**
   * The worker's capabilities, which tasks may need: `repository:NAME` to write, `repository-read:NAME`, `backend:NAME`,
   * `zlib-encoder:isal`.
   */
  reaches: readonly string[];
  /** Capability → why the worker does not have it. */
  unreachable: Readonly<Record<string, string>>;
  /** `backend:NAME` → free bytes on it. */
  freeBytes?: Readonly<Record<string, number>>;
  /** The same names as in `reaches` → what was found there. */
  places?: Readonly<Record<string, PlaceCard>>;
  /** The release, and resident memory in bytes. */
  version?: string;
  rssBytes?: number;
}

/** The capability to store or remove something in a repository; it includes reading. */
export const needToWrite = (repository: string): string => `repository:${repository}`;

/** The capability to read a repository: backups can be restored from where none can be made. */
export const needToRead = (repository: string): string => `repository-read:${repository}`;

/** The capability to compress with an encoder that not every machine has. */
export function encoderNeeds(encoder: ZlibEncoder | undefined): string[] {
  return encoder === "isal" ? ["zlib-encoder:isal"] : [];
}

const digestOf = (value: unknown): string =>
  createHash("sha256").update(JSON.stringify(value)).digest("hex").slice(0, 12);

/**
 * Prefix of the names of this installation's queues, so that several installations can share one Redis. A copy of a database counts as
 * another installation: the prefix depends on the id in its row, and also on the database itself and its server.
 */
export async function installationOf(database: Database): Promise<string> {
  const rows = await database.$queryRaw`
    SELECT i.id, (SELECT oid::text FROM pg_database WHERE datname = current_database()) AS database FROM installation i`;
  // Some servers allow this to administrators only.
  const server = await database.$queryRaw`SELECT system_identifier::text FROM pg_control_system()`.catch(() => null);
  return digestOf([rows, server]);
}

/** The end of the names of queues with lanes: those of workers of the release before have none. */
const withLanes = "-2";

/** Workers of an installation with the same capabilities share one queue. The name contains no `:`, which BullMQ forbids. */
export function queueFor(reaches: readonly string[], installation = ""): string {
  return `tephra-${installation}-${digestOf([...reaches].sort())}${withLanes}`;
}

/** The queues in Redis that workers serve for a queue: tasks of high priority have one of their own. */
export function laneQueues(queue: string): { high: string; other: string } {
  return { high: queue.endsWith(withLanes) ? `${queue}-high` : queue, other: queue };
}

/** While Redis does not work, a job that has not arrived within this time is considered lost. */
export const adriftMs = 2_000;
/** A task of which this many jobs in a row have not arrived is taken by a worker without one. */
export const undeliveredMax = 3;

export interface Published {
  /** Whether the worker's host is disabled. */
  disabled: boolean;
  /** Tasks of its queue whose jobs do not arrive. */
  undelivered: { id: string; lane: Lane }[];
  /** Whether it holds, or is to begin, backups of machines, or others have left something of such on its host. */
  machineBackups: boolean;
  /** The limits that are set, and the database's time. */
  limits: BandwidthLimit[];
  now: Date;
}

/** Registers a worker, or updates its registration. */
export async function publishWorker(database: Database, card: WorkerCard): Promise<Published> {
  const data = {
    host: card.host,
    pid: card.pid,
    slots: card.slots,
    queue: queueFor(card.reaches, card.installation),
    reaches: [...card.reaches],
    unreachable: { ...card.unreachable },
    freeBytes: { ...card.freeBytes },
  };
  const [published] = await database.$queryRaw<Published[]>`
    WITH registered AS (
      INSERT INTO workers (id, host, pid, slots, queue, reaches, unreachable, free_bytes, places, version, rss_bytes, heartbeat_at)
      VALUES (${card.id}, ${data.host}, ${data.pid}, ${data.slots}, ${data.queue}, ${data.reaches}::text[],
        ${JSON.stringify(data.unreachable)}::jsonb, ${JSON.stringify(data.freeBytes)}::jsonb, ${JSON.stringify(card.places ?? {})}::jsonb,
        ${card.version ?? null}, ${card.rssBytes ?? null}::bigint, now())
      ON CONFLICT (id) DO UPDATE SET slots = EXCLUDED.slots, queue = EXCLUDED.queue, reaches = EXCLUDED.reaches,
        unreachable = EXCLUDED.unreachable, free_bytes = EXCLUDED.free_bytes, places = EXCLUDED.places, version = EXCLUDED.version, rss_bytes = EXCLUDED.rss_bytes, heartbeat_at = now()
    )
    SELECT EXISTS (SELECT 1 FROM disabled_services WHERE "binary" = ${backupBinary} AND host = ${data.host}) AS disabled,
      (SELECT coalesce(jsonb_agg(u), '[]'::jsonb) FROM (
        SELECT id, CASE WHEN rank < 0 THEN 'high' ELSE 'other' END AS lane FROM tasks
        WHERE state = 'dispatched' AND queue = ${data.queue} AND dispatch - claim > ${undeliveredMax}
          AND dispatched_at < now() - ${adriftMs} * interval '1 millisecond' ORDER BY rank, queued_at LIMIT ${data.slots}::int) u) AS undelivered,
      EXISTS (SELECT 1 FROM machine_backups WHERE ended_at IS NULL AND worker_id = ${card.id})
        OR EXISTS (SELECT 1 FROM machine_backups WHERE leftovers AND worker_host = ${data.host}) AS "machineBackups",
      (SELECT coalesce(jsonb_agg(jsonb_build_object('traffic', traffic, 'scope', scope, 'name', name,
        'bytesPerSecond', bytes_per_second, 'windows', windows)), '[]'::jsonb) FROM bandwidth_limits) AS limits, now() AS now`;
  if (!published) throw new Error("PostgreSQL returned no row");
  return published;
}

/** Free bytes on a volume backend, according to the worker with the latest heartbeat; null when none reports any. */
export async function freeBytesOf(tx: Database | Transaction, backend: string): Promise<number | null> {
  const [row] = await tx.$queryRaw<{ free: number }[]>`
    SELECT (free_bytes ->> ${`backend:${backend}`})::float AS free FROM workers
    WHERE free_bytes ? ${`backend:${backend}`} ORDER BY heartbeat_at DESC LIMIT 1`;
  return row?.free ?? null;
}

/** Removes the registration of a stopping worker: nothing more is dispatched for it. */
export async function withdrawWorker(database: Database, id: string): Promise<void> {
  await database.$executeRaw`DELETE FROM workers WHERE id = ${id}`;
}

export interface LiveQueue {
  queue: string;
  reaches: string[];
  slots: number;
  workers: number;
}

/** The queues served by at least one live worker on a host that is not disabled. `downMs`: how long a worker may be silent. */
export async function liveQueues(database: Database | Transaction, downMs: number): Promise<LiveQueue[]> {
  return database.$queryRaw<LiveQueue[]>`
    SELECT queue, reaches, sum(slots)::int AS slots, count(*)::int AS workers FROM workers
    WHERE ${isLiveWorker("workers", downMs)}
      AND NOT EXISTS (SELECT 1 FROM disabled_services d WHERE d.binary = ${backupBinary} AND d.host = workers.host)
    GROUP BY queue, reaches ORDER BY queue`;
}

/**
 * The reasons why Redis cannot be used, as live workers report them, with how many of them do. Only what Redis itself responded is quoted:
 * other errors may name hosts.
 */
export async function redisRefusals(
  database: Database | Transaction,
  downMs: number,
): Promise<{ reason: string; workers: number; of: number }[]> {
  const rows = await database.$queryRaw<{ why: string | null; workers: number }[]>`
    SELECT unreachable ->> 'redis' AS why, count(*)::int AS workers FROM workers
    WHERE ${isLiveWorker("workers", downMs)} GROUP BY 1`;
  const of = rows.reduce((sum, { workers }) => sum + workers, 0);
  return rows.flatMap(({ why, workers }) => (why === null ? [] : [{ reason: publicReason(why), workers, of }]));
}

/** Redis starts a refusal with a code in capitals; our own message about it starts with its name. */
const publicReason = (why: string): string =>
  /^(?:[A-Z]{2,} |This Redis )/.test(why) ? why : "it cannot be reached, or does not answer";

/** Registrations of workers silent for this long are removed. */
const forgetWorkersAfter = "1 hour";

/** @returns false: there are few, and all are removed at once */
export async function forgetWorkers(database: Database): Promise<boolean> {
  await database.$executeRaw`DELETE FROM workers WHERE heartbeat_at < now() - ${forgetWorkersAfter}::interval`;
  return false;
}

/** Why live workers cannot reach `name`, as they report it; empty when none does. */
export async function whyUnreachable(
  database: Database | Transaction,
  names: readonly string[],
  downMs: number,
): Promise<string[]> {
  const rows = await database.$queryRaw<{ why: string }[]>`
    SELECT DISTINCT w.unreachable ->> n AS why FROM workers w, unnest(${[...names]}::text[]) n
    WHERE w.unreachable ? n AND ${isLiveWorker("w", downMs)}`;
  return rows.map((r) => r.why);
}
