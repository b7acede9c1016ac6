import type { Database, Transaction } from "../db/database.ts";
import { isEndedOperation, isLiveOperation } from "../db/live.ts";
import { Prisma } from "../generated/client.ts";

/*
 * A task that has to wait for others is `blocked`, for one of four reasons:
 *
 * - `tidy`: workers still run tasks of its own operation, which has ended, and may write;
 * - `tidy` of a squash: operations that were there before it may read what it replaced;
 * - a removal: workers still run tasks of operations that were cancelled for it, and may write;
 * - `seal`: ranges are copied again. Whoever finishes the last of them adds the task once more, which makes it ready (tasks.ts).
 *
 * The reconciler frees all but the last when the others have let go.
 */

/**
 * How long after a squash has begun to end what was accepted still counts as there before, in ms: it may have been accepted, and planned with
 * the old chain, while that transaction went on.
 */
const acceptedMs = 10_000;

/**
 * SQL: whether an operation or an image transfer that was there before the squash `o` ended may read the objects that it replaced; `t` is its
 * clean-up. A plan names the objects of its chain when it is made: what is accepted later has the new ones.
 */
const readReplaced = Prisma.sql`(o.kind = 'backup-squash' AND t.kind = 'tidy' AND t.input ? 'family' AND (
    EXISTS (SELECT FROM operations p WHERE p.id <> o.id AND ${isLiveOperation("p")}
      AND p.backup_id IN (SELECT member::uuid FROM jsonb_array_elements_text(t.input->'family') AS f(member))
      AND p.created_at <= o.finished_at + ${acceptedMs} * interval '1 millisecond')
    OR EXISTS (SELECT FROM image_transfers i WHERE i.ended_at IS NULL
      AND i.stored_backup_id IN (SELECT member::uuid FROM jsonb_array_elements_text(t.input->'family') AS f(member))
      AND i.created_at <= o.finished_at + ${acceptedMs} * interval '1 millisecond')))`;

/** The clean-up of a squash that has just ended waits until the reconciler has found that nobody reads what it replaced. */
export async function holdReplaced(tx: Transaction, operationId: string): Promise<void> {
  await tx.$executeRaw`UPDATE tasks SET state = 'blocked' WHERE operation_id = ${operationId}::uuid AND kind = 'tidy' AND state = 'ready'`;
}

/** The clean-up of an operation that has just ended waits while anybody runs a task of it. The operation is locked. */
export async function holdTidy(tx: Transaction, operationId: string): Promise<void> {
  await tx.$executeRaw`
    UPDATE tasks t SET state = 'blocked' WHERE t.operation_id = ${operationId}::uuid AND t.kind = 'tidy'
      AND EXISTS (SELECT FROM tasks r WHERE r.operation_id = t.operation_id AND r.state = 'running')`;
}

/**
 * Makes a removal wait for workers that are still running tasks of operations cancelled before it, and may write: the reconciler unblocks
 * it when they have let go. Called when the operation was started, by whoever has locked its subject.
 */
export async function waitForWorkers(tx: Transaction, operationId: string): Promise<void> {
  await tx.$executeRaw`
    UPDATE tasks t SET state = 'blocked' FROM operations o
    WHERE o.id = ${operationId}::uuid AND t.operation_id = o.id AND EXISTS (
      SELECT FROM operations p JOIN tasks r ON r.operation_id = p.id AND r.state = 'running' AND r.kind <> 'tidy'
      WHERE ${hinders("p", "o")})`;
}

/**
 * SQL: whether the ended operation `ended` worked on what `removal` removes, so that a worker that does not know of its end may write
 * there.
 */
const hinders = (ended: "p", removal: "o"): Prisma.Sql =>
  Prisma.sql`${isEndedOperation(ended)} AND ${Prisma.raw(`${ended}.id <> ${removal}.id AND ${ended}.kind <> 'backup-verify'
    AND CASE ${removal}.kind WHEN 'backup-delete' THEN ${ended}.backup_id = ${removal}.backup_id
      WHEN 'snapshot-delete' THEN ${ended}.snapshot_id = ${removal}.snapshot_id
      WHEN 'group-delete' THEN ${ended}.group_snapshot_id = ${removal}.group_snapshot_id
      WHEN 'volume-delete' THEN ${ended}.volume_id = ${removal}.volume_id ELSE false END`)}`;

/** Makes a seal that found ranges incomplete wait for them. @returns false when the claim was lost */
export async function holdSeal(tx: Transaction, held: { taskId: string; claim: number }): Promise<boolean> {
  const blocked = await tx.$executeRaw`
    UPDATE tasks SET state = 'blocked', lease_until = NULL, worker_id = NULL, attempts = 0
    WHERE id = ${held.taskId}::uuid AND claim = ${held.claim} AND state = 'running'`;
  return blocked === 1;
}

/** A task with nothing left to wait for goes on. @returns how many */
export async function freeBlocked(database: Database): Promise<number> {
  return database.$executeRaw`
    UPDATE tasks t SET state = 'ready', run_after = now() FROM operations o
    WHERE o.id = t.operation_id AND t.state = 'blocked' AND t.kind IN ('tidy', 'remove-backup', 'remove-volume', 'remove-snapshot',
        'conclude-group')
      AND NOT EXISTS (SELECT 1 FROM tasks r WHERE r.operation_id = t.operation_id AND r.state = 'running')
      AND NOT ${readReplaced}
      AND (t.kind = 'tidy' OR NOT EXISTS (SELECT 1 FROM operations p JOIN tasks r ON r.operation_id = p.id
        WHERE r.state = 'running' AND r.kind <> 'tidy' AND ${hinders("p", "o")}))`;
}
