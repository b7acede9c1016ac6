import { failBackupCreate } from "../backups/create-work.ts";
import { failBackupDelete } from "../backups/delete.ts";
import { failBackupImport } from "../backups/import.ts";
import { failRestore } from "../backups/restore-work.ts";
import { failVerify } from "../backups/verify.ts";
import { sayWhy } from "../db/actor.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { addMessage, type MessageAction, type MessageDetail } from "../events/messages.ts";
import { failGroupOperation, isGroupOperation } from "../groups/operations.ts";
import { lockParts } from "../groups/parts.ts";
import { endOperation, isLive, lockOperation, type OperationRow } from "../queue/operations.ts";
import { failTask } from "../queue/tasks.ts";
import { failReap } from "../repositories/reap.ts";
import { failRescan } from "../repositories/rescan.ts";
import { lockBackup } from "../rows/backups.ts";
import type { Damage } from "../rows/chains.ts";
import { lockGroupOf, settleGroup } from "../rows/groups.ts";
import { move, type Step } from "../rows/move.ts";
import { lockQuota } from "../rows/quotas.ts";
import { lockVolume } from "../rows/volumes.ts";
import { type StatusOf, unreachable } from "../states.ts";
import { releaseSnapshotsOf } from "../volumes/delete.ts";
import { releaseExtend } from "../volumes/extend.ts";

export interface Failure {
  reason: string;
  damage?: Damage;
  /** No worker was found to run it. */
  unplaced?: boolean;
  /** The task that failed; without one, the operation itself is given up (no worker, too many lost claims). */
  held?: { taskId: string; claim: number };
}

/**
 * Ends an operation as failed or cancelled: its rows get the statuses that its kind prescribes, its tasks stop, and what it left behind is
 * cleaned up. An operation that has ended already is left alone.
 *
 * @throws ClaimLostError when the failing task is no longer held: somebody else is running it, so nothing has failed
 */
export async function failOperation(
  database: Database,
  operationId: string,
  failure: Failure,
): Promise<OperationRow | null> {
  return inTransaction(database, async (tx) => {
    const seen = await tx.operation.findUniqueOrThrow({ where: { id: operationId } });
    if (seen.kind === "volume-extend") await lockQuota(tx, seen.projectId);
    if (seen.kind === "volume-create" && seen.volumeId) await lockGroupOf(tx, seen.volumeId);
    if (seen.volumeId) await lockVolume(tx, seen.volumeId);
    if (seen.backupId) await lockBackup(tx, seen.backupId);
    const parts = isGroupOperation(seen.kind) ? await lockParts(tx, seen) : [];
    const operation = await lockOperation(tx, operationId);
    if (failure.held) await failTask(tx, failure.held, failure.reason);
    if (!isLive(operation)) return null;
    await sayWhy(tx, { reason: failure.reason, operation });
    await failRows(tx, operation, failure, parts);
    await tellUsers(tx, operation, failure);
    return operation;
  });
}

async function failRows(
  tx: Transaction,
  operation: OperationRow,
  failure: Failure,
  parts: readonly OperationRow[],
): Promise<void> {
  const { kind } = operation;
  switch (kind) {
    case "backup-create":
      return failBackupCreate(tx, operation, failure.reason, failure.damage ?? null);
    case "backup-restore":
      return failRestore(tx, operation, failure.reason, failure.damage ?? null);
    case "backup-delete":
      return failBackupDelete(tx, operation, failure.reason);
    case "backup-import":
      return failBackupImport(tx, operation, failure.reason);
    case "backup-verify":
      return failVerify(tx, operation, failure.reason);
    case "repository-rescan":
      return failRescan(tx, operation, failure.reason);
    case "repository-reap":
      return failReap(tx, operation, failure.reason);
    case "volume-create":
      await failVolume(tx, operation, failure.reason, { from: "creating", to: "error" });
      return settleGroup(tx, operation.volumeId ?? nilUuid);
    case "volume-import":
      return failVolume(tx, operation, failure.reason, { from: "creating", to: "error" });
    case "volume-adopt":
      // No row has the id yet.
      return endOperation(tx, operation, { state: "failed", reason: failure.reason });
    case "volume-export":
      return failVolume(tx, operation, failure.reason, { from: "uploading", to: "available" });
    case "volume-extend":
      await releaseExtend(tx, operation);
      return failVolume(tx, operation, failure.reason, { from: "extending", to: "error_extending" });
    case "volume-delete":
      await releaseSnapshotsOf(tx, operation.volumeId ?? nilUuid);
      return failVolume(tx, operation, failure.reason, { from: "deleting", to: "error_deleting" });
    case "snapshot-create":
      return failSnapshot(tx, operation, failure.reason, { from: "creating", to: "error" });
    case "snapshot-delete":
      return failSnapshot(tx, operation, failure.reason, { from: "deleting", to: "error_deleting" });
    case "group-snapshot":
    case "group-backup":
    case "group-restore":
    case "group-delete":
      return failGroupOperation(tx, { ...operation, kind }, parts, { state: "failed", reason: failure.reason });
    default:
      return unreachable(kind);
  }
}

/** The user message about a failed backup operation, in addition to its row. Other failures show in their rows only, as in Cinder. */
async function tellUsers(tx: Transaction, operation: OperationRow, failure: Failure): Promise<void> {
  const { kind, projectId, requestId, backupId } = operation;
  if (backupId === null || !(kind in failureDetails)) return;
  const action = kind as keyof typeof failureDetails;
  const { unplaced, failed } = failureDetails[action];
  await addMessage(tx, { projectId, requestId, backupId, action, detail: failure.unplaced ? unplaced : failed });
}

const failureDetails = {
  "backup-create": { unplaced: "schedule-failed", failed: "create-failed" },
  "backup-restore": { unplaced: "service-down", failed: "restore-failed" },
  "backup-delete": { unplaced: "service-down", failed: "delete-failed" },
} as const satisfies Partial<Record<MessageAction, Record<string, MessageDetail>>>;

async function failVolume<const To extends StatusOf<"volume">>(
  tx: Transaction,
  operation: OperationRow,
  reason: string,
  step: Step<"volume", To>,
): Promise<void> {
  await move(tx, "volume", { id: operation.volumeId ?? nilUuid }, step);
  await endOperation(tx, operation, { state: "failed", reason });
}

async function failSnapshot<const To extends StatusOf<"snapshot">>(
  tx: Transaction,
  operation: OperationRow,
  reason: string,
  step: Step<"snapshot", To>,
): Promise<void> {
  await move(tx, "snapshot", { id: operation.snapshotId ?? nilUuid }, step);
  await endOperation(tx, operation, { state: "failed", reason });
}
