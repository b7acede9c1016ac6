import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import { type Database, inTransaction, type Prisma, type Transaction } from "../db/database.ts";
import { NotFoundError, RefusedError } from "../errors.ts";
import { recordOf, refuseApart, startSnapshot } from "../groups/backup.ts";
import { startGroupSnapshotDelete } from "../groups/delete.ts";
import { addInstanceGroup } from "../groups/instances.ts";
import { withMembers } from "../groups/snapshots.ts";
import type { Principal } from "../principal.ts";
import { addGroupSnapshot, type GroupSnapshot, getGroup } from "../rows/groups.ts";
import { move } from "../rows/move.ts";
import { lockQuota, reserveQuota } from "../rows/quotas.ts";
import { addSnapshots, type Snapshot } from "../rows/snapshots.ts";
import type { Volume } from "../rows/volumes.ts";
import { describeMachine, type FormatOf } from "./describe.ts";
import { nameOf } from "./disks.ts";
import {
  getMachine,
  knownId,
  lockMachine,
  type MachineDisk,
  type MachineRow,
  refuseHeld,
  refusePreviewed,
} from "./machines.ts";
import type { OvfNic } from "./ovf/hardware.ts";
import { readOvf } from "./ovf/read.ts";

/** A snapshot that was asked for of a machine: a group snapshot without backups, with the OVF of its moment. */
export type MachineSnapshot = GroupSnapshot & { snapshots: (Snapshot & { volume: Volume })[] };

const withDisks = { snapshots: { include: { volume: true }, orderBy: { createdAt: "asc" } } } as const;

/** Oldest first. @throws NotFoundError for the machine */
export async function listMachineSnapshots(
  database: Database,
  principal: Principal,
  machineId: string,
): Promise<MachineSnapshot[]> {
  const { instance } = await getMachine(database, principal, machineId);
  const { projectId, id: instanceId } = instance;
  return database.groupSnapshot.findMany({
    where: { projectId, instanceId, ovf: { not: null } },
    include: withDisks,
    orderBy: [{ createdAt: "asc" }, { id: "asc" }],
  });
}

/** @throws NotFoundError for the machine, and for a snapshot that is not one of it */
export async function getMachineSnapshot(
  database: Database | Transaction,
  principal: Principal,
  machineId: string,
  id: string,
): Promise<MachineSnapshot> {
  const { instance } = await getMachine(database, principal, machineId);
  const known = knownId(id);
  const row =
    known === null
      ? null
      : await database.groupSnapshot.findFirst({
          where: { id: known, projectId: instance.projectId, instanceId: instance.id, ovf: { not: null } },
          include: withDisks,
        });
  if (!row) throw new NotFoundError("GroupSnapshot", id);
  return row;
}

/** The network interfaces that the machine had at a snapshot, from its OVF. */
export const nicsOfSnapshot = ({ ovf }: MachineSnapshot): OvfNic[] =>
  ovf === null ? [] : readOvf(ovf, () => false).nics;

export interface NewMachineSnapshot {
  description: string;
  /** Only these disks, by the ids of volumes or layers; empty: the configuration alone. Null: all disks. */
  disks: readonly string[] | null;
}

/** The disks that a request names. @throws RefusedError for one that the machine does not have */
function chosenDisks(machine: MachineRow, wanted: NewMachineSnapshot["disks"]): MachineDisk[] {
  if (wanted === null) return machine.disks;
  return wanted.map((id) => {
    const known = id.toLowerCase();
    const disk = machine.disks.find(({ volumeId, volume }) => volumeId === known || volume.imageId === known);
    if (!disk) throw new RefusedError("disk-unknown", `Disk ${id} is not attached to the machine.`, { disk: id });
    return disk;
  });
}

function refuseLocked(disks: readonly MachineDisk[]): void {
  const locked = disks.filter(({ volume }) => !["available", "in-use"].includes(volume.status));
  if (locked.length === 0) return;
  const names = locked.map(({ volume }) => nameOf(volume)).join(", ");
  throw new RefusedError("disks-locked", `Disks are locked: ${names}.`, { disks: names });
}

/** Locks a machine with a group, which it gets where it has none: an operation on the machine holds the group. */
async function lockWithGroup(tx: Transaction, config: Config, principal: Principal, id: string): Promise<MachineRow> {
  const machine = await lockMachine(tx, principal, id);
  if (machine.instance.group) return machine;
  await addInstanceGroup(tx, config, principal, machine.instance);
  return getMachine(tx, principal, id);
}

/**
 * Accepts a snapshot of a machine: of all its disks at one instant, of some, or of its configuration alone, which is there at once. The
 * OVF is written in the same transaction, and nothing that it says can change until the snapshot is there.
 *
 * @throws NotFoundError; RefusedError while an operation has the machine or one of its disks; InvalidError for a disk of which no snapshot
 * is taken together with others; QuotaExceededError
 */
