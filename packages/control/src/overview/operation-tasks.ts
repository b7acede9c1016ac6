import { type Database, Prisma } from "../db/database.ts";
import { type Principal, seesAll } from "../principal.ts";
import type { OperationProgress } from "../queue/list-operations.ts";
import { phaseOf, type TaskKind } from "../queue/tasks.ts";

export interface Phase {
  name: string;
  /** Null: it waits. */
  startedAt: Date | null;
  /** Null: something of it has not ended. */
  finishedAt: Date | null;
}

export interface TaskRow {
  kind: TaskKind;
  ordinal: number;
  state: string;
  offset: number;
  length: number;
  workerId: string | null;
  /** How often a worker has begun with it. */
  claim: number;
  bytesDone: number;
  bytesStored: number;
  startedAt: Date | null;
  finishedAt: Date | null;
  /** Bytes a second since the last try began; null where that is not known. */
  rate: number | null;
  /** What the last try has come to. */
  failReason: string | null;
}

const taskRow = Prisma.sql`kind, ordinal, state, range_offset::float8 AS "offset", range_length::float8 AS length, worker_id AS "workerId", claim,
    bytes_done::float8 AS "bytesDone", bytes_stored::float8 AS "bytesStored", started_at AS "startedAt", finished_at AS "finishedAt",
    CASE WHEN claim = 1 AND bytes_done > 0 THEN bytes_done / greatest(0.001, extract(epoch FROM coalesce(finished_at, now()) - started_at))::float8 END AS rate,
    fail_reason AS "failReason"`;

const triesMax = 100;
const tasksMax = 500;

/**
 * The parts of an operation in their order; what was begun more than once or has failed, at most a hundred of those; and, where they are asked
 * for, its first 500 tasks. All are empty once the tasks of an operation that has ended are forgotten. Workers are named to those who see all projects.
 */
export async function readOperationTasks(
  database: Database,
  principal: Principal,
  { id }: OperationProgress,
  { withTasks }: { withTasks: boolean },
): Promise<{ phases: Phase[]; tries: TaskRow[]; tasks: TaskRow[] | null }> {
  const read = (which: Prisma.Sql, limit: number): Promise<TaskRow[]> => database.$queryRaw<TaskRow[]>`
    SELECT ${taskRow} FROM tasks WHERE operation_id = ${id}::uuid AND ${which}
    ORDER BY rank DESC, kind, ordinal LIMIT ${limit}`;
  const [kinds, tries, tasks] = await Promise.all([
    database.$queryRaw<{ kind: TaskKind; startedAt: Date | null; finishedAt: Date | null }[]>`
      SELECT kind, min(started_at) AS "startedAt", CASE WHEN count(finished_at) = count(*) THEN max(finished_at) END AS "finishedAt"
      FROM tasks WHERE operation_id = ${id}::uuid GROUP BY kind ORDER BY min(started_at) NULLS LAST, max(rank) DESC, kind`,
    read(Prisma.sql`(claim > 1 OR state = 'failed')`, triesMax),
    withTasks ? read(Prisma.sql`true`, tasksMax) : null,
  ]);
  const phases = kinds.map(({ kind, ...times }) => ({ name: phaseOf(kind), ...times }));
  const named = (rows: TaskRow[]): TaskRow[] =>
    seesAll(principal) ? rows : rows.map((row) => ({ ...row, workerId: null }));
  return { phases, tries: named(tries), tasks: tasks && named(tasks) };
}
