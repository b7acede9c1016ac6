import { createHash } from "node:crypto";
import type { ZlibEncoder } from "../config.ts";
import type { Database, Transaction } from "../db/database.ts";
import { backupBinary } from "./services.ts";

export interface WorkerCard {
  id: string;
  /** As installationOf() says it. */
  installation?: string;
  host: string;
  pid: number;
  slots: number;
  /** `repository:NAME` to write, `repository-read:NAME`, `backend:NAME`, `zlib-encoder:isal`: what tasks may need from it. */
  reaches: readonly string[];
  /** The same names → why they cannot be reached from here. */
  unreachable: Readonly<Record<string, string>>;
  /** `backend:NAME` → bytes that are free there. */
  freeBytes?: Readonly<Record<string, number>>;
}

/** What a task needs that stores or removes something in a repository; who can write can read. */
export const needToWrite = (repository: string): string => `repository:${repository}`;

/** What a task needs that only reads a repository: backups can be restored from where they cannot be made. */
export const needToRead = (repository: string): string => `repository-read:${repository}`;

/** What compressing needs from a worker besides the places: an encoder that not every machine has. */
export function encoderNeeds(encoder: ZlibEncoder | undefined): string[] {
  return encoder === "isal" ? ["zlib-encoder:isal"] : [];
}

const digestOf = (value: unknown): string =>
  createHash("sha256").update(JSON.stringify(value)).digest("hex").slice(0, 12);

/**
 * What the names of this installation's queues begin with, so that several can share one Redis. A copy of a database, too, is another
 * installation: beside the id in its row, the database itself and its server count.
 */
export async function installationOf(database: Database): Promise<string> {
  const rows = await database.$queryRaw`
    SELECT i.id, (SELECT oid::text FROM pg_database WHERE datname = current_database()) AS database FROM installation i`;
  // Some servers keep this for their administrators.
  const server = await database.$queryRaw`SELECT system_identifier::text FROM pg_control_system()`.catch(() => null);
  return digestOf([rows, server]);
}

/** Workers of an installation that reach the same things share one queue. The name holds no `:`, which BullMQ forbids. */
export function queueFor(reaches: readonly string[], installation = ""): string {
  return `tephra-${installation}-${digestOf([...reaches].sort())}`;
}

/** Makes a worker known, or brings its card up to date. */
export async function publishWorker(database: Database, card: WorkerCard): Promise<void> {
  const data = {
    host: card.host,
    pid: card.pid,
    slots: card.slots,
    queue: queueFor(card.reaches, card.installation),
    reaches: [...card.reaches],
    unreachable: { ...card.unreachable },
    freeBytes: { ...card.freeBytes },
  };
  await database.$executeRaw`
    INSERT INTO workers (id, host, pid, slots, queue, reaches, unreachable, free_bytes, heartbeat_at)
    VALUES (${card.id}, ${data.host}, ${data.pid}, ${data.slots}, ${data.queue}, ${data.reaches}::text[],
      ${JSON.stringify(data.unreachable)}::jsonb, ${JSON.stringify(data.freeBytes)}::jsonb, now())
    ON CONFLICT (id) DO UPDATE SET slots = EXCLUDED.slots, queue = EXCLUDED.queue, reaches = EXCLUDED.reaches,
      unreachable = EXCLUDED.unreachable, free_bytes = EXCLUDED.free_bytes, heartbeat_at = now()`;
}

/** Bytes that are free on a volume backend, as the worker heard of last says; null when nobody says. */
export async function freeBytesOf(tx: Database | Transaction, backend: string): Promise<number | null> {
  const [row] = await tx.$queryRaw<{ free: number }[]>`
    SELECT (free_bytes ->> ${`backend:${backend}`})::float AS free FROM workers
    WHERE free_bytes ? ${`backend:${backend}`} ORDER BY heartbeat_at DESC LIMIT 1`;
  return row?.free ?? null;
}

/** A worker that stops says so: nothing more is dispatched for it. */
export async function withdrawWorker(database: Database, id: string): Promise<void> {
  await database.$executeRaw`DELETE FROM workers WHERE id = ${id}`;
}

export interface LiveQueue {
  queue: string;
  reaches: string[];
  slots: number;
  workers: number;
}

/** The queues that some live worker serves whose host is not disabled. `downMs`: how long a worker may be silent. */
export async function liveQueues(database: Database | Transaction, downMs: number): Promise<LiveQueue[]> {
  return database.$queryRaw<LiveQueue[]>`
    SELECT queue, reaches, sum(slots)::int AS slots, count(*)::int AS workers FROM workers
    WHERE heartbeat_at > now() - ${downMs} * interval '1 millisecond'
      AND NOT EXISTS (SELECT 1 FROM disabled_services d WHERE d.binary = ${backupBinary} AND d.host = workers.host)
    GROUP BY queue, reaches ORDER BY queue`;
}

/**
 * Why Redis cannot be used, as live workers say it, with how many of them say so. Only what a Redis has answered is told word for word:
 * what else goes wrong may name hosts.
 */
export async function redisRefusals(
  database: Database | Transaction,
  downMs: number,
): Promise<{ reason: string; workers: number; of: number }[]> {
  const rows = await database.$queryRaw<{ why: string | null; workers: number }[]>`
    SELECT unreachable ->> 'redis' AS why, count(*)::int AS workers FROM workers
    WHERE heartbeat_at > now() - ${downMs} * interval '1 millisecond' GROUP BY 1`;
  const of = rows.reduce((sum, { workers }) => sum + workers, 0);
  return rows.flatMap(({ why, workers }) => (why === null ? [] : [{ reason: publicReason(why), workers, of }]));
}

/** A Redis begins what it refuses with a code in capitals; our own sentence about it begins with its name. */
const publicReason = (why: string): string =>
  /^(?:[A-Z]{2,} |This Redis )/.test(why) ? why : "it cannot be reached, or does not answer";

/** Registrations of workers that were not heard of for so long are thrown away. */
const forgetWorkersAfter = "1 hour";

/** @returns false: there are few, and all go at once */
export async function forgetWorkers(database: Database): Promise<boolean> {
  await database.$executeRaw`DELETE FROM workers WHERE heartbeat_at < now() - ${forgetWorkersAfter}::interval`;
  return false;
}

/** Why live workers say that they cannot reach `name`; empty when none says anything. */
export async function whyUnreachable(
  database: Database | Transaction,
  names: readonly string[],
  downMs: number,
): Promise<string[]> {
  const rows = await database.$queryRaw<{ why: string }[]>`
    SELECT DISTINCT w.unreachable ->> n AS why FROM workers w, unnest(${[...names]}::text[]) n
    WHERE w.unreachable ? n AND w.heartbeat_at > now() - ${downMs} * interval '1 millisecond'`;
  return rows.map((r) => r.why);
}