export function takeMachineSnapshot(
  database: Database,
  config: Config,
  principal: Principal,
  machineId: string,
  request: NewMachineSnapshot & { formatOf: FormatOf },
): Promise<MachineSnapshot> {
  return inTransaction(database, async (tx) => {
    const { projectId } = principal;
    await lockQuota(tx, projectId);
    const machine = await lockWithGroup(tx, config, principal, machineId);
    refuseHeld(machine);
    refusePreviewed(machine);
    if (!["ACTIVE", "SHUTOFF"].includes(machine.instance.powerState)) {
      throw new RefusedError("machine-locked", `Machine ${machine.instance.id} is ${machine.instance.powerState}.`);
    }
    const disks = chosenDisks(machine, request.disks);
    const { id } = await startMachineSnapshot(tx, config, principal, machine, { ...request, disks, previewOfId: null });
    return getMachineSnapshot(tx, principal, machineId, id);
  });
}

/**
 * A snapshot of a machine that is locked, with the quota. `previewOfId`: the snapshot that is shown once this one is there.
 *
 * @returns its id, and the operation; null for one without disks, which is there at once
 */
export async function startMachineSnapshot(
  tx: Transaction,
  config: Config,
  principal: Principal,
  machine: MachineRow,
  snapshot: { description: string; disks: readonly MachineDisk[]; formatOf: FormatOf; previewOfId: string | null },
): Promise<{ id: string; operationId: string | null }> {
  const { description, disks, formatOf, previewOfId } = snapshot;
  refuseLocked(disks);
  refuseApart(config, disks, machine.instance);
  const gigabytes = disks.reduce((sum, { volume }) => sum + volume.sizeGib, 0);
  if (disks.length > 0) await reserveQuota(tx, config, principal.projectId, { snapshots: disks.length, gigabytes });
  const id = randomUUID();
  const at = new Date();
  const volumeIds = disks.map(({ volumeId }) => volumeId);
  const ovf = await describeMachine(tx, machine, formatOf, { id, description, at, volumeIds });
  const row = { id, description, ovf, disks, at, previewOfId };
  return { id, operationId: await recordSnapshot(tx, principal, machine, row) };
}

/** The rows, and the operation that takes the snapshots of the disks. The layers that were written become the snapshot's. */
async function recordSnapshot(
  tx: Transaction,
  principal: Principal,
  machine: MachineRow,
  snapshot: {
    id: string;
    description: string;
    ovf: string;
    disks: readonly MachineDisk[];
    at: Date;
    previewOfId: string | null;
  },
): Promise<string | null> {
  const { id, description, ovf, disks, at, previewOfId } = snapshot;
  const { projectId, userId } = principal;
  const group = await getGroup(tx, principal, machine.instance.group?.id ?? "");
  const members = disks.map(({ volume, volumeId, device }) => ({ volume, volumeId, device }));
  const instance = recordOf(machine.instance, members) as unknown as Prisma.InputJsonObject;
  const of = { groupId: group.id, groupTypeId: group.groupTypeId, instanceId: machine.instance.id };
  const row = { projectId, userId, ...of, name: null, description, instance, ovf, previewOfId, createdAt: at };
  await addGroupSnapshot(tx, row, id);
  if (disks.length === 0) {
    await move(tx, "groupSnapshot", { id }, { from: "creating", to: "available" }, { takenAt: at });
    return null;
  }
  await addSnapshots(
    tx,
    disks.map(({ volume }) => ({
      id: volume.imageId,
      projectId,
      userId,
      volumeId: volume.id,
      groupSnapshotId: id,
      name: description.slice(0, 255),
      sizeGib: volume.sizeGib,
      sizeBytes: volume.sizeBytes,
    })),
  );
  await tx.$executeRaw`UPDATE volumes SET image_id = gen_random_uuid() WHERE id = ANY(${members.map((m) => m.volumeId)}::uuid[])`;
  return startSnapshot(tx, principal, group, { kind: "group-snapshot", groupSnapshotId: id, members });
}

/**
 * Accepts the deletion of a machine's snapshot. One whose disks are attached somewhere is refused, under the lock that attaching takes.
 *
 * @returns the operation
 * @throws NotFoundError; RefusedError while an operation has the machine or the snapshot, or a disk of it is attached
 */
export async function removeMachineSnapshot(
  database: Database,
  config: Config,
  principal: Principal,
  { machineId, id }: { machineId: string; id: string },
): Promise<string> {
  return inTransaction(database, async (tx) => {
    const machine = await lockMachine(tx, principal, machineId);
    refuseActive(machine, id);
    const seen = await getMachineSnapshot(tx, principal, machineId, id);
    if (["creating", "deleting"].includes(seen.status)) {
      throw new RefusedError("during-snapshot", `Snapshot ${seen.id} is ${seen.status}.`);
    }
    refuseHeld(machine);
    refusePreviewed(machine);
    await tx.$queryRaw`SELECT id FROM group_snapshots WHERE id = ${seen.id}::uuid FOR NO KEY UPDATE`;
    const [whole] = await withMembers(tx, [seen]);
    const group = await getGroup(tx, principal, seen.groupId);
    if (!whole) throw new NotFoundError("GroupSnapshot", id);
    return startGroupSnapshotDelete(tx, config, principal, { group, snapshot: whole });
  });
}

/** @throws RefusedError for the id of the machine as it is now */
export function refuseActive(machine: MachineRow, id: string): void {
  if (machine.instance.group?.id !== id.toLowerCase()) return;
  throw new RefusedError("snapshot-not-regular", "The snapshot is the machine as it is now.");
}
