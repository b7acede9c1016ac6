import { startBackupDelete } from "../backups/delete.ts";
import { sayWhy } from "../db/actor.ts";
import { ChangedMeanwhileError, type Database, inTransaction, type Transaction } from "../db/database.ts";
import { liveStates } from "../db/live.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { notifyBackup } from "../events/notifications.ts";
import type { Principal } from "../principal.ts";
import { isLive, lockOperation, type OperationRow } from "../queue/operations.ts";
import { wasClaimed } from "../queue/tasks.ts";
import type { Backup } from "../rows/backups.ts";
import { getBackup, lockBackup } from "../rows/backups.ts";
import { endWork } from "../rows/endings.ts";
import { override } from "../rows/move.ts";
import { lockVolume } from "../rows/volumes.ts";
import type { BackupStatus } from "../states.ts";
import { liveWhole, notifyCancelled, refusePartOf } from "./resets.ts";

/** The live operations of a backup, locked after their volumes and the backup itself. @throws NotFoundError */
async function lockWithOperations(
  tx: Transaction,
  principal: Principal,
  id: string,
): Promise<{ backup: Backup; operations: OperationRow[] }> {
  await getBackup(tx, principal, id);
  const live = { backupId: id, state: liveStates };
  const seen = await tx.operation.findMany({ where: live, orderBy: { id: "asc" } });
  const volumes = [...new Set(seen.flatMap((operation) => operation.volumeId ?? []))].sort();
  for (const volume of volumes) await lockVolume(tx, volume);
  const backup = await lockBackup(tx, id);
  if (!backup) throw new NotFoundError("Backup", id);
  // Starting an operation takes the backup's lock, so none can be added from here on, but one may have been before.
  const added = await tx.operation.count({ where: { ...live, id: { notIn: seen.map((operation) => operation.id) } } });
  if (added > 0) throw new ChangedMeanwhileError();
  const operations: OperationRow[] = [];
  for (const operation of seen) operations.push(await lockOperation(tx, operation.id));
  return { backup, operations: operations.filter(isLive) };
}

/** Verifications and squashes change no status. */
const changesStatus = ({ kind }: OperationRow): boolean => kind !== "backup-verify" && kind !== "backup-squash";

/** Cancels the operations on the backup that change its status. Their workers learn of it at the next heartbeat. */
async function cancelWork(tx: Transaction, operations: readonly OperationRow[], reason: string): Promise<void> {
  for (const operation of operations.filter(changesStatus)) {
    await sayWhy(tx, { reason, operation });
    await endWork(tx, operation, { state: "cancelled", reason, subjectLeft: true });
  }
}

/**
 * Only a backup that can be restored may become `available`: one that was complete once and has lost none of its objects.
 *
 * @throws InvalidError
 */
async function checkRestorable(tx: Transaction, backup: Backup, operations: readonly OperationRow[]): Promise<void> {
  const deletion = operations.find(({ kind }) => kind === "backup-delete");
  const refuse = (why: string) => new InvalidError("backup", `Cannot reset-state to available: ${why}`);
  if (backup.removalBegunAt !== null || (deletion && (await wasClaimed(tx, deletion.id)))) {
    throw refuse("the removal of its objects has begun, so it can only be reset to error, or deleted.");
  }
  if (backup.storedBytes === null && backup.objectCount === 0) throw refuse("it was never completed.");
}

/**
 * An admin resets the status of a backup (cinder-api 6.10). A running restore is cancelled by any reset: the target is then in `error` and
 * the backup `available`, whatever was asked for. A running creation is cancelled by `error`; `available` is what it will become anyway. A
 * deletion can be cancelled until a worker has begun to remove objects; after that only `error` ends it.
 *
 * @throws NotFoundError; InvalidError as above, and for a part that has finished of a group operation that is still going on
 */
export async function resetBackupStatus(
  database: Database,
  principal: Principal,
  id: string,
  status: Extract<BackupStatus, "available" | "error">,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { backup, operations } = await lockWithOperations(tx, principal, id);
    const restoring = operations.some((operation) => operation.kind === "backup-restore");
    const creating = operations.some(({ kind }) => kind === "backup-create" || kind === "backup-import");
    const own = operations.some(changesStatus);
    const whole = own || backup.status === "available" ? null : await liveWhole(tx, backup.groupSnapshotId);
    if (whole) refusePartOf("backup", status, whole);
    await notifyBackup(tx, "backup.reset_status.start", id);
    if (creating && status === "available") return notifyBackup(tx, "backup.reset_status.end", id);
    if (status === "available" && !restoring) await checkRestorable(tx, backup, operations);
    await cancelWork(tx, operations, "Cancelled by an administrator, who reset the status of the backup.");
    await override(tx, "backup", { id: backup.id }, restoring ? "available" : status);
    await notifyCancelled(tx, operations);
    await notifyBackup(tx, "backup.reset_status.end", id);
  });
}

/**
 * Accepts a deletion in any status. Operations on the backup are cancelled; nothing is removed before the last worker has let go.
 *
 * @throws NotFoundError; InvalidError with live incrementals
 */
export async function requestBackupForceDelete(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { backup, operations } = await lockWithOperations(tx, principal, id);
    if (operations.some((operation) => operation.kind === "backup-delete")) return;
    await cancelWork(tx, operations, "Cancelled by an administrator, who deleted the backup.");
    await startBackupDelete(tx, principal, backup, { force: true });
    await notifyCancelled(tx, operations);
  });
}
