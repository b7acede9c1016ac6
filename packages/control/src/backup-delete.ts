import { cancelVerifications } from "./backup-verify.ts";
import { countDependents, getBackup, lockBackup } from "./backups.ts";
import { type Database, inTransaction, type Transaction } from "./database.ts";
import { InvalidError, NotFoundError } from "./errors.ts";
import type { Backup } from "./generated/client.ts";
import { nilUuid } from "./listing.ts";
import { notifyBackup } from "./notifications.ts";
import { completeOperation, endOperation, type OperationRow, startOperation } from "./operations.ts";
import type { Principal } from "./principal.ts";
import { lockQuota, releaseQuota } from "./quotas.ts";
import type { TaskOperation, TaskResult } from "./tasks.ts";

/**
 * Accepts a deletion.
 *
 * @throws NotFoundError; InvalidError in a wrong status or with live incrementals
 */
export async function requestBackupDelete(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    await getBackup(tx, principal, id);
    const backup = await lockBackup(tx, id);
    if (!backup) throw new NotFoundError("Backup", id);
    if (!["available", "error", "error_restoring"].includes(backup.status)) {
      throw new InvalidError("backup", "Backup status must be available or error");
    }
    await startBackupDelete(tx, principal, backup);
  });
}

/**
 * The locked backup becomes `deleting`, with the operation that removes it, a part of the operation `parentId` where there is one.
 *
 * @returns the operation's id
 * @throws InvalidError with live incrementals, counted over all projects
 */
export async function startBackupDelete(
  tx: Transaction,
  principal: Principal,
  backup: Backup,
  parentId: string | null = null,
): Promise<string> {
  if ((await countDependents(tx, backup.id)) > 0)
    throw new InvalidError("backup", "Incremental backups exist for this backup.");
  await cancelVerifications(tx, backup.id);
  await tx.backup.update({ where: { id: backup.id }, data: { status: "deleting", updatedAt: new Date() } });
  await notifyBackup(tx, "backup.delete.start", backup.id);
  return startOperation(tx, principal, {
    kind: "backup-delete",
    projectId: backup.projectId,
    backupId: backup.id,
    volumeId: backup.volumeId,
    parentId,
    task: { kind: "remove-backup", needs: [`repository:${backup.repository}`] },
  });
}

export interface Removal {
  repository: string;
  container: string;
  prefix: string;
}

/**
 * What a deletion may remove from the repository: null when nothing was ever named, or when another live row shares the objects
 * (an imported twin): they go with the last of them. One that is being deleted as well does not count, else two deletions at once
 * would each leave the objects to the other.
 */
export async function planRemoval(database: Database, operation: TaskOperation): Promise<Removal | null> {
  const backup = await database.backup.findUnique({ where: { id: operation.backupId ?? nilUuid } });
  if (!backup?.container || !backup.serviceMetadata) return null;
  const twins = await database.backup.count({
    where: {
      id: { not: backup.id },
      repository: backup.repository,
      container: backup.container,
      serviceMetadata: backup.serviceMetadata,
      status: { not: "deleting" },
      deletedAt: null,
    },
  });
  return twins > 0
    ? null
    : { repository: backup.repository, container: backup.container, prefix: backup.serviceMetadata };
}

/** The objects are gone: the row becomes a tombstone and its quota goes back. */
export async function finishBackupDelete(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const live = { id: operation.backupId ?? nilUuid, deletedAt: null };
    // Two deletions may end at once, one of them forced: what is there is read under the lock, so that only one gives back.
    await lockQuota(tx, operation.projectId);
    const row = await tx.backup.findFirst({ where: live });
    if (row) await releaseQuota(tx, row.projectId, { backups: 1, backup_gigabytes: row.sizeGib });
    const now = new Date();
    if (row)
      await tx.backup.update({ where: { id: row.id }, data: { status: "deleted", deletedAt: now, updatedAt: now } });
    if (row) await notifyBackup(tx, "backup.delete.end", row.id);
    await completeOperation(tx, operation, result);
  });
}

/** Nothing is half forgotten: the row stays, in `error`, and can be deleted again. */
export async function failBackupDelete(tx: Transaction, operation: OperationRow, reason: string): Promise<void> {
  await tx.backup.updateMany({
    where: { id: operation.backupId ?? nilUuid, status: "deleting" },
    data: { status: "error", failReason: reason.slice(0, 255), updatedAt: new Date() },
  });
  await endOperation(tx, operation, { state: "failed", reason });
}
