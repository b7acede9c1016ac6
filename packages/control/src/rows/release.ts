import type { Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { isStoredBackup } from "../db/live.ts";
import type { OperationRow } from "../queue/operations.ts";
import { move } from "./move.ts";

/** What a backup was made of gets its previous status back; a second call finds nothing to do. `previousStatus` is what a volume then had. */
export async function releaseSource(
  tx: Transaction,
  operation: { snapshotId: string | null; volumeId: string | null },
  previousStatus: "backing-up" | "error_backing-up",
): Promise<void> {
  if (operation.snapshotId) {
    await move(tx, "snapshot", { id: operation.snapshotId }, { from: "backing-up", to: "available" });
    return;
  }
  await tx.$executeRaw`
    UPDATE volumes SET status = CASE WHEN previous_status = 'in-use' AND EXISTS (SELECT 1 FROM attachments a WHERE a.volume_id = volumes.id)
        THEN 'in-use' ELSE 'available' END,
      previous_status = ${previousStatus}, updated_at = now()
    WHERE id = ${operation.volumeId}::uuid AND status = 'backing-up' AND machine_backup_id IS NULL`;
}

/**
 * The target of a restore that has published nothing keeps its contents and gets its previous status back; one that is `spoilt`, since it
 * may have been replaced in part of its group, is in error.
 */
export async function releaseTarget(
  tx: Transaction,
  volumeId: string | null,
  { spoilt }: { spoilt: boolean },
): Promise<void> {
  await tx.$executeRaw`
    UPDATE volumes v SET previous_status = 'restoring-backup', updated_at = now(), status = CASE
      WHEN ${spoilt} THEN 'error_restoring'
      WHEN EXISTS (SELECT 1 FROM attachments a WHERE a.volume_id = v.id) THEN 'in-use' ELSE 'available' END
    WHERE v.id = ${volumeId ?? nilUuid}::uuid AND v.status = 'restoring-backup'`;
}

/** A restore from the backup has ended, and the backup is as it was. */
export async function releaseBackup(tx: Transaction, backupId: string | null): Promise<void> {
  await move(tx, "backup", { id: backupId ?? nilUuid }, { from: "restoring", to: "available" });
}

/**
 * Releases what an operation holds: what it was creating, changing or removing is set to error, what it only read gets its previous status
 * back.
 */
export async function releaseRows(tx: Transaction, operation: OperationRow, reason: string): Promise<void> {
  const { volumeId, snapshotId, backupId, groupSnapshotId } = operation;
  await tx.$executeRaw`
    UPDATE volumes v SET updated_at = now(), previous_status = status, status = CASE WHEN status <> 'backing-up' THEN 'error'
      WHEN EXISTS (SELECT 1 FROM attachments a WHERE a.volume_id = v.id) THEN 'in-use' ELSE 'available' END
    WHERE id = ${volumeId}::uuid AND (${operation.kind} LIKE 'volume-%' OR ${operation.kind} IN ('backup-create', 'backup-restore'))
      AND status IN ('creating', 'backing-up', 'restoring-backup', 'uploading', 'extending', 'deleting') AND machine_backup_id IS NULL`;
  await tx.$executeRaw`
    UPDATE backups SET updated_at = now(), status = CASE status WHEN 'restoring' THEN 'available' ELSE 'error' END,
      fail_reason = CASE status WHEN 'restoring' THEN fail_reason ELSE left(${reason}, 255) END, deleted_at = NULL, undelete_until = NULL
    WHERE id = ${backupId}::uuid AND status IN ('creating', 'restoring', 'deleting') AND ${isStoredBackup("backups")}`;
  await tx.$executeRaw`
    UPDATE snapshots SET updated_at = now(), status = CASE status WHEN 'backing-up' THEN 'available' ELSE 'error' END
    WHERE (id = ${snapshotId}::uuid OR group_snapshot_id = ${groupSnapshotId}::uuid) AND status IN ('creating', 'backing-up', 'deleting')`;
  await tx.$executeRaw`
    UPDATE group_snapshots SET updated_at = now(), status = 'error'
    WHERE id = ${groupSnapshotId}::uuid AND status IN ('creating', 'deleting')`;
}

/** The disks that a backup of a machine has locked are as before, unless somebody else has changed their status meanwhile. */
export async function releaseBackedUp(tx: Transaction, machineBackupId: string): Promise<void> {
  await tx.$executeRaw`
    UPDATE volumes v SET machine_backup_id = NULL, updated_at = now(),
      previous_status = CASE v.status WHEN 'backing-up' THEN v.status ELSE v.previous_status END,
      status = CASE WHEN v.status <> 'backing-up' THEN v.status
        WHEN EXISTS (SELECT 1 FROM attachments a WHERE a.volume_id = v.id) THEN 'in-use' ELSE 'available' END
    WHERE v.machine_backup_id = ${machineBackupId}::uuid`;
}

/** A volume that an image was copied from, or to, is in use again where it still has an attachment. */
export async function releaseTransferred(tx: Transaction, volumeId: string): Promise<void> {
  await tx.$executeRaw`
    UPDATE volumes v SET previous_status = status, updated_at = now(),
      status = CASE WHEN EXISTS (SELECT 1 FROM attachments a WHERE a.volume_id = v.id) THEN 'in-use' ELSE 'available' END
    WHERE v.id = ${volumeId}::uuid AND v.status IN ('uploading', 'downloading')`;
}
