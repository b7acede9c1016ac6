import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { liveStates } from "../db/live.ts";
import { NotFoundError, RefusedError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { documentVersion } from "../queue/document-version.ts";
import { completeOperation, lockLiveOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { holdGroup, releaseGroup } from "../rows/groups.ts";
import { refuseTransferredSnapshot } from "../rows/image-transfers.ts";
import { refuseAttachedSnapshot } from "../rows/machines.ts";
import { move } from "../rows/move.ts";
import { lockQuota } from "../rows/quotas.ts";
import { releaseTarget } from "../rows/release.ts";
import { lockVolume, moveVolume } from "../rows/volumes.ts";
import { goesBack } from "../volume-backends.ts";
import { checkConfiguration } from "./configuration.ts";
import type { FormatOf } from "./describe.ts";
import { nameOf } from "./disks.ts";
import { getMachine, lockMachine, type MachineRow, refuseHeld, refusePreviewed } from "./machines.ts";
import { readOvf } from "./ovf/read.ts";
import { getMachineSnapshot, type MachineSnapshot, refuseActive, startMachineSnapshot } from "./snapshots.ts";

/*
 * A machine that is off goes back to a snapshot: its disks get the snapshot's bytes again, and its configuration is that of the snapshot's
 * OVF. Snapshots that are newer go, since nothing leads to them any more, and so do checkpoints. What the snapshot is not of stays.
 */

/** Snapshots of the machine that are newer. */
const newerThan = (tx: Transaction, { projectId, instanceId, createdAt }: MachineSnapshot) =>
  tx.groupSnapshot.findMany({
    where: { projectId, instanceId, ovf: { not: null }, createdAt: { gt: createdAt } },
    include: { snapshots: { include: { volume: true } } },
    orderBy: { createdAt: "desc" },
  });

const needsOf = (snapshots: readonly { volume: { backend: string } }[]): string[] => [
  ...new Set(snapshots.map(({ volume }) => `backend:${volume.backend}`)),
];

/**
 * Accepts that a machine goes back to a snapshot: machine and disks are locked until it is there.
 *
 * @returns the operation; null where it is there at once
 * @throws NotFoundError; RefusedError, in oVirt's order (docs/ovirt.md)
 */
export function restoreMachineSnapshot(
  database: Database,
  config: Config,
  principal: Principal,
  { machineId, id }: { machineId: string; id: string },
): Promise<string | null> {
  return inTransaction(database, async (tx) => {
    const machine = await lockMachine(tx, principal, machineId);
    refuseActive(machine, id);
    const snapshot = await getMachineSnapshot(tx, principal, machineId, id);
    refuseUp(machine);
    refuseHeld(machine);
    refusePreviewed(machine);
    await refuseUnready(tx, snapshot);
    for (const each of [snapshot, ...(await newerThan(tx, snapshot))]) await refuseUsed(tx, each);
    await refuseGoingBack(tx, config, machine, snapshot);
    if (snapshot.snapshots.length > 0) return startRevert(tx, principal, snapshot);
    await applyConfiguration(tx, snapshot);
    await removeNewer(tx, principal, snapshot);
    return null;
  });
}

/** @throws RefusedError unless the machine is off */
function refuseUp({ instance: { id, powerState } }: MachineRow): void {
  if (powerState === "SHUTOFF") return;
  throw new RefusedError("machine-not-down", `Machine ${id} is ${powerState}.`, { powerState });
}

async function refuseUnready(tx: Transaction, { id, status }: MachineSnapshot): Promise<void> {
  await tx.$queryRaw`SELECT id FROM group_snapshots WHERE id = ${id}::uuid FOR NO KEY UPDATE`;
  if (status !== "available") throw new RefusedError("snapshot-locked", `Snapshot ${id} is ${status}.`);
}

/** Locks a snapshot. @throws RefusedError while a disk of it is attached to a machine, or transferred */
async function refuseUsed(tx: Transaction, snapshot: Pick<MachineSnapshot, "id" | "description">): Promise<void> {
  await tx.$queryRaw`SELECT id FROM group_snapshots WHERE id = ${snapshot.id}::uuid FOR NO KEY UPDATE`;
  await refuseAttachedSnapshot(tx, snapshot);
  await refuseTransferredSnapshot(tx, snapshot);
}

/** @throws RefusedError for disks that cannot go back, or are another machine's now */
async function refuseGoingBack(
  tx: Transaction,
  config: Config,
  machine: MachineRow,
  snapshot: MachineSnapshot,
): Promise<void> {
  await refuseElsewhere(tx, machine.instance.id, snapshot);
  for (const { volume } of snapshot.snapshots) {
    if (goesBack(config.volume_backends, volume.backend)) continue;
    throw new RefusedError("restore-unsupported", `Backend ${volume.backend} cannot go back to a snapshot.`);
  }
}

/** The operation that gives the disks the snapshot's bytes again, and holds the machine until then. @throws RefusedError for a disk that is locked */
async function startRevert(
  tx: Transaction,
  by: Pick<Principal, "userId" | "requestId">,
  snapshot: MachineSnapshot,
): Promise<string> {
  const input = { instanceId: snapshot.instanceId ?? "", concludeNeeds: needsOf(snapshot.snapshots) };
  const operationId = await startOperation(tx, by, {
    kind: "group-revert",
    projectId: snapshot.projectId,
    groupId: snapshot.groupId,
    groupSnapshotId: snapshot.id,
    bytesTotal: snapshot.snapshots.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0n),
    input,
    task: { kind: "conclude-group", needs: input.concludeNeeds },
  });
  await holdGroup(tx, snapshot.groupId, operationId);
  for (const { volume } of snapshot.snapshots.toSorted((a, b) => (a.volumeId < b.volumeId ? -1 : 1))) {
    await moveVolume(tx, volume.id, ["available", "in-use"], "restoring-backup", () => {
      const disks = nameOf(volume);
      return new RefusedError("disks-locked", `Disk ${volume.id} is locked.`, { disks });
    });
  }
  return operationId;
}

const beforePreview = "Active VM before the preview";

/**
 * Accepts that a machine is shown as it was at a snapshot, until that is committed or undone: a snapshot is taken of how it is now, then its
 * disks go back. Newer snapshots stay. Of the second step nothing has to be asked: it begins as the first one ends.
 *
 * @returns the operation of the first step; null where it is there at once
 * @throws NotFoundError; RefusedError, in oVirt's order (docs/ovirt.md); QuotaExceededError
 */
export function previewMachineSnapshot(
  database: Database,
  config: Config,
  principal: Principal,
  { machineId, id, formatOf }: { machineId: string; id: string; formatOf: FormatOf },
): Promise<string | null> {
  return inTransaction(database, async (tx) => {
    await lockQuota(tx, principal.projectId);
    const machine = await lockMachine(tx, principal, machineId);
    refuseUp(machine);
    refuseActive(machine, id);
    const snapshot = await findSnapshot(tx, principal, machineId, id);
    refuseHeld(machine);
    refusePreviewed(machine);
    await refuseUnready(tx, snapshot);
    await refuseGoingBack(tx, config, machine, snapshot);
    const disks = snapshot.snapshots.map(({ volume }) => {
      const disk = machine.disks.find(({ volumeId }) => volumeId === volume.id);
      if (disk) return disk;
      const details = { disks: nameOf(volume), machine: machine.instance.name };
      throw new RefusedError("disks-not-attached", `Disk ${volume.id} is not attached to the machine.`, details);
    });
    const before = { description: beforePreview, disks, formatOf, previewOfId: snapshot.id };
    const { operationId } = await startMachineSnapshot(tx, config, principal, machine, before);
    if (operationId === null) await applyConfiguration(tx, snapshot);
    return operationId;
  });
}

/** @throws RefusedError where the machine has no such snapshot: the body names it */
async function findSnapshot(tx: Transaction, principal: Principal, machineId: string, id: string) {
  try {
    return await getMachineSnapshot(tx, principal, machineId, id);
  } catch (error) {
    if (!(error instanceof NotFoundError)) throw error;
    throw new RefusedError("snapshot-unknown", `Snapshot ${id} does not exist.`);
  }
}

/** The machine as it was before a preview is kept: its disks are next, in the transaction that ends the first step. */
export async function continuePreview(tx: Transaction, operation: TaskOperation): Promise<void> {
  const taken = await tx.groupSnapshot.findUniqueOrThrow({ where: { id: operation.groupSnapshotId ?? "" } });
  if (taken.previewOfId === null) return;
  const of = { where: { id: taken.previewOfId }, include: { snapshots: { include: { volume: true } } } } as const;
  const whole = await lockLiveOperation(tx, operation.id);
  await startRevert(tx, whole, await tx.groupSnapshot.findUniqueOrThrow(of));
}

/** The preview of a machine that is locked. @throws NotFoundError; RefusedError unless it is off, is previewing, and has nothing else to do */
async function lockPreview(tx: Transaction, principal: Principal, machineId: string) {
  const machine = await lockMachine(tx, principal, machineId);
  const { preview } = machine;
  if (preview === null) throw new RefusedError("snapshot-unknown", `Machine ${machineId} is not previewing.`);
  refuseUp(machine);
  refuseHeld(machine);
  const snapshot = await getMachineSnapshot(tx, principal, machineId, preview.of);
  return { machine, snapshot, before: await getMachineSnapshot(tx, principal, machineId, preview.id) };
}

/** The machine stays as it is shown: what it was before goes, as do the newer snapshots. @throws NotFoundError; RefusedError */
export async function commitMachineSnapshot(
  database: Database,
  principal: Principal,
  machineId: string,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { snapshot, before } = await lockPreview(tx, principal, machineId);
    for (const each of await newerThan(tx, snapshot)) await refuseUsed(tx, each);
    await endPreview(tx, before);
    await removeNewer(tx, principal, snapshot);
  });
}

