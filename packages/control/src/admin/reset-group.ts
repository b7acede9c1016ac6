import { sayWhy } from "../db/actor.ts";
import { ChangedMeanwhileError, type Database, inTransaction } from "../db/database.ts";
import { liveStates } from "../db/live.ts";
import { InvalidError } from "../errors.ts";
import { lockParts } from "../groups/parts.ts";
import { getGroupSnapshot } from "../groups/snapshots.ts";
import type { Principal } from "../principal.ts";
import { isGroupOperation, isLive, isPublishing, lockOperation } from "../queue/operations.ts";
import { endWork } from "../rows/endings.ts";
import { getGroup, lockVisibleGroup } from "../rows/groups.ts";
import { override } from "../rows/move.ts";
import { lockQuota } from "../rows/quotas.ts";
import { lockVolume } from "../rows/volumes.ts";
import { checkReset } from "./resets.ts";

/**
 * An admin resets the status of a group snapshot. This ends the operation on it as a whole: a backup or restore of the group, and a
 * creation unless the reset only names the status that it leads to anyway. A deletion is ended by an error status only: what is left can be
 * deleted again.
 *
 * @throws NotFoundError; InvalidError for another status during or after its removal, or for an in-progress status while an operation runs
 * on it
 */
export async function resetGroupSnapshot(
  database: Database,
  principal: Principal,
  id: string,
  status: string,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const snapshot = await getGroupSnapshot(tx, principal, id);
    const live = { groupSnapshotId: snapshot.id, kind: { startsWith: "group-" }, state: liveStates };
    const seen = await tx.operation.findFirst({ where: live });
    const parts = seen ? await lockParts(tx, seen) : [];
    const locked = seen && (await lockOperation(tx, seen.id));
    const whole = locked && isLive(locked) && isGroupOperation(locked.kind) ? locked : null;
    const making = whole?.kind === "group-snapshot" || whole?.kind === "group-backup";
    if (making && status === "available") return;
    const removed = { groupSnapshotId: snapshot.id, removalBegunAt: { not: null } };
    checkReset({
      subject: "group-snapshot",
      status,
      working: whole?.kind ?? null,
      removalBegun: whole?.kind === "group-delete" || (await tx.snapshot.count({ where: removed })) > 0,
      writing: (whole?.kind === "group-restore" || whole?.kind === "group-revert") && isPublishing(whole),
    });
    const reason = "Cancelled by an administrator, who reset the status of the group snapshot.";
    if (whole) await endWork(tx, whole, { state: "cancelled", reason }, parts);
    // Nothing changes it meanwhile but an operation: one that was started before is looked for below.
    await override(tx, "groupSnapshot", { id: snapshot.id }, status);
    // Starting an operation takes the lock of this row, but one may have been started before.
    const added = await tx.operation.count({ where: { ...live, id: { notIn: seen ? [seen.id] : [] } } });
    if (added > 0) throw new ChangedMeanwhileError();
  });
}

/**
 * An admin resets the status of a group. If it is being created from a source, that is given up together with the volumes that are not
 * there yet, unless the reset only names the status that the group will have anyway.
 *
 * @throws NotFoundError; InvalidError while an operation holds the group, and for an in-progress status while an operation runs on it
 */
export async function resetGroup(database: Database, principal: Principal, id: string, status: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { projectId, volumes } = await getGroup(tx, principal, id);
    await lockQuota(tx, projectId);
    const group = await lockVisibleGroup(tx, principal, id);
    if (group.operationId !== null) {
      const text = `Cannot reset-state to ${status}: an operation is in progress on it. Reset its group snapshot.`;
      throw new InvalidError("group", text);
    }
    const made = group.status === "creating" ? volumes.map((volume) => volume.id).sort() : [];
    for (const volumeId of made) await lockVolume(tx, volumeId);
    const making = await tx.operation.findMany({
      where: { volumeId: { in: made }, kind: "volume-create", state: liveStates },
      orderBy: { id: "asc" },
    });
    if (making.length > 0 && status === "available") return;
    const working = making.length > 0 ? ("volume-create" as const) : null;
    checkReset({ subject: "group", status, working, removalBegun: false, writing: false });
    const reason = "Cancelled by an administrator, who reset the status of the group.";
    for (const { id: operationId } of making) {
      const operation = await lockOperation(tx, operationId);
      if (!isLive(operation)) continue;
      await sayWhy(tx, { reason, operation });
      await endWork(tx, operation, { state: "cancelled", reason });
    }
    await override(tx, "group", { id: group.id }, status);
  });
}
