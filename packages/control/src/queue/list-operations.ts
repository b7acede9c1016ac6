import type { Database } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { operationColumns } from "../db/lock-row.ts";
import { NotFoundError } from "../errors.ts";
import { type Operation, Prisma } from "../generated/client.ts";
import { mayLook, type Principal, seesAll } from "../principal.ts";
import type { OperationRow, OperationState } from "./operations.ts";
import { phaseOf, type TaskKind } from "./tasks.ts";

/** So many operations of a queue have their places counted, so that a list takes no longer in a long queue. */
export const positionMax = 1_000;

/** An operation's progress. Sizes in bytes; rate over the time since it started. */
export interface OperationProgress extends OperationRow {
  /** Of its volume; null where that is gone, another project's now, or has none. */
  volumeName: string | null;
  /** What its tasks that have not ended do; null where nothing runs. */
  phase: string | null;
  /** Ids of those that are at work on it. */
  workers: string[];
  tasksTotal: number;
  tasksDone: number;
  bytesDone: number;
  bytesCopiedTwice: number;
  attempts: number;
  rateBytesPerSecond: number | null;
  secondsLeft: number | null;
  /** 1 = next; `positionMax` + 1: more than that are ahead; null unless queued. */
  queuePosition: number | null;
}

interface Sums {
  id: string;
  volume_name: string | null;
  kind: TaskKind | null;
  workers: string[] | null;
  total: bigint;
  done: bigint;
  bytes_done: bigint;
  bytes_stored: bigint;
  bytes_twice: bigint;
  attempts: number;
  position: bigint | null;
}

/** Combines the existing tasks with the totals of those removed since the operation ended (forget.ts). */
async function withProgress(database: Database, rows: Operation[]): Promise<OperationProgress[]> {
  if (rows.length === 0) return [];
  const ids = rows.map((r) => r.id);
  const sums = await database.$queryRaw<Sums[]>`
    WITH mine AS (
      SELECT id FROM operations WHERE id = ANY(${ids}::uuid[]) AND state = 'queued'
    ), queue AS MATERIALIZED (
      SELECT id, position FROM (
        SELECT id, row_number() OVER (ORDER BY created_at, id) AS position
        FROM (SELECT id, created_at FROM operations WHERE state = 'queued' AND EXISTS (SELECT FROM mine)
          ORDER BY created_at, id LIMIT ${positionMax}) AS first
      ) AS placed WHERE id = ANY(${ids}::uuid[])
    ), sums AS (
      SELECT operation_id, count(*) AS total, count(*) FILTER (WHERE state = 'succeeded') AS done,
        coalesce(sum(bytes_done), 0)::bigint AS bytes_done, coalesce(sum(bytes_stored), 0)::bigint AS bytes_stored,
        coalesce(sum(bytes_twice), 0)::bigint AS bytes_twice, coalesce(max(claim), 0) AS attempts,
        max(kind) FILTER (WHERE state IN ('ready', 'dispatched', 'running')) AS kind,
        array_agg(DISTINCT worker_id) FILTER (WHERE state = 'running' AND worker_id IS NOT NULL) AS workers
      FROM tasks WHERE operation_id = ANY(${ids}::uuid[]) AND kind <> 'tidy' GROUP BY operation_id
    )
    SELECT o.id, v.name AS volume_name, s.kind, s.workers, coalesce(s.total, 0) AS total, coalesce(s.done, 0) AS done,
      coalesce(s.bytes_done, 0) AS bytes_done, coalesce(s.bytes_stored, 0) AS bytes_stored, coalesce(s.bytes_twice, 0) AS bytes_twice,
      coalesce(s.attempts, 0) AS attempts, CASE WHEN m.id IS NOT NULL THEN coalesce(q.position, ${positionMax + 1}) END AS position
    FROM operations o LEFT JOIN sums s ON s.operation_id = o.id LEFT JOIN mine m ON m.id = o.id
    LEFT JOIN queue q ON q.id = m.id
    LEFT JOIN volumes v ON v.id = o.volume_id AND v.project_id = o.project_id
    WHERE o.id = ANY(${ids}::uuid[])`;
  const byId = new Map(sums.map((s) => [s.id, s]));
  const now = Date.now();
  return rows.map((row) => {
    const sum = byId.get(row.id);
    const bytesDone = Number(row.pastBytesDone + (sum?.bytes_done ?? 0n));
    const seconds = row.startedAt ? ((row.finishedAt?.getTime() ?? now) - row.startedAt.getTime()) / 1000 : 0;
    const rate = seconds > 0 && bytesDone > 0 ? bytesDone / seconds : null;
    const left = Math.max(0, Number(row.bytesTotal) - bytesDone);
    return {
      ...(row as OperationRow),
      volumeName: sum?.volume_name ?? null,
      phase: row.state === "running" && sum?.kind != null ? phaseOf(sum.kind) : null,
      workers: sum?.workers ?? [],
      bytesStored: row.bytesStored > 0n ? row.bytesStored : row.pastBytesStored + (sum?.bytes_stored ?? 0n),
      tasksTotal: row.pastTasks + Number(sum?.total ?? 0n),
      tasksDone: row.pastTasksDone + Number(sum?.done ?? 0n),
      bytesDone,
      bytesCopiedTwice: Number(row.pastBytesTwice + (sum?.bytes_twice ?? 0n)),
      attempts: Math.max(row.pastAttempts, sum?.attempts ?? 0),
      rateBytesPerSecond: rate === null ? null : Math.round(rate),
      secondsLeft: row.state !== "running" || rate === null ? null : Math.ceil(left / rate),
      queuePosition: sum?.position == null ? null : Number(sum.position),
    };
  });
}

