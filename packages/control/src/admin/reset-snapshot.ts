import { giveUpBackup } from "../backups/work.ts";
import { sayWhy } from "../db/actor.ts";
import { ChangedMeanwhileError, type Database, inTransaction, type Transaction } from "../db/database.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Snapshot } from "../generated/client.ts";
import type { Principal } from "../principal.ts";
import { endOperation, isLive, lockOperation, type OperationKind, type OperationRow } from "../queue/operations.ts";
import { lockBackup } from "../rows/backups.ts";
import { getSnapshot } from "../volumes/snapshots.ts";
import { lockVolume } from "../volumes/volumes.ts";
import { checkReset, isRunning, liveWhole, refusePartOf, wasClaimed } from "./resets.ts";

/** Kinds of operations that give a snapshot its status. */
const holders: readonly OperationKind[] = ["snapshot-create", "snapshot-delete", "backup-create"];
/** Those whose worker makes the snapshot's file, or takes it away. */
const writers: readonly OperationKind[] = ["snapshot-create", "snapshot-delete"];

/** The snapshot with the live operations that hold its status, locked after its volume and their backups. @throws NotFoundError */
export async function lockSnapshot(
  tx: Transaction,
  principal: Principal,
  id: string,
): Promise<{ snapshot: Snapshot; operations: OperationRow[] }> {
  const { volumeId } = await getSnapshot(tx, principal, id);
  const live = { snapshotId: id, state: { in: ["queued", "running"] }, kind: { in: [...holders] } };
  const seen = await tx.operation.findMany({ where: live, orderBy: { id: "asc" } });
  await lockVolume(tx, volumeId);
  for (const backupId of [...new Set(seen.flatMap((operation) => operation.backupId ?? []))].sort()) {
    await lockBackup(tx, backupId);
  }
  const operations: OperationRow[] = [];
  for (const operation of seen) operations.push(await lockOperation(tx, operation.id));
  await tx.$queryRaw`SELECT id FROM snapshots WHERE id = ${id}::uuid FOR UPDATE`;
  const snapshot = await tx.snapshot.findUnique({ where: { id } });
  if (!snapshot) throw new NotFoundError("Snapshot", id);
  // Whoever begins something changes this row: from here on nothing is added, but somebody may have been faster.
  const added = await tx.operation.count({ where: { ...live, id: { notIn: seen.map((operation) => operation.id) } } });
  if (added > 0) throw new ChangedMeanwhileError();
  return { snapshot, operations: operations.filter(isLive) };
}

/** Ends what gives the snapshot its status; the caller says what the snapshot becomes. */
export async function cancelSnapshotWork(
  tx: Transaction,
  operations: readonly OperationRow[],
  reason: string,
): Promise<void> {
  for (const operation of operations) {
    await sayWhy(tx, { reason, operation });
    if (operation.kind === "backup-create") await giveUpBackup(tx, operation, reason);
    else await endOperation(tx, operation, { state: "cancelled", reason });
  }
}

/** From now on nobody can use the snapshots. */
export async function markSnapshotRemoval(
  tx: Transaction,
  which: { id: string } | { groupSnapshotId: string },
): Promise<void> {
  const now = new Date();
  await tx.snapshot.updateMany({ where: { ...which, removalBegunAt: null }, data: { removalBegunAt: now } });
}

/**
 * An admin's word on a snapshot. What is going on with it is ended by it, unless it only says what the snapshot becomes anyhow; a
 * backup of it is then in `error`. A deletion that has begun can only be ended by an error.
 *
 * @throws NotFoundError; InvalidError as `checkReset`, and while an operation is at work on its group snapshot or removes its volume
 */
export async function resetSnapshot(
  database: Database,
  principal: Principal,
  id: string,
  status: string,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { snapshot, operations } = await lockSnapshot(tx, principal, id);
    const whole = await liveWhole(tx, snapshot.groupSnapshotId);
    if (whole) refusePartOf("snapshot", status, whole);
    if (await goesWithVolume(tx, snapshot)) {
      const text = `Cannot reset-state to ${status}: it is being deleted with its volume. Reset the volume.`;
      throw new InvalidError("snapshot", text);
    }
    const [working] = operations;
    if (status === "available" && snapshot.status === "creating" && working?.kind === "snapshot-create") return;
    const removal = operations.find(({ kind }) => kind === "snapshot-delete");
    const claimed = removal !== undefined && (await wasClaimed(tx, removal.id));
    checkReset({
      subject: "snapshot",
      status,
      working: working?.kind ?? null,
      removalBegun: snapshot.removalBegunAt !== null || claimed,
      writing: await isRunning(tx, { snapshotId: id }, writers),
    });
    await cancelSnapshotWork(tx, operations, "Cancelled by an administrator, who reset the status of the snapshot.");
    if (claimed) await markSnapshotRemoval(tx, { id });
    await tx.snapshot.update({ where: { id }, data: { status, updatedAt: new Date() } });
  });
}

/** Whether a deletion of the volume takes the snapshot along. The volume is locked. */
async function goesWithVolume(tx: Transaction, { volumeId }: Pick<Snapshot, "volumeId">): Promise<boolean> {
  const live = { volumeId, kind: "volume-delete", state: { in: ["queued", "running"] } };
  return (await tx.operation.count({ where: live })) > 0;
}

const spoken: Readonly<Record<string, readonly string[]>> = {
  creating: ["creating", "available", "error"],
  deleting: ["deleting", "error_deleting"],
};

/**
 * The word of whoever takes or removes a snapshot, about one that is being taken or removed. While an operation of ours does that, what
 * becomes of the snapshot is for that operation to say, and only the progress can be told.
 *
 * @throws NotFoundError; InvalidError in another status, or for a status that cannot follow
 */
export async function updateSnapshotStatus(
  database: Database,
  principal: Principal,
  id: string,
  { status, progress }: { status: string; progress: string | null },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { snapshot, operations } = await lockSnapshot(tx, principal, id);
    const now = snapshot.status;
    const allowed = spoken[now];
    if (!allowed) throw new InvalidError("request", `Snapshot status ${now} not allowed for update_snapshot_status`);
    const working =
      operations.length > 0 || (await liveWhole(tx, snapshot.groupSnapshotId)) || (await goesWithVolume(tx, snapshot));
    if (!allowed.includes(status) || (working && status !== now)) {
      const text = `Provided snapshot status ${status} not allowed for snapshot with status ${now}.`;
      throw new InvalidError("request", text);
    }
    await tx.snapshot.update({ where: { id }, data: { status, ...(progress && { progress }), updatedAt: new Date() } });
  });
}
