import {
  type Alert as AlertRow,
  type Change as ChangeRow,
  mayLook,
  type OperationProgress,
  type Overview as OverviewRow,
  type Principal,
  seesAll,
} from "@tephra/control";
import type { Alert, Change, Operation, OperationResult, Overview } from "@tephra/wire";

// What is told in answers and in events.

const isoOrNull = (time: Date | null): string | null => time?.toISOString() ?? null;

/** Sizes are in bytes. Workers are named to those who see all projects. */
export function viewOperation(row: OperationProgress, principal: Principal): Operation {
  return {
    id: row.id,
    kind: row.kind,
    state: row.state,
    priority: row.priority,
    project_id: row.projectId,
    backup_id: row.backupId,
    volume_id: row.volumeId,
    volume_name: row.volumeName,
    user_id: row.userId,
    request_id: row.requestId,
    phase: row.phase,
    workers: seesAll(principal) ? row.workers : [],
    tasks_total: row.tasksTotal,
    tasks_done: row.tasksDone,
    bytes_total: Number(row.bytesTotal),
    bytes_done: row.bytesDone,
    bytes_stored: Number(row.bytesStored),
    bytes_copied_twice: row.bytesCopiedTwice,
    rate_bytes_per_second: row.rateBytesPerSecond,
    seconds_left: row.secondsLeft,
    queue_position: row.queuePosition,
    attempts: row.attempts,
    fail_reason: row.failReason,
    retried_as: row.retriedAs,
    ...(row.result !== null && { result: row.result as OperationResult }),
    created_at: row.createdAt.toISOString(),
    started_at: isoOrNull(row.startedAt),
    updated_at: isoOrNull(row.updatedAt),
    finished_at: isoOrNull(row.finishedAt),
  };
}

export const viewAlert = ({ since, snoozed, ...alert }: AlertRow): Alert => ({
  ...alert,
  since: isoOrNull(since),
  snoozed_until: isoOrNull(snoozed?.until ?? null),
  snoozed_by: snoozed?.userId ?? null,
  snoozed_reason: snoozed?.reason ?? null,
});

export function viewOverview(row: OverviewRow, principal: Principal): Overview {
  const { "at risk": atRisk, ...protection } = row.protection;
  const { ready, dispatched, running, oldestSeconds } = row.queue;
  return {
    as_of: row.asOf.toISOString(),
    alerts: row.alerts.map(viewAlert),
    protection: { ...protection, at_risk: atRisk },
    proof: row.proof,
    queue: { ready, dispatched, running, oldest_seconds: oldestSeconds },
    workers: row.workers,
    operations: { running: row.running.map((one) => viewOperation(one, principal)), failed_24h: row.failed },
    repositories: row.repositories.map(({ name, up, backups, bytes, storedBytes }) => {
      return { name, state: up ? "up" : "down", backups, bytes, stored_bytes: storedBytes };
    }),
    last_success_at: row.lastSuccessAt?.toISOString() ?? null,
  };
}

/** Told to those only who read the audit log: that somebody has signed in, or snoozed an alert. */
const audited: readonly string[] = ["session", "alert"];

export const mayBeTold = (principal: Principal, change: ChangeRow): boolean =>
  mayLook(principal, change) && (!audited.includes(change.resource) || seesAll(principal));

export const viewChange = (row: ChangeRow): Change => ({
  resource: row.resource,
  id: row.resourceId,
  project_id: row.projectId,
  from: row.fromStatus,
  to: row.toStatus,
  operation_id: row.operationId,
  at: row.at.toISOString(),
});
