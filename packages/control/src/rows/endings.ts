import type { Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { waitForWorkers } from "../queue/blocked.ts";
import { documents, readForEnding } from "../queue/documents.ts";
import {
  endOperation,
  isGroupOperation,
  isLive,
  isPublishing,
  type OperationKind,
  type OperationRow,
  startOperation,
} from "../queue/operations.ts";
import {
  backupTidyNeeds,
  besideTidyNeeds,
  restoreTidyNeeds,
  squashTidyNeeds,
  verifyTidyNeeds,
} from "../queue/plan-needs.ts";
import { addTasks, wasClaimed } from "../queue/tasks.ts";
import type { StatusOf } from "../states.ts";
import { type Damage, markDamage } from "./chains.ts";
import { releaseGroup, settleGroup } from "./groups.ts";
import { move, type Step } from "./move.ts";
import { releaseQuota } from "./quotas.ts";
import { releaseBackup, releaseSource, releaseTarget } from "./release.ts";
import { releaseSnapshotsOf } from "./snapshots.ts";
import { markVolumeRemoval, restoring } from "./volumes.ts";

/** How an operation ends that did not succeed. */
export interface End {
  state: "failed" | "cancelled";
  reason: string;
  /** What a backup or restore found damaged in the backups that it read. */
  damage?: Damage | null;
  /** The caller sets the status of the row that the operation makes, changes or removes: it is left as it is. */
  subjectLeft?: boolean;
}

interface Ending {
  /** What becomes of the rows. Of a group operation: once its parts have been ended. */
  rows: (tx: Transaction, operation: OperationRow, end: End, parts: readonly OperationRow[]) => Promise<unknown>;
  /** Capabilities that the clean-up needs; null where nothing is left behind. */
  tidy?: (tx: Transaction, operation: OperationRow) => string[] | null | Promise<string[] | null>;
}

/** What the end of an operation of each kind does to its rows, unless it succeeded: the only definition. */
const endings: Readonly<Record<OperationKind, Ending>> = {
  "backup-create": { rows: endCreation, tidy: tidyAfter(documents.backupPlan, backupTidyNeeds) },
  "backup-restore": { rows: endRestore, tidy: tidyRestore },
  "backup-delete": { rows: endDeletion },
  "backup-import": { rows: endImport },
  "backup-verify": { rows: nothing, tidy: tidyAfter(documents.verifyPlan, verifyTidyNeeds) },
  "backup-squash": {
    rows: async (tx, _operation, { damage }) => {
      if (damage) await markDamage(tx, damage);
    },
    tidy: tidyAfter(documents.squashPlan, squashTidyNeeds),
  },
  "repository-rescan": { rows: nothing },
  // What was removed stays removed: the next pass continues from there.
  "repository-reap": {
    rows: (tx, { id: operationId }) => tx.condemnedPlace.deleteMany({ where: { operationId } }),
  },
  "volume-create": {
    rows: async (tx, operation, end) => {
      await moveVolume({ from: "creating", to: "error" })(tx, operation, end);
      if (!end.subjectLeft) await settleGroup(tx, operation.volumeId ?? nilUuid);
    },
  },
  "volume-import": { rows: moveVolume({ from: "creating", to: "error" }) },
  // No row has the id yet.
  "volume-adopt": { rows: nothing },
  "volume-export": { rows: moveVolume({ from: "uploading", to: "available" }) },
  "volume-extend": {
    rows: async (tx, operation, end) => {
      // The volume keeps its length. Where the input cannot be read, the repair of quotas releases what was reserved.
      const input = readForEnding(documents.extension, operation.input);
      if (input) await releaseQuota(tx, operation.projectId, { gigabytes: input.addedGib });
      await moveVolume({ from: "extending", to: "error_extending" })(tx, operation, end);
    },
  },
  "volume-delete": { rows: endVolumeDeletion },
  "snapshot-create": { rows: moveSnapshot({ from: "creating", to: "error" }) },
  "snapshot-delete": { rows: moveSnapshot({ from: "deleting", to: "error_deleting" }) },
  "group-snapshot": { rows: endGroupSnapshot, tidy: backendsOf },
  "group-backup": { rows: endGroupBackup, tidy: backendsOf },
  "group-restore": { rows: endGroupRestore },
  "group-revert": { rows: endGroupRevert },
  // Its worker thaws the guest all the same.
  "group-freeze": { rows: (tx, { id }) => releaseGroup(tx, id) },
  // What the machine has is what it had, as far as anybody knows: to be asked for again.
  "group-plug": { rows: (tx, { id }) => releaseGroup(tx, id) },
  "group-delete": { rows: endGroupDeletion },
};

/**
 * Ends an operation as failed or cancelled, with its `parts`: its rows get the statuses that its kind prescribes, its tasks stop, and what
 * it left behind is cleaned up. All rows are locked by the caller, and so is the quota for `volume-extend`.
 */
export async function endWork(
  tx: Transaction,
  operation: OperationRow,
  end: End,
  parts: readonly OperationRow[] = [],
): Promise<void> {
  const { rows, tidy } = endings[operation.kind];
  const { state, reason } = end;
  const needs = (await tidy?.(tx, operation)) ?? null;
  const whole = isGroupOperation(operation.kind);
  // A part that ends concludes the whole, unless that has ended already.
  if (whole) await endOperation(tx, operation, { state, reason, tidy: needs });
  for (const part of parts.filter(isLive)) await endWork(tx, part, { state: "cancelled", reason });
  await rows(tx, operation, end, parts);
  if (!whole) await endOperation(tx, operation, { state, reason, tidy: needs });
}

async function nothing(): Promise<void> {}

/** A plan that cannot be read says nothing about what to clean up. */
function tidyAfter<Plan>(read: (plan: OperationRow["plan"]) => Plan, needs: (plan: Plan) => string[] | null) {
  return (_tx: Transaction, operation: OperationRow): string[] | null => {
    const plan = readForEnding(read, operation.plan);
    return plan ? needs(plan) : null;
  };
}

/** Without a plan only a volume that another service has may be reserved. */
function tidyRestore(tx: Transaction, operation: OperationRow): string[] | null {
  if (operation.plan !== null) return tidyAfter(documents.restorePlan, restoreTidyNeeds)(tx, operation);
  const input = readForEnding(documents.restoreInput, operation.input);
  return input && besideTidyNeeds(input);
}

function moveVolume<const To extends StatusOf<"volume">>(step: Step<"volume", To>) {
  return async (tx: Transaction, { volumeId }: OperationRow, { subjectLeft }: End): Promise<void> => {
    if (!subjectLeft) await move(tx, "volume", { id: volumeId ?? nilUuid }, step);
  };
}

function moveSnapshot<const To extends StatusOf<"snapshot">>(step: Step<"snapshot", To>) {
  return async (tx: Transaction, { snapshotId }: OperationRow, { subjectLeft }: End): Promise<void> => {
    if (!subjectLeft) await move(tx, "snapshot", { id: snapshotId ?? nilUuid }, step);
  };
}

const failReasonOf = ({ reason }: End): string => reason.slice(0, 255);

/** The source gets its status back (cinder-api 6.11); a backup that this one was to build on and that is damaged is marked. */
async function endCreation(tx: Transaction, operation: OperationRow, end: End): Promise<void> {
  const { state, damage, subjectLeft } = end;
  const id = operation.backupId ?? nilUuid;
  if (damage && damage.backupId !== operation.backupId) await markDamage(tx, damage);
  await releaseSource(tx, operation, state === "failed" ? "error_backing-up" : "backing-up");
  if (subjectLeft) return;
  await move(
    tx,
    "backup",
    { id, deletedAt: null },
    { from: "creating", to: "error" },
    { failReason: failReasonOf(end) },
  );
}

/**
 * The contents of the target are undefined, except as part of a group restore, which releases the untouched targets itself. A failing
 * target leaves the backup `available`; damage in the backup gives it `error_restoring` with a reason that names backup and object, and
 * flags the member of the chain that holds it, which is never chosen as a parent again.
 */
async function endRestore(tx: Transaction, operation: OperationRow, end: End): Promise<void> {
  if (operation.parentId === null) {
    const to = end.state === "failed" ? "error_restoring" : "error";
    const columns = { previousStatus: "restoring-backup" };
    await move(tx, "volume", { id: operation.volumeId ?? nilUuid }, { from: restoring, to }, columns);
  }
  if (end.damage) {
    await markDamage(tx, end.damage);
    const which = { id: operation.backupId ?? nilUuid };
    await move(tx, "backup", which, { from: "restoring", to: "error_restoring" }, { failReason: failReasonOf(end) });
  } else if (!end.subjectLeft) await releaseBackup(tx, operation.backupId);
}

/** No partial deletion is forgotten: the row stays, in `error`, and can be deleted again. */
async function endDeletion(tx: Transaction, operation: OperationRow, end: End): Promise<void> {
  const id = operation.backupId ?? nilUuid;
  // Its worker may not have heard of a cancellation yet, or may be of an earlier release, which did not record that removal had begun.
  if (end.state === "cancelled" && (await wasClaimed(tx, operation.id))) {
    await tx.backup.updateMany({ where: { id, removalBegunAt: null }, data: { removalBegunAt: new Date() } });
  }
  if (end.subjectLeft) return;
  // One that was hidden is seen again: somebody has to know.
  const columns = { failReason: failReasonOf(end), deletedAt: null, undeleteUntil: null };
  await move(tx, "backup", { id }, { from: "deleting", to: "error" }, columns);
}

/** The row stays, in `error`, and no longer names any objects: deleting it must not remove the objects whose import was refused. */
async function endImport(tx: Transaction, operation: OperationRow, end: End): Promise<void> {
  const which = { id: operation.backupId ?? nilUuid, deletedAt: null };
  const columns = { failReason: failReasonOf(end), container: null, serviceMetadata: null };
  await move(tx, "backup", which, { from: "creating", to: "error" }, columns);
}

/** Snapshots that were to be deleted with the volume stay. */
async function endVolumeDeletion(tx: Transaction, operation: OperationRow, end: End): Promise<void> {
  const volumeId = operation.volumeId ?? nilUuid;
  if (end.state === "cancelled" && (await wasClaimed(tx, operation.id))) await markVolumeRemoval(tx, volumeId);
  if (end.subjectLeft) return;
  await releaseSnapshotsOf(tx, volumeId);
  await move(tx, "volume", { id: volumeId }, { from: "deleting", to: "error_deleting" });
}

const groupSnapshotOf = ({ groupSnapshotId }: OperationRow): string => groupSnapshotId ?? nilUuid;

/** A worker that died while taking the snapshots may have left the guest frozen, or its writes redirected away from its disks. */
async function backendsOf(tx: Transaction, operation: OperationRow): Promise<string[]> {
  const of = { groupSnapshotId: groupSnapshotOf(operation) };
  const snapshots = await tx.snapshot.findMany({ where: of, include: { volume: true } });
  return [...new Set(snapshots.map(({ volume }) => `backend:${volume.backend}`))];
}

/** One part failed: all of it is in `error`, and what is finished stays until the group's backup is deleted. */
async function endGroupBackup(tx: Transaction, operation: OperationRow, end: End): Promise<void> {
  const of = { groupSnapshotId: groupSnapshotOf(operation) };
  await move(tx, "groupSnapshot", { id: of.groupSnapshotId }, { from: "creating", to: "error" });
  await move(tx, "snapshot", of, { from: "creating", to: "error" });
  // Those without a part yet.
  const failReason = failReasonOf(end);
  await move(tx, "backup", { ...of, deletedAt: null }, { from: "creating", to: "error" }, { failReason });
  await releaseGroup(tx, operation.id);
}

/** A machine's snapshot that could not be taken is removed: nobody is left with one that is locked for good. */
async function endGroupSnapshot(tx: Transaction, operation: OperationRow, end: End): Promise<void> {
  await endGroupBackup(tx, operation, end);
  const groupSnapshotId = groupSnapshotOf(operation);
  const snapshot = await tx.groupSnapshot.findUnique({ where: { id: groupSnapshotId }, select: { ovf: true } });
  if (snapshot?.ovf != null) await removeMachineSnapshot(tx, operation, groupSnapshotId);
}

/** A machine's snapshot that nobody is to see goes, and with it the preview that it was taken for. */
async function removeMachineSnapshot(tx: Transaction, operation: OperationRow, groupSnapshotId: string): Promise<void> {
  const needs = await backendsOf(tx, { ...operation, groupSnapshotId });
  await tx.groupSnapshot.update({ where: { id: groupSnapshotId }, data: { previewOfId: null } });
  await move(tx, "groupSnapshot", { id: groupSnapshotId }, { from: ["available", "error"], to: "deleting" });
  const { projectId, groupId } = operation;
  const removal = await startOperation(tx, operation, {
    kind: "group-delete",
    projectId,
    groupId,
    groupSnapshotId,
    input: { concludeNeeds: needs },
    task: { kind: "conclude-group", needs },
  });
  await waitForWorkers(tx, removal);
}

/**
 * Nothing is published: what was prepared is discarded, and the volumes keep their contents and get their previous status back. Only if
 * volumes may have been replaced already is their combined state unknown.
 */
async function endGroupRestore(
  tx: Transaction,
  operation: OperationRow,
  _end: End,
  parts: readonly OperationRow[],
): Promise<void> {
  await tidyRestored(
    tx,
    parts.filter((part) => part.state === "succeeded"),
  );
  const spoilt = isPublishing(operation);
  for (const { volumeId, backupId } of parts) {
    await releaseTarget(tx, volumeId, { spoilt });
    await releaseBackup(tx, backupId);
  }
  await releaseGroup(tx, operation.id);
}

/**
 * A machine that was to go back to a snapshot: only if disks may have been changed already, nobody knows what they have. A preview of which
 * nothing is to be seen has not begun; one that is in part can be undone.
 */
async function endGroupRevert(tx: Transaction, operation: OperationRow): Promise<void> {
  const groupSnapshotId = groupSnapshotOf(operation);
  const spoilt = isPublishing(operation);
  const disks = await tx.snapshot.findMany({ where: { groupSnapshotId } });
  for (const { volumeId } of disks) await releaseTarget(tx, volumeId, { spoilt });
  await releaseGroup(tx, operation.id);
  const before = await tx.groupSnapshot.findFirst({ where: { previewOfId: groupSnapshotId } });
  if (before !== null && !spoilt) await removeMachineSnapshot(tx, operation, before.id);
}

/** Adds the clean-up of parts that have succeeded: staging and private files stay until the group operation has ended. */
export async function tidyRestored(tx: Transaction, parts: readonly OperationRow[]): Promise<void> {
  for (const part of parts) {
    const plan = readForEnding(documents.restorePlan, part.plan);
    if (plan) await addTasks(tx, part, [{ kind: "tidy", ordinal: 0, needs: restoreTidyNeeds(plan) }]);
  }
}

async function endGroupDeletion(tx: Transaction, operation: OperationRow): Promise<void> {
  const groupSnapshotId = groupSnapshotOf(operation);
  await move(tx, "groupSnapshot", { id: groupSnapshotId }, { from: "deleting", to: "error" });
  await move(tx, "snapshot", { groupSnapshotId }, { from: "deleting", to: "error_deleting" });
  await releaseGroup(tx, operation.id);
}
