import { randomUUID } from "node:crypto";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isLiveOperation, isLiveState } from "../db/live.ts";
import { lockRow } from "../db/lock-row.ts";
import { ClaimLostError, NotFoundError, OperationEndedError } from "../errors.ts";
import { type Operation, Prisma } from "../generated/client.ts";
import type { Principal } from "../principal.ts";
import { type Priority, priorityRanks } from "../priorities.ts";
import { currentTrace } from "../telemetry/tracing.ts";
import { holdTidy } from "./blocked.ts";
import { documents, readForEnding } from "./documents.ts";
import {
  addTasks,
  finishTask,
  type Json,
  type NewTask,
  priorityRank,
  ringOnCommit,
  type TaskKind,
  type TaskOwner,
  type TaskResult,
  taskFinish,
  taskRanks,
} from "./tasks.ts";

export type OperationKind =
  | "backup-create"
  | "backup-restore"
  | "backup-delete"
  | "backup-import"
  | "backup-verify"
  | "backup-squash"
  | "repository-rescan"
  | "repository-reap"
  | "volume-create"
  | "volume-import"
  | "volume-adopt"
  | "volume-export"
  | "volume-extend"
  | "volume-delete"
  | "snapshot-create"
  | "snapshot-delete"
  | "group-snapshot"
  | "group-backup"
  | "group-restore"
  | "group-revert"
  | "group-plug"
  | "group-freeze"
  | "group-delete";

export type GroupOperationKind = Extract<OperationKind, `group-${string}`>;

/** Whether an operation of this kind is on a group as a whole, and has parts. */
export const isGroupOperation = (kind: string): kind is GroupOperationKind => kind.startsWith("group-");

const restoreKinds: readonly OperationKind[] = ["backup-restore", "group-restore"];

export const operationStates = ["queued", "running", "succeeded", "failed", "cancelled"] as const;
export type OperationState = (typeof operationStates)[number];

/** The row, with its string columns narrowed to their unions. */
export type OperationRow = Omit<Operation, "kind" | "state" | "priority"> & {
  kind: OperationKind;
  state: OperationState;
  priority: Priority;
};

export interface NewOperation {
  kind: OperationKind;
  /** The project whose rows it acts on, and which therefore sees it, even when an admin of another project asks. */
  projectId: string;
  backupId?: string | null;
  volumeId?: string | null;
  snapshotId?: string | null;
  groupId?: string | null;
  groupSnapshotId?: string | null;
  /** The group operation that this one is a part of: it is notified when this one ends. */
  parentId?: string | null;
  /** The policy by which it begins. */
  policyId?: string | null;
  /** Absent: that of what it is a part of, else of the policy; without either, high for a restore and else normal. */
  priority?: Priority;
  input?: object;
  bytesTotal?: bigint;
  /** Null: there is nothing to do until this many parts have ended. */
  task: { kind: TaskKind; needs: readonly string[] } | null;
  parts?: number;
}

