import { cancelSnapshotWork, lockSnapshot, markSnapshotRemoval } from "../admin/reset-snapshot.ts";
import { type Database, inTransaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { completeOperation, lockLiveOperation, startOperation, waitForWorkers } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { releaseQuota } from "../rows/quotas.ts";
import { originsOf, snapshotTransitions } from "../states.ts";

/**
 * Accepts a deletion; with `force` in every status. What is going on with the snapshot is cancelled then; nothing is removed before the
 * last worker has let go.
 *
 * @throws NotFoundError; InvalidError in a status that does not allow it, or for a snapshot of a group
 */
export async function requestSnapshotDelete(
  database: Database,
  principal: Principal,
  id: string,
  { force }: { force: boolean },
): Promise<void> {
  return inTransaction(database, async (tx) => {
    const { snapshot, operations } = await lockSnapshot(tx, principal, id);
    const allowed = force || originsOf(snapshotTransitions, "deleting").some((status) => status === snapshot.status);
    if (!allowed || snapshot.groupSnapshotId !== null) {
      const text = "Snapshot status must be available or error and must not be part of a group.";
      throw new InvalidError("snapshot", text);
    }
    if (operations.some(({ kind }) => kind === "snapshot-delete")) return;
    await cancelSnapshotWork(tx, operations, "Cancelled by an administrator, who deleted the snapshot.");
    const volume = await tx.volume.findUnique({ where: { id: snapshot.volumeId } });
    if (!volume) throw new NotFoundError("Volume", snapshot.volumeId);
    await tx.snapshot.update({ where: { id }, data: { status: "deleting", updatedAt: new Date() } });
    const operationId = await startOperation(tx, principal, {
      kind: "snapshot-delete",
      projectId: snapshot.projectId,
      snapshotId: id,
      volumeId: snapshot.volumeId,
      task: { kind: "remove-snapshot", needs: [`backend:${volume.backend}`] },
    });
    await waitForWorkers(tx, operationId);
  });
}

/** Called before the first byte goes: from now on nobody can use the snapshot. @throws OperationEndedError */
export async function beginSnapshotDelete(database: Database, operation: TaskOperation): Promise<void> {
  await inTransaction(database, async (tx) => {
    await lockLiveOperation(tx, operation.id);
    await markSnapshotRemoval(tx, { id: operation.snapshotId ?? nilUuid });
  });
}

/** The bytes are gone: the row and its quota go too. */
export async function finishSnapshotDelete(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const row = await tx.snapshot.findUnique({ where: { id: operation.snapshotId ?? nilUuid } });
    if (row) await releaseQuota(tx, row.projectId, { snapshots: 1, gigabytes: row.sizeGib });
    if (row) await tx.snapshot.delete({ where: { id: row.id } });
    await completeOperation(tx, operation, result);
  });
}