/**
 * Accepts that the machine becomes again what it was before the preview.
 *
 * @returns the operation; null where it is there at once
 * @throws NotFoundError; RefusedError
 */
export function undoMachineSnapshot(
  database: Database,
  config: Config,
  principal: Principal,
  machineId: string,
): Promise<string | null> {
  return inTransaction(database, async (tx) => {
    const { machine, before } = await lockPreview(tx, principal, machineId);
    await refuseUsed(tx, before);
    await refuseGoingBack(tx, config, machine, before);
    if (before.snapshots.length > 0) return startRevert(tx, principal, before);
    await applyConfiguration(tx, before);
    await endPreview(tx, before);
    await startRemoval(tx, principal, before);
    return null;
  });
}

const endPreview = (tx: Transaction, { id }: Pick<MachineSnapshot, "id">) =>
  tx.groupSnapshot.update({ where: { id }, data: { previewOfId: null } });

/** A disk that was detached since may be another machine's now. @throws RefusedError */
async function refuseElsewhere(tx: Transaction, instanceId: string, { snapshots }: MachineSnapshot): Promise<void> {
  const volumeId = { in: snapshots.map((snapshot) => snapshot.volumeId) };
  const others = await tx.attachment.findMany({ where: { volumeId }, select: { volumeId: true, serverId: true } });
  const other = others.find(({ serverId }) => serverId !== instanceId);
  if (other) throw new RefusedError("disk-attached-elsewhere", `Disk ${other.volumeId} is attached elsewhere.`);
}

