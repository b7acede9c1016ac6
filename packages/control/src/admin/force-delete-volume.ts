import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { liveStates } from "../db/live.ts";
import type { Principal } from "../principal.ts";
import { lockOperation } from "../queue/operations.ts";
import { lockBackup } from "../rows/backups.ts";
import { endWork } from "../rows/endings.ts";
import { startVolumeDelete, type VolumeDelete } from "../volumes/delete.ts";

/**
 * Accepts the deletion of a volume in any status. Operations on it, such as one still creating it, are cancelled.
 *
 * @throws InvalidError for a volume that is attached, is in a group, or has snapshots that are not deleted with it
 */
export async function forceDeleteVolume(
  database: Database,
  principal: Principal,
  id: string,
  { cascade }: VolumeDelete,
): Promise<void> {
  await inTransaction(database, (tx) => startVolumeDelete(tx, principal, id, { cascade, cancelWork }));
}

/** Cancels the operations on the volume itself; backups of it go on, and fail once the volume is gone. */
async function cancelWork(tx: Transaction, volumeId: string): Promise<void> {
  const live = await tx.operation.findMany({
    where: { volumeId, state: liveStates, kind: { notIn: ["backup-create", "backup-delete"] } },
    orderBy: { id: "asc" },
  });
  const reason = "The volume was deleted by force.";
  for (const { id, backupId } of live) {
    if (backupId !== null) await lockBackup(tx, backupId);
    const operation = await lockOperation(tx, id);
    await endWork(tx, operation, { state: "cancelled", reason, subjectLeft: operation.kind !== "backup-restore" });
  }
}