export interface OperationQuery {
  backupId?: string | undefined;
  volumeId?: string | undefined;
  groupId?: string | undefined;
  /** The operation that they are parts of. */
  parentId?: string | undefined;
  /** Of several any. */
  kinds?: readonly string[] | undefined;
  states?: readonly OperationState[] | undefined;
  projectId?: string | undefined;
  /** Where its backup is stored, or what is reaped or scanned. */
  repository?: string | undefined;
  /** A worker that is at work on it; workers are named to those only who see all projects, so that none matches for others. */
  workerId?: string | undefined;
  /** Only those that no live worker can go on with, or of which no byte has moved for a minute. */
  isStuck?: boolean | undefined;
  /** When it was asked for: from, inclusive, and to, exclusive. */
  from?: Date | undefined;
  to?: Date | undefined;
  /** The id of the request, or a client's own name for it, that asked for them. */
  requestId?: string | undefined;
  /** Id of the last one of the page before. */
  marker?: string | undefined;
  limit: number;
}

/** Seconds without a byte, after which tasks that move some at each heartbeat are held by something. */
export const quietSeconds = 60;
/** Tasks of these kinds do. */
export const movingKinds: readonly TaskKind[] = ["copy", "restore", "verify", "squash"];

const sql = (condition: boolean, text: () => Prisma.Sql): Prisma.Sql[] => (condition ? [text()] : []);

/** SQL: whether the operation `o` is one of those that are asked for. */
function asked(principal: Principal, query: OperationQuery): Prisma.Sql {
  const { kinds, states, repository, workerId } = query;
  const equal = (column: string, value: string | undefined, type: "uuid" | "text"): Prisma.Sql[] =>
    sql(value !== undefined, () => Prisma.sql`${Prisma.raw(column)} = ${value}::${Prisma.raw(type)}`);
  const conditions = [
    ...sql(!seesAll(principal), () => Prisma.sql`o.project_id = ${principal.projectId}`),
    ...equal("o.backup_id", query.backupId, "uuid"),
    ...equal("o.volume_id", query.volumeId, "uuid"),
    ...equal("o.group_id", query.groupId, "uuid"),
    ...equal("o.parent_id", query.parentId, "uuid"),
    ...equal("o.project_id", query.projectId, "text"),
    ...equal("o.request_id", query.requestId, "text"),
    ...sql(kinds !== undefined, () => Prisma.sql`o.kind = ANY(${[...(kinds ?? [])]}::text[])`),
    ...sql(states !== undefined, () => Prisma.sql`o.state = ANY(${[...(states ?? [])]}::text[])`),
    ...sql(query.from !== undefined, () => Prisma.sql`o.created_at >= ${query.from}`),
    ...sql(query.to !== undefined, () => Prisma.sql`o.created_at < ${query.to}`),
    ...sql(
      repository !== undefined,
      () => Prisma.sql`(o.input ->> 'repository' = ${repository}
        OR EXISTS (SELECT FROM backups b WHERE b.id = o.backup_id AND b.repository = ${repository}))`,
    ),
    ...sql(workerId !== undefined && !seesAll(principal), () => Prisma.sql`false`),
    ...sql(
      workerId !== undefined,
      () =>
        Prisma.sql`o.id IN (SELECT t.operation_id FROM tasks t WHERE t.state = 'running' AND t.worker_id = ${workerId})`,
    ),
    ...sql(
      query.isStuck === true,
      () => Prisma.sql`o.id IN (
        SELECT t.operation_id FROM tasks t WHERE t.state = 'ready' AND t.unplaced_at IS NOT NULL
        UNION ALL
        SELECT t.operation_id FROM tasks t WHERE t.state = 'running' GROUP BY t.operation_id
        HAVING bool_and(t.kind = ANY(${[...movingKinds]}::text[]) AND t.progressed_at < now() - ${quietSeconds} * interval '1 second'))`,
    ),
  ];
  return conditions.length === 0 ? Prisma.sql`true` : Prisma.join(conditions, " AND ");
}

/** Newest first; only the caller's project, unless one who sees all asks. @throws NotFoundError where the marker is unknown, or another project's */
export async function listOperations(
  database: Database,
  principal: Principal,
  query: OperationQuery,
): Promise<OperationProgress[]> {
  const { marker, limit } = query;
  let after = Prisma.sql`true`;
  if (marker !== undefined) {
    const last = await database.operation.findUnique({ where: { id: marker } });
    if (!last || !mayLook(principal, last)) throw new NotFoundError("Operation", marker);
    after = Prisma.sql`(o.created_at, o.id) < (${last.createdAt}::timestamptz, ${last.id}::uuid)`;
  }
  const rows = await database.$queryRaw<Operation[]>`
    SELECT ${operationColumns} FROM operations o WHERE ${asked(principal, query)} AND ${after}
    ORDER BY o.created_at DESC, o.id DESC LIMIT ${limit}`;
  return withProgress(database, rows);
}

/** @throws NotFoundError for an unknown id or another project's */
export async function getOperation(database: Database, principal: Principal, id: string): Promise<OperationProgress> {
  const row = isUuid(id) ? await database.operation.findUnique({ where: { id } }) : null;
  const [progress] = row && mayLook(principal, row) ? await withProgress(database, [row]) : [];
  if (!progress) throw new NotFoundError("Operation", id);
  return progress;
}
