import { sayWhy } from "../db/actor.ts";
import { ChangedMeanwhileError, type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isLiveOperation, liveStates } from "../db/live.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { isLive, lockOperation, type OperationKind, type OperationRow } from "../queue/operations.ts";
import { wasClaimed } from "../queue/tasks.ts";
import { lockBackup } from "../rows/backups.ts";
import { endWork } from "../rows/endings.ts";
import { lockGroupOf, settleGroup } from "../rows/groups.ts";
import { override } from "../rows/move.ts";
import { lockQuota } from "../rows/quotas.ts";
import { releaseSnapshotsOf } from "../rows/snapshots.ts";
import { getVolume, lockVolume, type VolumeRow } from "../rows/volumes.ts";
import { leaveInstanceGroup } from "../volumes/attach.ts";
import { checkReset, isRunning, notifyCancelled, refusePartOf } from "./resets.ts";

/** Kinds of operations that hold a volume's status. A backup of a snapshot holds the snapshot's instead. */
const holders: readonly OperationKind[] = [
  "volume-create",
  "volume-import",
  "volume-export",
  "volume-extend",
  "volume-delete",
  "backup-create",
  "backup-restore",
];
/** Operations that create the volume: they lead to `available` anyway. */
const makers: readonly string[] = ["volume-create", "volume-import", "backup-restore"];
/** Operations whose worker replaces or removes the volume's file. */
const writers: readonly OperationKind[] = ["volume-create", "volume-import", "volume-delete", "backup-restore"];

interface HeldVolume {
  volume: VolumeRow;
  operations: OperationRow[];
}

/** The volume with the live operations that hold its status, locked in the lock order. @throws NotFoundError */
async function lockWithOperations(tx: Transaction, principal: Principal, id: string): Promise<HeldVolume> {
  const { projectId } = await getVolume(tx, principal, id);
  const live = {
    volumeId: id,
    state: liveStates,
    kind: { in: [...holders] },
    OR: [{ snapshotId: null }, { kind: { not: "backup-create" } }],
  };
  const seen = await tx.operation.findMany({ where: live, orderBy: { id: "asc" } });
  if (seen.some(({ kind }) => kind === "volume-extend")) await lockQuota(tx, projectId);
  await lockGroupOf(tx, id);
  const volume = await lockVolume(tx, id);
  if (!volume) throw new NotFoundError("Volume", id);
  for (const backupId of [...new Set(seen.flatMap((operation) => operation.backupId ?? []))].sort()) {
    await lockBackup(tx, backupId);
  }
  // Starting an operation takes the volume's lock, so none can be added from here on, but one may have been before.
  const added = await tx.operation.count({ where: { ...live, id: { notIn: seen.map((operation) => operation.id) } } });
  if (added > 0) throw new ChangedMeanwhileError();
  const operations: OperationRow[] = [];
  for (const operation of seen) operations.push(await lockOperation(tx, operation.id));
  return { volume, operations: operations.filter(isLive) };
}

/** @throws InvalidError where the volume is waiting to be replaced together with the others of its group */
async function refuseMember(tx: Transaction, id: string, status: string): Promise<void> {
  const [whole] = await tx.$queryRaw<{ kind: string }[]>`
    SELECT w.kind FROM operations w JOIN operations p ON p.parent_id = w.id
    WHERE p.volume_id = ${id}::uuid AND p.kind = 'backup-restore' AND ${isLiveOperation("w")} LIMIT 1`;
  if (whole) refusePartOf("volume", status, whole.kind);
}

/** Ends the operation that holds the volume's status; the caller sets the new status. */
async function cancelHolder(tx: Transaction, volume: VolumeRow, operation: OperationRow): Promise<void> {
  const reason = "Cancelled by an administrator, who reset the status of the volume.";
  await sayWhy(tx, { reason, operation });
  const subjectLeft = operation.kind.startsWith("volume-");
  await endWork(tx, operation, { state: "cancelled", reason, subjectLeft });
  if (operation.kind === "volume-delete") await releaseSnapshotsOf(tx, volume.id);
  await notifyCancelled(tx, [operation]);
}

/**
 * An admin resets the status of a volume. This ends the operation on it, unless the reset only names the status that the volume will have
 * anyway; a backup of it is then in `error`. A deletion that has begun to remove bytes can only be ended by an error status.
 *
 * @throws NotFoundError; InvalidError for `in-use` without an attachment, for statuses that operations of ours set, and as `checkReset`
 */
export async function resetVolume(
  database: Database,
  principal: Principal,
  id: string,
  reset: { status: string | null; detached: boolean },
): Promise<void> {
  const { status, detached } = reset;
  await inTransaction(database, async (tx) => {
    const { volume, operations } = await lockWithOperations(tx, principal, id);
    if (status !== null) await changeStatus(tx, { volume, operations }, status);
    if (!detached) return;
    await tx.attachment.deleteMany({ where: { volumeId: id } });
    await leaveInstanceGroup(tx, id);
    const { attached_mode: _mode, ...adminMetadata } = volume.adminMetadata as Record<string, string>;
    await tx.volume.update({ where: { id }, data: { adminMetadata, updatedAt: new Date() } });
  });
}

async function changeStatus(tx: Transaction, { volume, operations }: HeldVolume, status: string): Promise<void> {
  const { id } = volume;
  if (["deleting", "error_deleting", "detaching"].includes(status)) {
    throw new InvalidError("request", `Cannot reset-state to ${status}`);
  }
  if (status === "in-use" && volume.attachments.length === 0) {
    const text = "Cannot reset-state to in-use because volume does not have any attachments.";
    throw new InvalidError("request", text);
  }
  await refuseMember(tx, id, status);
  const [working] = operations;
  if (status === "available" && volume.status === "creating" && working && makers.includes(working.kind)) return;
  const deletion = operations.find(({ kind }) => kind === "volume-delete");
  checkReset({
    subject: "volume",
    status,
    working: working?.kind ?? null,
    removalBegun: volume.removalBegunAt !== null || (deletion !== undefined && (await wasClaimed(tx, deletion.id))),
    writing: await isRunning(tx, { volumeId: id }, writers),
  });
  for (const operation of operations) await cancelHolder(tx, volume, operation);
  await override(tx, "volume", { id }, status, { previousStatus: volume.status });
  if (operations.length > 0) await settleGroup(tx, id);
}
