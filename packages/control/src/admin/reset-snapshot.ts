import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { liveStates } from "../db/live.ts";
import { InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import type { OperationKind } from "../queue/operations.ts";
import { wasClaimed } from "../queue/tasks.ts";
import { override } from "../rows/move.ts";
import type { Snapshot } from "../rows/snapshots.ts";
import { lockSnapshot, markSnapshotRemoval } from "../rows/snapshots.ts";
import { cancelSnapshotWork } from "./force-delete-snapshot.ts";
import { checkReset, isRunning, liveWhole, refusePartOf } from "./resets.ts";

/** Operations whose worker creates or removes the snapshot's file. */
const writers: readonly OperationKind[] = ["snapshot-create", "snapshot-delete"];

/**
 * An admin resets the status of a snapshot. This ends the operation on it, unless the reset only names the status that the snapshot will
 * have anyway; a backup of it is then in `error`. A deletion that has begun can only be ended by an error status.
 *
 * @throws NotFoundError; InvalidError as `checkReset`, and while an operation works on its group snapshot or removes its volume
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
    await override(tx, "snapshot", { id }, status);
  });
}

/** Whether a deletion of the volume removes the snapshot as well. The volume is locked. */
async function goesWithVolume(tx: Transaction, { volumeId }: Pick<Snapshot, "volumeId">): Promise<boolean> {
  const live = { volumeId, kind: "volume-delete", state: liveStates };
  return (await tx.operation.count({ where: live })) > 0;
}

const spoken: Readonly<Record<string, readonly string[]>> = {
  creating: ["creating", "available", "error"],
  deleting: ["deleting", "error_deleting"],
};

/**
 * A status update from whoever takes or removes a snapshot, about one that is being taken or removed. While that is an operation of ours,
 * it alone decides the snapshot's status, and only the progress can be updated.
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
    await override(tx, "snapshot", { id }, status, progress ? { progress } : {});
  });
}