/** SQL: the query `entered` of a WITH, which inserts an operation and its first task where `where` holds. */
export function operationEntry(
  principal: Pick<Principal, "userId" | "requestId">,
  operation: NewOperation,
  { id, where }: { id: string; where: Prisma.Sql },
): Prisma.Sql {
  const { task } = operation;
  const usual = restoreKinds.includes(operation.kind) ? "high" : "normal";
  const { parentId, policyId } = operation;
  const whose = parentId
    ? Prisma.sql`SELECT priority FROM operations WHERE id = ${parentId}::uuid`
    : policyId && Prisma.sql`SELECT priority FROM policies WHERE id = ${policyId}::uuid`;
  const priority =
    operation.priority === undefined && whose
      ? Prisma.sql`coalesce((${whose}), ${usual})`
      : Prisma.sql`${operation.priority ?? usual}`;
  return Prisma.sql`begun AS (
      INSERT INTO operations (id, kind, state, started_at, project_id, user_id, request_id, backup_id, volume_id, snapshot_id, group_id,
        group_snapshot_id, parent_id, policy_id, priority, input, bytes_total, remaining)
      SELECT ${id}::uuid, ${operation.kind}, ${task ? "queued" : "running"}, ${task ? null : new Date()}::timestamptz, ${operation.projectId},
        ${principal.userId}, ${principal.requestId}, ${operation.backupId ?? null}::uuid, ${operation.volumeId ?? null}::uuid,
        ${operation.snapshotId ?? null}::uuid, ${operation.groupId ?? null}::uuid, ${operation.groupSnapshotId ?? null}::uuid,
        ${operation.parentId ?? null}::uuid, ${operation.policyId ?? null}::uuid, ${priority}, ${JSON.stringify(operation.input ?? {})}::jsonb, ${operation.bytesTotal ?? 0n}::bigint,
        ${operation.parts ?? 1}::int
      WHERE ${where}
      RETURNING id, project_id, created_at, priority
    ), entered AS (
      INSERT INTO tasks (id, operation_id, kind, ordinal, rank, project_id, queued_at, needs, trace_parent)
      SELECT ${randomUUID()}::uuid, b.id, ${task?.kind ?? ""}, 0, ${task ? taskRanks[task.kind] : 0}::int + ${priorityRank(Prisma.sql`b.priority`)}, b.project_id, b.created_at,
        ${[...(task?.needs ?? [])]}::text[], ${currentTrace()} FROM begun b WHERE ${task !== null}
    )`;
}

/**
 * Inserts an operation and the first task that will act on it, in one statement: they commit together with the rows they are about. Rings
 * for a dispatcher after the commit.
 *
 * @returns the operation's id
 */
export async function startOperation(
  tx: Transaction,
  principal: Pick<Principal, "userId" | "requestId">,
  operation: NewOperation,
): Promise<string> {
  const id = randomUUID();
  await tx.$executeRaw`WITH ${operationEntry(principal, operation, { id, where: Prisma.sql`true` })} SELECT FROM begun`;
  if (operation.task) ringOnCommit(tx);
  return id;
}

/** Locks and reads an operation. In the lock order it comes after volume and backup, before task. */
export async function lockOperation(tx: Transaction, id: string): Promise<OperationRow> {
  const row = await lockRow(tx, "operation", id);
  if (!row) throw new NotFoundError("Operation", id);
  return row as OperationRow;
}

export const isLive = (operation: { state: OperationState }): boolean => isLiveState(operation.state);

/** Whether a restore of a group may have replaced volumes already: then there is no way back. */
export const isPublishing = ({ plan }: { plan: Json }): boolean => plan !== null;

/** Locks an operation that a task is about to report to. @throws OperationEndedError when it is no longer live */
export async function lockLiveOperation(tx: Transaction, id: string): Promise<OperationRow> {
  const operation = await lockOperation(tx, id);
  if (!isLive(operation)) throw new OperationEndedError(id);
  return operation;
}

/**
 * Fixes the plan, which determines bytes and names, unless there is one already: a second run then does the same as the first.
 *
 * @returns false when there was a plan already, or the operation has ended
 */
export async function fixPlan(tx: Transaction | Database, operationId: string, plan: object): Promise<boolean> {
  const fixed = await tx.$executeRaw`
    UPDATE operations SET plan = ${JSON.stringify(plan)}::jsonb, updated_at = now()
    WHERE id = ${operationId}::uuid AND plan IS NULL AND ${isLiveOperation("operations")}`;
  return fixed === 1;
}

/**
 * The plan that an earlier claim of the task fixed after this one had checked for it: it is the one to follow.
 *
 * @throws OperationEndedError when there is none
 */
export async function planInForce(tx: Transaction | Database, operationId: string): Promise<Json> {
  const row = await tx.operation.findUnique({ where: { id: operationId }, select: { plan: true, state: true } });
  if (row === null || row.plan === null || !isLive(row as Pick<OperationRow, "state">)) {
    throw new OperationEndedError(operationId);
  }
  return row.plan;
}

