import { ConfigError, IdTakenError, InvalidError, NotFoundError, QuotaExceededError } from "@tephra/control";
import { actAs, atPoint, traced } from "@tephra/control/process";
import {
  type ClaimedTask,
  ClaimLostError,
  cancelTask,
  checkDocuments,
  claimTask,
  events,
  type Failure,
  failOperation,
  handBackTask,
  isDatabaseBusy,
  MalformedDocumentError,
  NewerDocumentError,
  OperationEndedError,
  retryTaskLater,
  type TaskKind,
  waitTask,
} from "@tephra/control/work";
import { DamagedObjectError, NotReadyYetError } from "@tephra/engine";
import { paceOf } from "./bandwidth.ts";
import type { Handler, WorkerContext } from "./context.ts";
import type { GiveWay } from "./give-way.ts";
import { copyTask } from "./handlers/copy.ts";
import { concludeGroupTask, snapshotGroupTask } from "./handlers/groups.ts";
import { importBackupTask } from "./handlers/import-backup.ts";
import { planBackupTask } from "./handlers/plan-backup.ts";
import { planRestoreTask } from "./handlers/plan-restore.ts";
import { publishTask } from "./handlers/publish.ts";
import { reapRepositoryTask } from "./handlers/reap-repository.ts";
import { removeBackupTask } from "./handlers/remove-backup.ts";
import { rescanRepositoryTask } from "./handlers/rescan-repository.ts";
import { restoreTask } from "./handlers/restore.ts";
import { sealTask } from "./handlers/seal.ts";
import { removeSnapshotTask, takeSnapshotTask } from "./handlers/snapshots.ts";
import { planSquashTask, sealSquashTask, squashTask } from "./handlers/squash.ts";
import { tidyTask } from "./handlers/tidy.ts";
import { concludeVerifyTask, planVerifyTask, verifyTask } from "./handlers/verify.ts";
import {
  adoptVolumeTask,
  cloneVolumeTask,
  exportVolumeTask,
  extendVolumeTask,
  importVolumeTask,
  provisionVolumeTask,
  removeVolumeTask,
} from "./handlers/volumes.ts";
import { CancelledError, DrainedError, type HeldLease, HungError, LeaseLostError, type Leases } from "./leases.ts";
import { PlaceHangsError } from "./sites.ts";
import { watchSites } from "./watched-sites.ts";

/** Task kind → its handler. A kind without a handler does not compile. */
const handlers: Readonly<Record<TaskKind, Handler>> = {
  "plan-backup": planBackupTask,
  copy: copyTask,
  seal: sealTask,
  tidy: tidyTask,
  "plan-restore": planRestoreTask,
  restore: restoreTask,
  publish: publishTask,
  "remove-backup": removeBackupTask,
  "plan-verify": planVerifyTask,
  verify: verifyTask,
  "conclude-verify": concludeVerifyTask,
  "plan-squash": planSquashTask,
  squash: squashTask,
  "seal-squash": sealSquashTask,
  "import-backup": importBackupTask,
  "rescan-repository": rescanRepositoryTask,
  "reap-repository": reapRepositoryTask,
  "provision-volume": provisionVolumeTask,
  "import-volume": importVolumeTask,
  "adopt-volume": adoptVolumeTask,
  "export-volume": exportVolumeTask,
  "clone-volume": cloneVolumeTask,
  "extend-volume": extendVolumeTask,
  "remove-volume": removeVolumeTask,
  "take-snapshot": takeSnapshotTask,
  "remove-snapshot": removeSnapshotTask,
  "snapshot-group": snapshotGroupTask,
  "conclude-group": concludeGroupTask,
};

/** What happens next, according to an error. */
export type Verdict =
  /** Somebody else's task now, or nobody's: the database is not told. */
  | { next: "drop" }
  /** The operation ended: the task ends with it. */
  | { next: "cancel" }
  /** The worker is stopping, or cannot run the task now for reasons of its own: it is handed back at no cost. */
  | { next: "hand-back" }
  | { next: "retry"; reason: string }
  /** Not the task's fault, as while the database is unavailable: tried again, and the attempt does not count. */
  | { next: "wait"; reason: string }
  /** Another service is at work, or does not answer: the slot is given back, and neither the attempt nor the claim counts. */
  | { next: "snooze"; reason: string; delayMs: number }
  | { next: "fail"; failure: Failure };

const permanent = [ConfigError, IdTakenError, InvalidError, MalformedDocumentError, NotFoundError, QuotaExceededError];

const spanOf = (ms: number): string =>
  ms < 120_000 ? `${Math.round(ms / 1000)} seconds` : `${Math.round(ms / 60_000)} minutes`;

/** The only mapping from errors to retries. What is not known to be permanent is retried, a bounded number of times. */
export function verdictOf(
  error: unknown,
  task: Pick<ClaimedTask, "attempts" | "waitedMs">,
  attemptsMax: number,
): Verdict {
  if (error instanceof ClaimLostError || error instanceof LeaseLostError) return { next: "drop" };
  if (error instanceof CancelledError || error instanceof OperationEndedError) return { next: "cancel" };
  if (error instanceof DrainedError || error instanceof PlaceHangsError) return { next: "hand-back" };
  if (error instanceof HungError && error.places.length === 0) return { next: "hand-back" };
  const reason = error instanceof Error ? error.message : String(error);
  if (isDatabaseBusy(error) || error instanceof NewerDocumentError) return { next: "wait", reason };
  if (error instanceof NotReadyYetError) {
    if (task.waitedMs < error.giveUpAfterMs) return { next: "snooze", reason, delayMs: error.retryAfterMs };
    return { next: "fail", failure: { reason: `Gave up after ${spanOf(task.waitedMs)}. ${reason}` } };
  }
  if (error instanceof DamagedObjectError) {
    const { backupId, object, reason: what } = error;
    return { next: "fail", failure: { reason, damage: { backupId, object, reason: what } } };
  }
  const retryable = (error as { retryable?: unknown }).retryable;
  if (retryable === false || permanent.some((kind) => error instanceof kind))
    return { next: "fail", failure: { reason } };
  return task.attempts < attemptsMax ? { next: "retry", reason } : { next: "fail", failure: { reason } };
}

