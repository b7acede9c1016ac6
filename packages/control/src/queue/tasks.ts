import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import type { Actor } from "../db/actor.ts";
import { type Database, onCommit, type Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { isEndedOperation } from "../db/live.ts";
import { readRows } from "../db/read.ts";
import { ClaimLostError } from "../errors.ts";
import { Prisma } from "../generated/client.ts";
import { type Lane, type Priority, priorityRanks } from "../priorities.ts";
import { currentTrace } from "../telemetry/tracing.ts";
import { isNewer } from "./document-version.ts";
import { backupBinary } from "./services.ts";

/** Whether any worker has ever claimed a task of the operation: it may have done part of it. */
export async function wasClaimed(tx: Transaction, operationId: string): Promise<boolean> {
  return (await tx.task.count({ where: { operationId, claim: { gt: 0 } } })) > 0;
}

/**
 * Every kind of queue work, with its rank: tasks that finish work go before those that start it. A worker has exactly one handler for each.
 */
export const taskRanks = {
  tidy: 0,
  seal: 1,
  "seal-squash": 1,
  publish: 1,
  "conclude-group": 1,
  "conclude-verify": 1,
  "remove-backup": 2,
  "remove-volume": 2,
  "remove-snapshot": 2,
  // Who restores waits for it.
  restore: 2,
  "plan-restore": 2,
  copy: 3,
  verify: 3,
  squash: 3,
  "plan-backup": 4,
  "plan-verify": 4,
  "plan-squash": 4,
  "import-backup": 4,
  "rescan-repository": 4,
  "reap-repository": 4,
  "provision-volume": 4,
  "import-volume": 4,
  "adopt-volume": 4,
  "export-volume": 4,
  "clone-volume": 4,
  "extend-volume": 4,
  "take-snapshot": 4,
  "snapshot-group": 4,
} as const satisfies Record<string, number>;

export type TaskKind = keyof typeof taskRanks;

/** The part of an operation that tasks of a kind are: planning, moving bytes, what comes after. Of other kinds, the kind itself. */
export function phaseOf(kind: TaskKind): string {
  const [, phase = kind] = /^(plan|seal|conclude|remove)-/.exec(kind) ?? [];
  return phase;
}

/**
 * Kinds of which a single call may take long without visible progress, because it flushes, copies or removes a whole volume: multiples of
 * `tasks.quiet_ms`. All others show progress within that time.
 */
const quietFactors: Partial<Record<TaskKind, number>> = {
  restore: 2,
  publish: 5,
  "conclude-group": 5,
  "remove-volume": 5,
  "remove-snapshot": 5,
  "plan-restore": 5,
  "import-volume": 5,
  "adopt-volume": 5,
  "export-volume": 5,
  "clone-volume": 5,
  "extend-volume": 5,
  "take-snapshot": 5,
  "snapshot-group": 5,
};

/** How long a task of this kind may go without progress before it is abandoned, in ms: no byte moved, no call returned. */
export const quietMsOf = (kind: TaskKind, quietMs: number): number => quietMs * (quietFactors[kind] ?? 1);

export type Json = Prisma.JsonValue;

/** A task as its claimant holds it. `claim` must accompany every later write. */
export interface ClaimedTask {
  id: string;
  operationId: string;
  kind: TaskKind;
  ordinal: number;
  lane: Lane;
  claim: number;
  attempts: number;
  /** Claims that ended with a wait for another service, and for how long it has waited, in ms; 0 when it has not. */
  waits: number;
  waitedMs: number;
  range: { offset: number; length: number };
  input: Json;
  requestId: string;
  /** The user who requested the operation. */
  userId: string;
  /** The span that added it; null: none. */
  traceParent: string | null;
  /** As of the claim. `plan` is set once and never changes afterwards, except for what a phase adds. */
  operation: TaskOperation;
}

export interface TaskOperation extends TaskOwner {
  kind: string;
  priority: Priority;
  plan: Json;
  input: Json;
  backupId: string | null;
  volumeId: string | null;
  snapshotId: string | null;
  groupId: string | null;
  groupSnapshotId: string | null;
  /** The group operation that it is a part of. */
  parentId: string | null;
}

export interface NewTask {
  kind: TaskKind;
  ordinal?: number;
  needs: readonly string[];
  range?: { offset: number; length: number };
  input?: object;
}

/** The operation that a task belongs to. */
export interface TaskOwner {
  id: string;
  projectId: string;
  createdAt: Date;
}

/**
 * Inserts tasks in one statement, however many, and rings for a dispatcher after the commit. One that exists already (operation, kind,
 * ordinal) stays as it is, except a blocked one, which becomes ready again.
 */
export async function addTasks(tx: Transaction, operation: TaskOwner, tasks: readonly NewTask[]): Promise<void> {
  if (tasks.length === 0) return;
  const rows = tasks.map((t, i) => ({
    id: randomUUID(),
    kind: t.kind,
    ordinal: t.ordinal ?? i,
    rank: taskRanks[t.kind],
    needs: t.needs,
    range_offset: t.range?.offset ?? 0,
    range_length: t.range?.length ?? 0,
    input: t.input ?? {},
  }));
  await tx.$executeRaw`
    INSERT INTO tasks (id, operation_id, kind, ordinal, rank, project_id, queued_at, needs, range_offset, range_length, input, trace_parent)
    SELECT r.id, ${operation.id}::uuid, r.kind, r.ordinal, r.rank + ${rankOfOperation(operation.id)}, ${operation.projectId}, ${operation.createdAt},
           ARRAY(SELECT jsonb_array_elements_text(r.needs)), r.range_offset, r.range_length, r.input, ${currentTrace()}
    FROM jsonb_to_recordset(${JSON.stringify(rows)}::jsonb)
      AS r(id uuid, kind text, ordinal int, rank int, needs jsonb, range_offset bigint, range_length bigint, input jsonb)
    ON CONFLICT (operation_id, kind, ordinal) DO UPDATE SET state = 'ready', run_after = now() WHERE tasks.state = 'blocked'`;
  ringOnCommit(tx);
}

/** SQL: what the priority of an operation adds to the ranks of its tasks. */
const rankOfOperation = (id: string): Prisma.Sql =>
  Prisma.sql`coalesce((SELECT ${priorityRank(Prisma.sql`priority`)} FROM operations WHERE id = ${id}::uuid), 0)`;

/** SQL: the same of a column that has a priority. */
export const priorityRank = (column: Prisma.Sql): Prisma.Sql =>
  Prisma.sql`(${JSON.stringify(priorityRanks)}::jsonb->>${column})::int`;

/** SQL: whether only a newer release can run the task `t`. */
const isForNewer = Prisma.sql`(t.kind <> ALL(${Object.keys(taskRanks)}::text[]) OR ${isNewer("t.input")}
  OR EXISTS (SELECT FROM operations o WHERE o.id = t.operation_id AND (${isNewer("o.input")} OR ${isNewer("o.plan")})))`;

interface ClaimRow {
  id: string;
  operation_id: string;
  kind: TaskKind;
  ordinal: number;
  rank: number;
  claim: number;
  attempts: number;
  waits: number;
  waited_ms: number;
  range_offset: bigint;
  range_length: bigint;
  input: Json;
  trace_parent: string | null;
  request_id: string;
  user_id: string;
  project_id: string;
  created_at: Date;
  operation_kind: string;
  priority: Priority;
  operation_input: Json;
  plan: Json;
  backup_id: string | null;
  volume_id: string | null;
  snapshot_id: string | null;
  group_id: string | null;
  group_snapshot_id: string | null;
  parent_id: string | null;
}

/**
 * Claims a task: ready, dispatched, or running under an expired lease. One statement, by the database's clock.
 *
 * @returns null when somebody else has it, it is finished, it may not run yet, the worker's host is disabled, or a newer release must run it,
 * because of its kind or of the version of its plan or input: not an error
 */
export async function claimTask(
  database: Database,
  request: { taskId: string; workerId: string; leaseMs: number },
): Promise<ClaimedTask | null> {
  const actor: Actor = { kind: "worker", worker: request.workerId };
  const rows = await database.$queryRaw<ClaimRow[]>`
    WITH claimed AS (
      UPDATE tasks t SET state = 'running', claim = claim + 1, attempts = attempts + 1, worker_id = ${request.workerId},
        lease_until = now() + ${request.leaseMs} * interval '1 millisecond', started_at = coalesce(started_at, now()),
        bytes_twice = bytes_twice + bytes_done, bytes_done = 0, bytes_stored = 0, progressed_at = now()
      WHERE id = ${request.taskId}::uuid AND run_after <= now() AND NOT ${isForNewer}
        AND (state IN ('ready', 'dispatched') OR (state = 'running' AND lease_until < now()))
        AND NOT EXISTS (SELECT 1 FROM workers w JOIN disabled_services d ON d.host = w.host AND d.binary = ${backupBinary}
          WHERE w.id = ${request.workerId})
      RETURNING *
    ), begun AS (
      UPDATE operations SET state = 'running', started_at = now(), updated_at = now()
      WHERE id = (SELECT operation_id FROM claimed) AND state = 'queued'
        AND set_config('tephra.actor', ${JSON.stringify(actor)}, true) <> ''
    )
    SELECT c.id, c.operation_id, c.kind, c.ordinal, c.rank, c.claim, c.attempts, c.waits,
           coalesce(extract(epoch FROM now() - c.waiting_since) * 1000, 0)::float8 AS waited_ms, c.range_offset, c.range_length, c.input, c.trace_parent,
           o.request_id, o.user_id, o.project_id, o.created_at, o.kind AS operation_kind, o.priority, o.input AS operation_input, o.plan,
           o.backup_id, o.volume_id, o.snapshot_id, o.group_id, o.group_snapshot_id, o.parent_id
    FROM claimed c JOIN operations o ON o.id = c.operation_id`;
  const row = rows[0];
  if (!row) return null;
  return {
    id: row.id,
    operationId: row.operation_id,
    kind: row.kind,
    ordinal: row.ordinal,
    lane: row.rank < 0 ? "high" : "other",
    claim: row.claim,
    attempts: row.attempts,
    waits: row.waits,
    waitedMs: row.waited_ms,
    range: { offset: Number(row.range_offset), length: Number(row.range_length) },
    input: row.input,
    traceParent: row.trace_parent,
    requestId: row.request_id,
    userId: row.user_id,
    operation: {
      id: row.operation_id,
      projectId: row.project_id,
      createdAt: row.created_at,
      kind: row.operation_kind,
      priority: row.priority,
      plan: row.plan,
      input: row.operation_input,
      backupId: row.backup_id,
      volumeId: row.volume_id,
      snapshotId: row.snapshot_id,
      groupId: row.group_id,
      groupSnapshotId: row.group_snapshot_id,
      parentId: row.parent_id,
    },
  };
}

export interface HeldTask {
  taskId: string;
  claim: number;
  bytesDone: number;
  bytesStored: number;
}

interface RenewedTask {
  taskId: string;
  cancelled: boolean;
  priority: Priority;
}

/**
 * One statement renews all leases of a worker, stores its progress and returns requests made in the meantime. Progress beyond that of any
 * earlier claim resets the count of attempts.
 *
 * @returns the tasks still held; `cancelled` when the operation has ended or is to be cancelled, `priority`: what it has now. One that is missing was lost.
 */
export async function renewLeases(
  database: Database,
  request: { workerId: string; leaseMs: number; held: readonly HeldTask[] },
): Promise<RenewedTask[]> {
  const rows = JSON.stringify(
    request.held.map((h) => ({ id: h.taskId, claim: h.claim, done: h.bytesDone, stored: h.bytesStored })),
  );
  return database.$queryRaw<RenewedTask[]>`
    WITH alive AS (UPDATE workers SET heartbeat_at = now() WHERE id = ${request.workerId})
    UPDATE tasks t SET lease_until = now() + ${request.leaseMs} * interval '1 millisecond',
      bytes_done = h.done, bytes_stored = h.stored, progressed_at = CASE WHEN h.done > t.bytes_done THEN now() ELSE t.progressed_at END,
      attempts = CASE WHEN h.done > t.bytes_best THEN 1 ELSE t.attempts END, bytes_best = GREATEST(t.bytes_best, h.done)
    FROM jsonb_to_recordset(${rows}::jsonb) AS h(id uuid, claim int, done bigint, stored bigint), operations o
    WHERE t.id = h.id AND t.claim = h.claim AND t.state = 'running' AND o.id = t.operation_id
    RETURNING t.id AS "taskId", o.priority,
      (t.kind <> 'tidy' AND ${isEndedOperation("o")}) AS cancelled`;
}

export interface TaskResult {
  taskId: string;
  claim: number;
  bytesDone: number;
  bytesStored: number;
  /** Bytes that an earlier claim had already stored. */
  bytesAdopted?: number;
  report?: object;
}

/** SQL: the statement that finishes a task successfully, if this claim is still the current one. */
export const taskFinish = (result: TaskResult): Prisma.Sql => Prisma.sql`
    UPDATE tasks SET state = 'succeeded', finished_at = now(), lease_until = NULL, bytes_done = ${result.bytesDone}::bigint,
      bytes_stored = ${result.bytesStored}::bigint, bytes_twice = GREATEST(bytes_twice, ${result.bytesAdopted ?? 0}::bigint),
      report = ${result.report === undefined ? null : JSON.stringify(result.report)}::jsonb
    WHERE id = ${result.taskId}::uuid AND claim = ${result.claim} AND state = 'running'`;

/**
 * Finishes a task successfully. The operation row must be locked by this transaction already (lock order).
 *
 * @throws ClaimLostError when this claim is no longer the current one: the whole transaction is rolled back
 */
export async function finishTask(tx: Transaction, result: TaskResult): Promise<void> {
  const count = await tx.$executeRaw(taskFinish(result));
  if (count !== 1) throw new ClaimLostError(result.taskId);
}

/** Drops a task whose operation has ended. No effect if the claim was lost. */
export async function cancelTask(database: Database, held: { taskId: string; claim: number }): Promise<void> {
  await database.$executeRaw`
    UPDATE tasks SET state = 'cancelled', lease_until = NULL, finished_at = now()
    WHERE id = ${held.taskId}::uuid AND claim = ${held.claim} AND state = 'running'`;
}

/** Hands a task back without counting an attempt, as a stopping worker does. No effect if the claim was lost. */
export async function handBackTask(database: Database, held: { taskId: string; claim: number }): Promise<void> {
  await database.$executeRaw`
    UPDATE tasks SET state = 'ready', lease_until = NULL, worker_id = NULL, attempts = GREATEST(0, attempts - 1), run_after = now()
    WHERE id = ${held.taskId}::uuid AND claim = ${held.claim} AND state = 'running'`;
  await ringDispatchers(database);
}

/** A job names a task that is not in this database: it is another service's, or its operation was removed in the meantime. */
export class UnknownTaskError extends Error {
  readonly code = "unknown-task";
  constructor(taskId: string) {
    super(`No task ${taskId} is known here: the job is not this installation's, or comes too late`);
    this.name = "UnknownTaskError";
  }
}

/** A task that was not claimed, in any state; null if there is none of that id. `forNewer`: only a newer release can run it. */
export async function readUnclaimed(
  database: Database,
  taskId: string,
): Promise<{ operationId: string; kind: string; forNewer: boolean } | null> {
  if (!isUuid(taskId)) return null;
  const rows = await database.$queryRaw<{ operationId: string; kind: string; forNewer: boolean }[]>`
    SELECT t.operation_id AS "operationId", t.kind, ${isForNewer} AS "forNewer" FROM tasks t WHERE t.id = ${taskId}::uuid`;
  return rows[0] ?? null;
}

/** A stopping worker has received a job: its task becomes ready to be dispatched again, unless somebody has claimed it. */
export async function undispatchTask(database: Database, taskId: string): Promise<void> {
  await database.$executeRaw`UPDATE tasks SET state = 'ready' WHERE id = ${taskId}::uuid AND state = 'dispatched'`;
  await ringDispatchers(database);
}

/** Nobody claims the tasks of an operation for so long; 0: from now on they may. Rings for a dispatcher after the commit. */
export async function delayTasks(tx: Transaction, operationId: string, delayMs: number): Promise<void> {
  await tx.$executeRaw`
    UPDATE tasks SET run_after = now() + ${Math.round(delayMs)} * interval '1 millisecond'
    WHERE operation_id = ${operationId}::uuid AND state = 'ready'`;
  ringOnCommit(tx);
}

/** A task waits for another service and gives its slot back: no attempt counts, and no claim. No effect if the claim was lost. */
export async function waitTask(
  database: Database,
  held: { taskId: string; claim: number },
  wait: { delayMs: number; reason: string },
): Promise<void> {
  await database.$executeRaw`
    UPDATE tasks SET state = 'ready', lease_until = NULL, worker_id = NULL, fail_reason = ${wait.reason},
      attempts = GREATEST(0, attempts - 1), waits = waits + 1, waiting_since = coalesce(waiting_since, now()),
      run_after = now() + ${Math.round(wait.delayMs)} * interval '1 millisecond'
    WHERE id = ${held.taskId}::uuid AND claim = ${held.claim} AND state = 'running'`;
}

/** Lets a task run again after `delayMs`. The attempt counts unless it is `free`. No effect if the claim was lost. */
export async function retryTaskLater(
  database: Database,
  held: { taskId: string; claim: number },
  retry: { delayMs: number; reason: string; free?: boolean },
): Promise<void> {
  await database.$executeRaw`
    UPDATE tasks SET state = 'ready', lease_until = NULL, worker_id = NULL, fail_reason = ${retry.reason},
      attempts = GREATEST(0, attempts - ${retry.free === true ? 1 : 0}::int),
      run_after = now() + ${Math.round(retry.delayMs)} * interval '1 millisecond'
    WHERE id = ${held.taskId}::uuid AND claim = ${held.claim} AND state = 'running'`;
}

/** A task has failed for good, and its operation with it. @throws ClaimLostError */
export async function failTask(
  tx: Transaction,
  held: { taskId: string; claim: number },
  reason: string,
): Promise<void> {
  const count = await tx.$executeRaw`
    UPDATE tasks SET state = 'failed', fail_reason = ${reason}, finished_at = now(), lease_until = NULL
    WHERE id = ${held.taskId}::uuid AND claim = ${held.claim} AND state = 'running'`;
  if (count !== 1) throw new ClaimLostError(held.taskId);
}

/** A task that nobody has claimed fails for good. */
export async function giveUpTask(database: Database, taskId: string, reason: string): Promise<void> {
  await database.$executeRaw`
    UPDATE tasks SET state = 'failed', fail_reason = ${reason}, finished_at = now() WHERE id = ${taskId}::uuid AND state = 'ready'`;
}

/** Ranges of a backup, or of a squash, whose objects are gone are copied again. The operation is locked. */
export async function reopenCopies(tx: Transaction, operationId: string, ordinals: readonly number[]): Promise<void> {
  await tx.$executeRaw`
    UPDATE tasks SET state = 'ready', run_after = now(), attempts = 0, report = NULL, bytes_twice = bytes_twice + bytes_done, bytes_done = 0
    WHERE operation_id = ${operationId}::uuid AND kind IN ('copy', 'squash') AND ordinal = ANY(${[...ordinals]}::int[])`;
}

/**
 * A task whose lease has expired, or which was dispatched long ago and never claimed, becomes ready again: judged by its own
 * timestamps, never by asking Redis. After an outage of Postgres such expiries cost no attempt.
 */
export async function releaseDead(database: Database, config: Config, afterOutage: boolean): Promise<number> {
  return database.$executeRaw`
    UPDATE tasks t SET state = CASE WHEN t.kind <> 'tidy' AND ${isEndedOperation("o")} THEN 'cancelled' ELSE 'ready' END,
      lease_until = NULL, worker_id = NULL, run_after = now(),
      attempts = CASE WHEN ${afterOutage} THEN GREATEST(0, t.attempts - 1) ELSE t.attempts END
    FROM operations o
    WHERE o.id = t.operation_id AND ((t.state = 'running' AND t.lease_until < now())
      OR (t.state = 'dispatched' AND t.dispatched_at < now() - ${config.tasks.dispatch_timeout_ms} * interval '1 millisecond'))`;
}

export const tasksReadyChannel = "tephra_tasks_ready";

/** Has a dispatcher wake up once the transaction is committed: it makes tasks ready. */
export const ringOnCommit = (tx: Transaction): void => onCommit(tx, ring);

const ring = (database: Database): void => void ringDispatchers(database);

/** Databases through which a doorbell is being rung; true: it is to be rung once more. */
const ringing = new Map<Database, boolean>();

/**
 * Wakes the dispatcher: tasks have become ready. Never inside a transaction, since a pending NOTIFY holds a lock of the whole server until
 * its commit is flushed; a ring that is lost costs a second. Calls made while one is under way share the next.
 *
 * @returns when it was rung, whether or not that worked
 */
export async function ringDispatchers(database: Database): Promise<void> {
  if (ringing.has(database)) return void ringing.set(database, true);
  try {
    do {
      ringing.set(database, false);
      const ring = Prisma.sql`
        SELECT set_config('synchronous_commit', 'off', true), pg_notify(${tasksReadyChannel}, '')`;
      await readRows(database, ring).catch(() => {});
    } while (ringing.get(database) === true);
  } finally {
    ringing.delete(database);
  }
}