/** Starts the next phase: `tasks` are added, and all of them must finish before the phase after it. The operation is locked. */
export async function startPhase(tx: Transaction, operation: OperationRow, tasks: readonly NewTask[]): Promise<void> {
  await tx.operation.update({ where: { id: operation.id }, data: { remaining: tasks.length, updatedAt: new Date() } });
  await addTasks(tx, operation, tasks);
}

/** Counts one finished task of the phase. Whoever gets 0 adds the next phase. The operation is locked. */
export async function countDown(tx: Transaction, operationId: string): Promise<number> {
  const rows = await tx.$queryRaw<{ remaining: number }[]>`
    UPDATE operations SET remaining = remaining - 1, updated_at = now() WHERE id = ${operationId}::uuid RETURNING remaining`;
  return rows[0]?.remaining ?? -1;
}

/**
 * Completes an operation together with its last task. Everything else must have been changed before, in the lock order: a lost claim, or an
 * operation that ended in the meantime, rolls it back. With `tidy`, a separate clean-up task removes what the operation left behind.
 *
 * @throws ClaimLostError, OperationEndedError
 */
export async function completeOperation(
  tx: Transaction,
  operation: TaskOwner,
  result: TaskResult,
  end: { bytesStored?: number; tidy?: readonly string[] | null; result?: Json } = {},
): Promise<void> {
  const [ended] = await tx.$queryRaw<{ parentId: string | null; finished: boolean }[]>`
    WITH ended AS (
      UPDATE operations SET state = 'succeeded', remaining = 0, finished_at = now(), updated_at = now(),
        bytes_stored = ${end.bytesStored ?? 0}::bigint, result = ${end.result === undefined ? null : JSON.stringify(end.result)}::jsonb
      WHERE id = ${operation.id}::uuid AND ${isLiveOperation("operations")} RETURNING parent_id
    ), finished AS (
      ${taskFinish(result)} AND EXISTS (SELECT FROM ended) RETURNING id
    )
    SELECT parent_id AS "parentId", EXISTS (SELECT FROM finished) AS finished FROM ended`;
  if (!ended) throw new OperationEndedError(operation.id);
  if (!ended.finished) throw new ClaimLostError(result.taskId);
  if (ended.parentId) await partEnded(tx, ended.parentId, { well: true });
  if (end.tidy) await addTasks(tx, operation, [{ kind: "tidy", ordinal: 0, needs: end.tidy }]);
}

/**
 * Ends an operation as failed or cancelled. Tasks that nobody runs are cancelled; workers that run one learn of it at their next heartbeat,
 * and the clean-up task waits for them: nothing is removed while somebody may be writing.
 */
export async function endOperation(
  tx: Transaction,
  operation: OperationRow,
  end: { state: "failed" | "cancelled"; reason: string; tidy?: readonly string[] | null },
): Promise<void> {
  const now = new Date();
  await tx.operation.update({
    where: { id: operation.id },
    data: { state: end.state, failReason: end.reason, remaining: 0, finishedAt: now, updatedAt: now },
  });
  await tx.$executeRaw`
    UPDATE tasks SET state = 'cancelled', finished_at = now()
    WHERE operation_id = ${operation.id}::uuid AND state IN ('ready', 'dispatched', 'blocked')`;
  if (operation.parentId) await partEnded(tx, operation.parentId, { well: false });
  if (!end.tidy) return;
  await addTasks(tx, operation, [{ kind: "tidy", ordinal: 0, needs: end.tidy }]);
  await holdTidy(tx, operation.id);
}

/** Ends operations as failed without a clean-up. Parts and wholes are not told of each other: all of them are named. */
export async function endBare(tx: Transaction, ids: readonly string[], reason: string): Promise<void> {
  const now = new Date();
  const data = { state: "failed", failReason: reason, remaining: 0, finishedAt: now, updatedAt: now };
  await tx.operation.updateMany({ where: { id: { in: [...ids] } }, data });
  await tx.$executeRaw`
    UPDATE tasks SET state = 'cancelled', finished_at = now()
    WHERE operation_id = ANY(${[...ids]}::uuid[]) AND state IN ('ready', 'dispatched', 'blocked')`;
}