/**
 * Attempts are reset or not counted: after progress, when a worker stops, after an outage of the database. Claims always count, unless the task
 * waited for another service.
 *
 * @throws InvalidError
 */
export function assertClaimable(
  { claim, waits, kind }: Pick<ClaimedTask, "claim" | "waits" | "kind">,
  claimsMax: number,
): void {
  if (claim - waits <= claimsMax) return;
  throw new InvalidError("request", `Gave up after ${claimsMax} claims of task ${kind} that came to no end.`);
}

/** Doubles with every attempt; a quarter of jitter keeps many tasks from coming back at once. */
const backoffMs = (baseMs: number, attempts: number): number =>
  baseMs * 2 ** Math.max(0, attempts - 1) * (0.75 + Math.random() / 2);

async function obey(verdict: Verdict, task: ClaimedTask, context: WorkerContext): Promise<void> {
  const { database, config, log } = context;
  const held = { taskId: task.id, claim: task.claim };
  switch (verdict.next) {
    case "drop":
      return;
    case "cancel":
      return cancelTask(database, held);
    case "hand-back":
      return handBackTask(database, held);
    case "snooze":
      return waitTask(database, held, verdict);
    case "wait":
    case "retry": {
      const retry = { delayMs: backoffMs(config.tasks.backoff_ms, task.attempts), reason: verdict.reason };
      events.taskRetried(log, task, retry);
      return retryTaskLater(database, held, { ...retry, free: verdict.next === "wait" });
    }
    case "fail": {
      const failed = await failOperation(database, task.operationId, { ...verdict.failure, held });
      if (failed)
        events.operationFailed(log, {
          id: failed.id,
          kind: failed.kind,
          reason: verdict.failure.reason,
          requestId: task.requestId,
        });
    }
  }
}

/** The reason of an abort takes precedence over any error that the abort caused further down. */
function causeOf(error: unknown, signal: AbortSignal): unknown {
  return signal.aborted && signal.reason instanceof Error ? signal.reason : error;
}

/**
 * Claims one task and runs it. Never throws for the task's own errors: the verdict is in the database, and if the database cannot be told,
 * the lease expires and the task is claimed again.
 *
 * @returns false when there was nothing to claim
 */
export async function runTask(taskId: string, context: WorkerContext, leases: Leases): Promise<boolean> {
  const { database, config, workerId } = context;
  const askedAt = process.hrtime.bigint();
  const task = await claimTask(database, { taskId, workerId, leaseMs: config.worker.lease_ms });
  if (!task) return false;
  const actor = { worker: workerId, user: task.userId, request: task.requestId, operation: task.operationId };
  const span = {
    name: `task ${task.kind}`,
    parent: task.traceParent,
    attributes: { "tephra.task_id": task.id, "tephra.operation_id": task.operationId, "tephra.claim": task.claim },
  };
  await actAs({ kind: "worker", ...actor }, () => traced(span, () => doTask(task, askedAt, context, leases)));
  return true;
}

/** What a task does before it begins a window: those of high priority count it, all others give way to them. */
const admission =
  (way: GiveWay, { lane }: ClaimedTask, { run: { signal }, watch }: HeldLease) =>
  (bytes: number): Promise<void> | null => {
    if (lane !== "high") return way.pass(bytes, { signal, onWait: watch.moved });
    way.begun(bytes);
    return null;
  };

async function doTask(task: ClaimedTask, askedAt: bigint, context: WorkerContext, leases: Leases): Promise<void> {
  const { config, log } = context;
  events.taskClaimed(log, task);
  atPoint(`${task.kind}.claimed`);
  await using lease = leases.hold(task, askedAt);
  using stack = new DisposableStack();
  if (task.lane === "high") stack.defer(context.giveWay.enter());
  const fence = (): void => {
    atPoint(task.kind);
    lease.run.fence();
  };
  let work: Promise<void> = Promise.resolve();
  try {
    assertClaimable(task, config.tasks.claims_max);
    checkDocuments(task);
    const reporting = (): void => atPoint(`${task.kind}.reporting`);
    const pace = paceOf(context.bandwidth, task, { signal: lease.run.signal, onWait: lease.watch.moved });
    const sites = watchSites(context.sites, lease.watch, pace);
    const admit = admission(context.giveWay, task, lease);
    const run = { ...lease.run, fence, pace: pace.volume, admit };
    work = handlers[task.kind]({ ...task, reporting }, { ...context, sites }, run);
    // An abandoned task goes on to another worker, wherever its handler is stuck.
    await Promise.race([work, lease.hung]);
    atPoint(`${task.kind}.done`);
    events.taskFinished(log, task, Number((process.hrtime.bigint() - askedAt) / 1_000_000n));
  } catch (error) {
    const cause = causeOf(error, lease.run.signal);
    if (error instanceof HungError) await context.onHung(error, work);
    const verdict = verdictOf(cause, task, config.tasks.attempts_max);
    events.taskDropped(log, task, `${verdict.next}: ${(cause as Error).message}`);
    await obey(verdict, task, context).catch((fault: unknown) =>
      log.warn({ err: fault, task: task.id }, "verdict could not be stored"),
    );
  }
}
