import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { waitForWorkers } from "../queue/blocked.ts";
import { completeOperation, lockLiveOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { move, override } from "../rows/move.ts";
import { lockQuota, releaseQuota } from "../rows/quotas.ts";
import { getVolume, lockVolume, markVolumeRemoval, moveVolume } from "../rows/volumes.ts";
import { originsOf, volumeTransitions } from "../states.ts";

const statusText = "status must be available or error or error_restoring or error_extending or error_managing and";
const refusal = (force: boolean) =>
  new InvalidError(
    "volume",
    `Volume ${force ? "" : statusText} must not be migrating, attached, belong to a group, have snapshots, ` +
      "awaiting a transfer, or be disassociated from snapshots after volume transfer.",
  );

export interface VolumeDelete {
  /** Its snapshots are deleted with it; each must be available or in error, unless the deletion is forced. */
  cascade: boolean;
}

/** A deletion in any status: `cancelWork` cancels the operations on the volume. */
export interface ForcedDelete extends VolumeDelete {
  cancelWork: (tx: Transaction, volumeId: string) => Promise<void>;
}

/** @returns the operation's id. @throws InvalidError in a wrong status, attached, or with snapshots. Backups never prevent it. */
export function requestVolumeDelete(
  database: Database,
  principal: Principal,
  id: string,
  { cascade }: VolumeDelete,
): Promise<string> {
  return inTransaction(database, (tx) => startVolumeDelete(tx, principal, id, { cascade, cancelWork: null }));
}

/**
 * @throws InvalidError as `requestVolumeDelete`; a forced deletion is only refused for attachments, groups and snapshots that are not
 * deleted with it
 * @returns the operation's id
 */
export async function startVolumeDelete(
  tx: Transaction,
  principal: Principal,
  id: string,
  how: ForcedDelete | (VolumeDelete & { cancelWork: null }),
): Promise<string> {
  const { cascade, cancelWork } = how;
  const force = cancelWork !== null;
  const { projectId } = await getVolume(tx, principal, id);
  if (force) await lockQuota(tx, projectId);
  const volume = await lockVolume(tx, id);
  if (!volume) throw new NotFoundError("Volume", id);
  if (volume.attachments.length > 0 || volume.groupId !== null) throw refusal(force);
  await giveUpSnapshots(tx, principal, id, { cascade, force });
  if (force) await override(tx, "volume", { id }, "deleting", { previousStatus: volume.status });
  else await moveVolume(tx, id, originsOf(volumeTransitions, "deleting"), "deleting", () => refusal(force));
  if (cancelWork) await cancelWork(tx, id);
  const operationId = await startOperation(tx, principal, {
    kind: "volume-delete",
    projectId,
    volumeId: id,
    task: { kind: "remove-volume", needs: [`backend:${volume.backend}`] },
  });
  // A worker that has not heard of the cancellation yet may still give the volume's file its name: the removal comes after it.
  await waitForWorkers(tx, operationId);
  return operationId;
}

/** Nothing is being done to a snapshot in these. */
const idle = ["available", "error", "error_deleting"] as const;

/** Snapshots either prevent a deletion or are deleted with the volume, which is locked: none can be added. */
async function giveUpSnapshots(
  tx: Transaction,
  principal: Principal,
  volumeId: string,
  how: VolumeDelete & { force: boolean },
): Promise<void> {
  const snapshots = await tx.snapshot.findMany({ where: { volumeId } });
  if (snapshots.length === 0) return;
  if (snapshots.some((s) => s.groupSnapshotId !== null)) throw refusal(how.force);
  const foreign = !principal.isAdmin && snapshots.some((s) => s.projectId !== principal.projectId);
  if (!how.cascade || foreign) throw refusal(how.force);
  if (how.force) await override(tx, "snapshot", { volumeId }, "deleting");
  else await move(tx, "snapshot", { volumeId }, { from: idle, to: "deleting" });
  // A backup of one may have been accepted meanwhile.
  if ((await tx.snapshot.count({ where: { volumeId, status: { not: "deleting" } } })) > 0) throw refusal(how.force);
}

/**
 * Called before the first byte is removed: from now on nobody can use the volume, nor snapshots deleted with it. @throws
 * OperationEndedError
 */
export async function beginVolumeDelete(database: Database, operation: TaskOperation): Promise<void> {
  await inTransaction(database, async (tx) => {
    await lockVolume(tx, operation.volumeId ?? nilUuid);
    await lockLiveOperation(tx, operation.id);
    await markVolumeRemoval(tx, operation.volumeId ?? nilUuid);
  });
}

/** The files are gone: removes the rows of the volume and of the snapshots deleted with it, and releases their quota. */
export async function finishVolumeDelete(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volumeId = operation.volumeId ?? nilUuid;
    // Read under the lock, so that only one of two deletions releases the quota.
    await lockQuota(tx, operation.projectId);
    const volume = await tx.volume.findUnique({ where: { id: volumeId }, include: { snapshots: true } });
    for (const { projectId, sizeGib } of volume?.snapshots ?? []) {
      await releaseQuota(tx, projectId, { snapshots: 1, gigabytes: sizeGib });
    }
    if (volume) await releaseQuota(tx, volume.projectId, { volumes: 1, gigabytes: volume.sizeGib });
    await tx.snapshot.deleteMany({ where: { volumeId } });
    await tx.volume.deleteMany({ where: { id: volumeId } });
    await completeOperation(tx, operation, result);
  });
}
