import { type Database, inTransaction, lockRepository, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { notifyBackup } from "../events/notifications.ts";
import type { Principal } from "../principal.ts";
import { waitForWorkers } from "../queue/blocked.ts";
import { completeOperation, lockLiveOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { needToWrite } from "../queue/workers.ts";
import type { Backup } from "../rows/backups.ts";
import { countDependents, getBackup, lockBackup } from "../rows/backups.ts";
import { move, override } from "../rows/move.ts";
import { lockQuota, releaseQuota } from "../rows/quotas.ts";
import { cancelReaders } from "./verify.ts";

/** Nothing is being done to a backup in these. */
const deletable = ["available", "error", "error_restoring", "error_deleting"] as const;

const statusRefusal = () => new InvalidError("backup", "Backup status must be available or error");

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
      throw statusRefusal();
    }
    await startBackupDelete(tx, principal, backup);
  });
}

/**
 * Sets the locked backup to `deleting` and adds the operation that removes it; part of the operation `parentId` where there is one. Nothing
 * is removed before the last worker of any operation cancelled for it has let go. With `force`, its status does not matter.
 *
 * @returns the operation's id
 * @throws InvalidError while something is done to it, or with live incrementals, counted over all projects
 */
export async function startBackupDelete(
  tx: Transaction,
  principal: Principal,
  backup: Backup,
  { parentId = null, force = false }: { parentId?: string | null; force?: boolean } = {},
): Promise<string> {
  if ((await countDependents(tx, backup.id)) > 0)
    throw new InvalidError("backup", "Incremental backups exist for this backup.");
  await cancelReaders(tx, backup.id);
  const moved = force
    ? await override(tx, "backup", { id: backup.id }, "deleting")
    : await move(tx, "backup", { id: backup.id }, { from: deletable, to: "deleting" });
  if (moved !== 1) throw statusRefusal();
  await notifyBackup(tx, "backup.delete.start", backup.id);
  const operationId = await startOperation(tx, principal, {
    kind: "backup-delete",
    projectId: backup.projectId,
    backupId: backup.id,
    volumeId: backup.volumeId,
    parentId,
    task: { kind: "remove-backup", needs: [needToWrite(backup.repository)] },
  });
  await waitForWorkers(tx, operationId);
  return operationId;
}

export interface Removal {
  repository: string;
  container: string;
  prefix: string;
}

/**
 * Called before the first object is removed. Returns what a deletion may remove from the repository: null when nothing was ever named, or
 * when another live row shares the objects (an imported twin), since they go with the last of these rows. A row that is being deleted as
 * well does not count; otherwise two simultaneous deletions would each leave the objects to the other. From then on no row of these objects
 * ever becomes `available` again.
 *
 * @throws OperationEndedError
 */
export async function beginBackupDelete(database: Database, operation: TaskOperation): Promise<Removal | null> {
  return inTransaction(database, async (tx) => {
    const backup = await tx.backup.findUnique({ where: { id: operation.backupId ?? nilUuid } });
    const { repository, container, serviceMetadata: prefix } = backup ?? {};
    if (!repository || !container || !prefix) return null;
    await lockRepository(tx, repository);
    const sharing = await tx.$queryRaw<{ id: string; status: string }[]>`
      SELECT id, status FROM backups WHERE repository = ${repository} AND container = ${container} AND service_metadata = ${prefix}
        AND deleted_at IS NULL ORDER BY id FOR UPDATE`;
    await lockLiveOperation(tx, operation.id);
    if (sharing.some(({ id, status }) => id !== operation.backupId && status !== "deleting")) return null;
    const ids = sharing.map(({ id }) => id);
    await tx.backup.updateMany({
      where: { id: { in: ids }, removalBegunAt: null },
      data: { removalBegunAt: new Date() },
    });
    return { repository, container, prefix };
  });
}

/** The objects are gone: the row becomes a tombstone and its quota is released. */
export async function finishBackupDelete(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const live = { id: operation.backupId ?? nilUuid, deletedAt: null };
    // Two deletions may end at once, one of them forced: the row is read under the lock, so that only one of them releases the quota.
    await lockQuota(tx, operation.projectId);
    const row = await tx.backup.findFirst({ where: live });
    if (row) await releaseQuota(tx, row.projectId, { backups: 1, backup_gigabytes: row.sizeGib });
    // Whatever the status says, the objects are gone.
    if (row) await override(tx, "backup", { id: row.id }, "deleted", { deletedAt: new Date() });
    if (row) await notifyBackup(tx, "backup.delete.end", row.id);
    await completeOperation(tx, operation, result);
  });
}
