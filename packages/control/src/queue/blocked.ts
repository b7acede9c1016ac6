import type { Database, Transaction } from "../db/database.ts";
import { isEndedOperation } from "../db/live.ts";
import { Prisma } from "../generated/client.ts";

/*
 * A task that has to wait for others is `blocked`, for one of three reasons:
 *
 * - `tidy`: workers still run tasks of its own operation, which has ended, and may write;
 * - a removal: workers still run tasks of operations that were cancelled for it, and may write;
 * - `seal`: ranges are copied again. Whoever finishes the last of them adds the task once more, which makes it ready (tasks.ts).
 *
 * The reconciler frees the first two when the workers have let go.
 */

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
      AND (t.kind = 'tidy' OR NOT EXISTS (SELECT 1 FROM operations p JOIN tasks r ON r.operation_id = p.id
        WHERE r.state = 'running' AND r.kind <> 'tidy' AND ${hinders("p", "o")}))`;
}
