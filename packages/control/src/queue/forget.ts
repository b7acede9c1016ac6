import { type Database, inTransaction } from "../db/database.ts";
import { Prisma } from "../generated/client.ts";

/** Final states. Anything in another state is kept, including states that only a newer release knows. */
const ended = Prisma.sql`('succeeded', 'failed', 'cancelled')`;

/** Maximum number of operations in one batch, and of their tasks in total: some 30 ms. */
const operationsMax = 200;
const tasksMax = 2_000;

/**
 * Removes tasks of operations that ended this many days ago, one batch: their totals stay with the operation. An operation that has an
 * unfinished task, such as a clean-up, or is part of a live group operation, keeps all of its tasks.
 *
 * @returns whether there may be more
 */
export async function forgetTasks(database: Database, days: number): Promise<boolean> {
  return inTransaction(database, async (tx) => {
    const old = await tx.$queryRaw<{ id: string }[]>`
      SELECT o.id FROM operations o
      WHERE o.state IN ${ended} AND o.tasks_removed_at IS NULL AND o.finished_at < now() - ${days}::float8 * interval '1 day'
        AND NOT EXISTS (SELECT FROM tasks t WHERE t.operation_id = o.id AND t.state NOT IN ${ended})
        AND NOT EXISTS (SELECT FROM operations w WHERE w.id = o.parent_id AND w.state NOT IN ${ended})
      ORDER BY o.finished_at LIMIT ${operationsMax} FOR UPDATE OF o SKIP LOCKED`;
    const ids = old.map(({ id }) => id);
    const [gone] = await tx.$queryRaw<{ tasks: number }[]>`
      WITH gone AS (
        DELETE FROM tasks WHERE id IN (
          SELECT id FROM tasks WHERE operation_id = ANY(${ids}::uuid[]) AND state IN ${ended} LIMIT ${tasksMax})
        RETURNING *
      ), sums AS (
        SELECT operation_id, count(*)::int AS tasks, count(*) FILTER (WHERE state = 'succeeded')::int AS done, sum(bytes_done) AS bytes_done,
          sum(bytes_stored) AS bytes_stored, sum(bytes_twice) AS bytes_twice, max(claim) AS attempts
        FROM gone WHERE kind <> 'tidy' GROUP BY operation_id
      ), kept AS (
        UPDATE operations o SET past_tasks = o.past_tasks + s.tasks, past_tasks_done = o.past_tasks_done + s.done,
          past_bytes_done = o.past_bytes_done + s.bytes_done, past_bytes_stored = o.past_bytes_stored + s.bytes_stored,
          past_bytes_twice = o.past_bytes_twice + s.bytes_twice, past_attempts = GREATEST(o.past_attempts, s.attempts)
        FROM sums s WHERE o.id = s.operation_id
      )
      SELECT count(*)::int AS tasks FROM gone`;
    await tx.$executeRaw`
      UPDATE operations o SET tasks_removed_at = now()
      WHERE o.id = ANY(${ids}::uuid[]) AND NOT EXISTS (SELECT FROM tasks t WHERE t.operation_id = o.id)`;
    return ids.length === operationsMax || gone?.tasks === tasksMax;
  });
}

/**
 * Removes operations that ended this many days ago and have no task left, one batch. These stay:
 * - a part of a group operation that is live or younger, and a group operation that has a part left;
 * - what is referenced by a group, or by a place that was marked for removal;
 * - the last backup that succeeded, for `/metrics`;
 * - the last verification of a backup that still exists: it determines which one is next (`verifySample`);
 * - one that may have left a file which only its row proves to be ours, unless a pass of the reaper has looked for it: begun at `reapedAt`
 *   or later; null: none has.
 *
 * @returns whether there may be more
 */
export async function forgetOperations(
  database: Database,
  { days, reapedAt }: { days: number; reapedAt: Date | null },
): Promise<boolean> {
  const old = Prisma.sql`now() - ${days}::float8 * interval '1 day'`;
  const removed = await database.$executeRaw`
    WITH forgotten AS (
      SELECT o.id FROM operations o
      WHERE o.state IN ${ended} AND o.tasks_removed_at IS NOT NULL AND o.finished_at < ${old}
        AND NOT EXISTS (SELECT FROM tasks t WHERE t.operation_id = o.id)
        AND NOT EXISTS (SELECT FROM operations w WHERE w.id = o.parent_id AND NOT (w.state IN ${ended} AND w.finished_at < ${old}))
        AND NOT EXISTS (SELECT FROM operations p WHERE p.parent_id = o.id)
        AND NOT EXISTS (SELECT FROM groups g WHERE g.operation_id = o.id)
        AND NOT EXISTS (SELECT FROM condemned_places c WHERE c.operation_id = o.id)
        AND (o.kind <> 'backup-create' OR o.state <> 'succeeded' OR o.finished_at < (
          SELECT max(finished_at) FROM operations WHERE kind = 'backup-create' AND state = 'succeeded'))
        AND (o.kind <> 'backup-verify'
          OR EXISTS (SELECT FROM operations n WHERE n.backup_id = o.backup_id AND n.kind = o.kind AND (n.created_at, n.id) > (o.created_at, o.id))
          OR NOT EXISTS (SELECT FROM backups b WHERE b.id = o.backup_id AND b.deleted_at IS NULL))
        AND (o.finished_at < ${reapedAt}::timestamptz
          OR NOT (o.kind IN ('volume-delete', 'volume-export') OR o.snapshot_id IS NOT NULL
            OR (o.kind = 'backup-create' AND coalesce(o.plan->'source'->>'temporary', 'false') = 'true')))
      ORDER BY o.finished_at LIMIT ${operationsMax} FOR UPDATE OF o SKIP LOCKED)
    DELETE FROM operations WHERE id IN (SELECT id FROM forgotten)`;
  return removed === operationsMax;
}