/** Before the first disk is changed: from now on every claim continues until all are. @throws OperationEndedError */
export async function beginRevert(database: Database, operationId: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    await lockLiveOperation(tx, operationId);
    await tx.operation.updateMany({
      where: { id: operationId, state: liveStates },
      data: { plan: { version: documentVersion, publishing: true } },
    });
  });
}

/** All disks have the snapshot's bytes. @throws ClaimLostError, OperationEndedError */
export async function finishRevert(database: Database, operation: TaskOperation, result: TaskResult): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { projectId, groupSnapshotId } = operation;
    const seen = await tx.groupSnapshot.findUniqueOrThrow({
      where: { id: groupSnapshotId ?? "" },
      include: { snapshots: { include: { volume: true }, orderBy: { volumeId: "asc" } } },
    });
    for (const { volumeId } of seen.snapshots) {
      await lockVolume(tx, volumeId);
      // No backup has these bytes as its own any more.
      await tx.volume.updateMany({ where: { id: volumeId }, data: { restoredFromId: null, restoredAt: new Date() } });
      await releaseTarget(tx, volumeId, { spoilt: false });
    }
    const lost = { projectId, instanceId: seen.instanceId ?? "" };
    await move(tx, "machineCheckpoint", lost, { from: "created", to: "invalid" });
    await applyConfiguration(tx, seen);
    const whole = await lockLiveOperation(tx, operation.id);
    const isShown = (await tx.groupSnapshot.count({ where: { previewOfId: seen.id } })) > 0;
    if (seen.previewOfId !== null) {
      await endPreview(tx, seen);
      await startRemoval(tx, whole, seen);
    } else if (!isShown) await removeNewer(tx, whole, seen);
    await releaseGroup(tx, operation.id);
    await completeOperation(tx, operation, result);
  });
}

/** The machine is what the snapshot's OVF says, but for its disks. Addresses that another machine has got meanwhile leave an interface unplugged. */
async function applyConfiguration(tx: Transaction, snapshot: MachineSnapshot): Promise<void> {
  const { projectId, instanceId, ovf } = snapshot;
  if (ovf === null || instanceId === null) return;
  const read = readOvf(ovf, () => false);
  const key = { projectId, instanceId };
  const machine = await getMachine(tx, { projectId } as Principal, instanceId);
  const configuration = checkConfiguration({ ...machine.settings, ...read.configuration });
  const record = { configuration, content: read.content };
  await tx.machine.upsert({
    where: { projectId_instanceId: key },
    create: { ...key, ...record },
    update: record,
  });
  await tx.machineNic.deleteMany({ where: key });
  for (const nic of read.nics) {
    const clash = (await tx.machineNic.count({ where: { projectId, mac: nic.mac } })) > 0;
    const state = clash ? { linked: false, plugged: false } : {};
    await tx.machineNic.create({ data: { ...nic, ...state, ...key } });
  }
}

/** Their bytes are removed by operations of their own. */
async function removeNewer(
  tx: Transaction,
  by: Pick<Principal, "userId" | "requestId">,
  snapshot: MachineSnapshot,
): Promise<void> {
  for (const newer of await newerThan(tx, snapshot)) await startRemoval(tx, by, newer);
}

async function startRemoval(
  tx: Transaction,
  by: Pick<Principal, "userId" | "requestId">,
  { id, projectId, groupId, snapshots }: Awaited<ReturnType<typeof newerThan>>[number],
): Promise<void> {
  await move(tx, "groupSnapshot", { id }, { from: "available", to: "deleting" });
  const needs = needsOf(snapshots);
  await startOperation(tx, by, {
    kind: "group-delete",
    projectId,
    groupId,
    groupSnapshotId: id,
    input: { concludeNeeds: needs },
    task: { kind: "conclude-group", needs },
  });
}
