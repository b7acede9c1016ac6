import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { waitForWorkers } from "../queue/blocked.ts";
import { completeOperation, lockLiveOperation, type OperationRow, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { move, override } from "../rows/move.ts";
import { releaseQuota } from "../rows/quotas.ts";
import { lockSnapshot, markSnapshotRemoval } from "../rows/snapshots.ts";
import { originsOf, snapshotTransitions } from "../states.ts";

/** How a deletion in any status ends the operations on the snapshot. */
export type CancelSnapshotWork = (tx: Transaction, operations: readonly OperationRow[]) => Promise<void>;

/** Accepts a deletion. @throws NotFoundError; InvalidError in a status that does not allow it, or for a snapshot of a group */
export function requestSnapshotDelete(database: Database, principal: Principal, id: string): Promise<void> {
  return inTransaction(database, (tx) => startSnapshotDelete(tx, principal, id, null));
}

/** @throws NotFoundError; InvalidError for a snapshot of a group and, unless work is cancelled, in a status that does not allow it */
export async function startSnapshotDelete(
  tx: Transaction,
  principal: Principal,
  id: string,
  cancelWork: CancelSnapshotWork | null,
): Promise<void> {
  const { snapshot, operations } = await lockSnapshot(tx, principal, id);
  const deletable = originsOf(snapshotTransitions, "deleting");
  const allowed = cancelWork !== null || deletable.some((status) => status === snapshot.status);
  if (!allowed || snapshot.groupSnapshotId !== null) {
    const text = "Snapshot status must be available or error and must not be part of a group.";
    throw new InvalidError("snapshot", text);
  }
  if (operations.some(({ kind }) => kind === "snapshot-delete")) return;
  if (cancelWork) await cancelWork(tx, operations);
  const volume = await tx.volume.findUnique({ where: { id: snapshot.volumeId } });
  if (!volume) throw new NotFoundError("Volume", snapshot.volumeId);
  if (cancelWork) await override(tx, "snapshot", { id }, "deleting");
  else await move(tx, "snapshot", { id }, { from: deletable, to: "deleting" });
  const operationId = await startOperation(tx, principal, {
    kind: "snapshot-delete",
    projectId: snapshot.projectId,
    snapshotId: id,
    volumeId: snapshot.volumeId,
    task: { kind: "remove-snapshot", needs: [`backend:${volume.backend}`] },
  });
  await waitForWorkers(tx, operationId);
}

/** Called before the first byte is removed: from now on nobody can use the snapshot. @throws OperationEndedError */
export async function beginSnapshotDelete(database: Database, operation: TaskOperation): Promise<void> {
  await inTransaction(database, async (tx) => {
    await lockLiveOperation(tx, operation.id);
    await markSnapshotRemoval(tx, { id: operation.snapshotId ?? nilUuid });
  });
}

/** The bytes are gone: removes the row and releases its quota. */
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