/**
 * A part of a group operation has ended. The last one triggers the group operation's conclusion, and so does the first failed part of a
 * restore, since then nothing will be published. A group operation that has already ended ignores it.
 */
async function partEnded(tx: Transaction, parentId: string, { well }: { well: boolean }): Promise<void> {
  const [parent] = await tx.$queryRaw<(TaskOwner & { kind: OperationKind; remaining: number; input: Json })[]>`
    UPDATE operations SET remaining = remaining - 1, updated_at = now()
    WHERE id = ${parentId}::uuid AND ${isLiveOperation("operations")}
    RETURNING id, project_id AS "projectId", created_at AS "createdAt", kind, remaining, input`;
  if (!parent || (parent.remaining > 0 && (well || parent.kind !== "group-restore"))) return;
  await addTasks(tx, parent, [concludeTask(parent)]);
}

/** The task that concludes a group operation. The capabilities that it needs were stored when the operation began. */
export const concludeTask = ({ input }: { input: Json }): NewTask => ({
  kind: "conclude-group",
  ordinal: 0,
  needs: readForEnding(documents.concluding, input)?.concludeNeeds ?? [],
});

/**
 * Notes which operation does again what a failed one did not. What else has to be locked is locked: operations come last.
 *
 * @returns false where it has not failed, or was retried already
 */
export async function markRetried(tx: Transaction, id: string, retriedAs: string): Promise<boolean> {
  const marked = await tx.$executeRaw`
    UPDATE operations SET retried_as = ${retriedAs}::uuid, updated_at = now()
    WHERE id = ${id}::uuid AND state = 'failed' AND retried_as IS NULL`;
  return marked === 1;
}

/**
 * Gives an operation and its parts another priority. What waits in the queue of the lane that it had is dispatched anew; the job there finds it taken,
 * or takes it. The operations are locked.
 */
export async function prioritize(tx: Transaction, id: string, priority: Priority): Promise<void> {
  await tx.$executeRaw`
    WITH changed AS (
      UPDATE operations SET priority = ${priority}, updated_at = now() WHERE id = ${id}::uuid OR parent_id = ${id}::uuid
    )
    UPDATE tasks t SET rank = rank - ${priorityRank(Prisma.sql`o.priority`)} + ${priorityRanks[priority]}::int,
      state = CASE state WHEN 'dispatched' THEN 'ready' ELSE state END
    FROM (SELECT id, priority FROM operations WHERE id = ${id}::uuid OR parent_id = ${id}::uuid) o
    WHERE t.operation_id = o.id AND state IN ('ready', 'blocked', 'dispatched', 'running')`;
  ringOnCommit(tx);
}

/** What the operation left behind is gone. The operation itself ended earlier. */
export async function finishTidy(database: Database, operationId: string, result: TaskResult): Promise<void> {
  await inTransaction(database, async (tx) => {
    await lockOperation(tx, operationId);
    await finishTask(tx, result);
  });
}

/** Whether an operation has ended well; false also where it is not there. */
export async function hasSucceeded(database: Database, operationId: string): Promise<boolean> {
  return (await database.operation.count({ where: { id: operationId, state: "succeeded" } })) > 0;
}

/** How an operation ended; null while it is live. @throws NotFoundError */
export async function readOperationEnd(
  database: Database,
  id: string,
): Promise<{ state: OperationState; failReason: string | null } | null> {
  const row = await database.operation.findUnique({ where: { id }, select: { state: true, failReason: true } });
  if (!row) throw new NotFoundError("Operation", id);
  const state = row.state as OperationState;
  return isLive({ state }) ? null : { state, failReason: row.failReason };
}
