import { randomUUID } from "node:crypto";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { NotFoundError, RefusedError } from "../errors.ts";
import { needsSocket, nextDevice } from "../groups/instances.ts";
import type { Principal } from "../principal.ts";
import { lockVolume, type Volume, type VolumeRow } from "../rows/volumes.ts";
import { attachWithin, detachWithin } from "../volumes/attach.ts";
import { knownId, lockMachine, type MachineDisk, type MachineRow, refuseHeld, refusePreviewed } from "./machines.ts";
import { type DiskInterface, diskInterfaces } from "./ovf/hardware.ts";
import { startPlug } from "./plug.ts";

export const isDiskInterface = (text: string): text is DiskInterface => Object.hasOwn(diskInterfaces, text);

const diskUnknown = (id: string): RefusedError =>
  new RefusedError("disk-unknown", `Disk ${id} does not exist.`, { disk: id });

export const nameOf = ({ id, name }: { id: string; name: string | null }): string => name ?? id;

/** Locks a disk of the caller's project. @throws RefusedError: a disk that a body names and nobody has is no missing resource */
async function lockDisk(tx: Transaction, { projectId }: Principal, id: string): Promise<VolumeRow> {
  const known = knownId(id);
  const seen = known === null ? null : await tx.volume.findFirst({ where: { id: known, projectId } });
  const volume = seen && (await lockVolume(tx, seen.id));
  if (!volume) throw diskUnknown(id);
  return volume;
}

/** Where nothing is being done to a volume, and its bytes are what somebody wrote. */
const resting = ["available", "in-use", "reserved", "attaching", "detaching"];

/** @throws RefusedError while something is being done to the disk, or when its bytes are not to be relied on */
export function refuseBusyDisk(volume: Pick<VolumeRow, "id" | "name" | "status">): void {
  if (resting.includes(volume.status)) return;
  const disk = nameOf(volume);
  if (volume.status.startsWith("error")) throw new RefusedError("disk-illegal", `Disk ${disk} is illegal.`, { disk });
  throw new RefusedError("disks-locked", `Disk ${disk} is locked.`, { disks: disk });
}

/** @throws RefusedError when the machine has the disk already, as its own or as that of a snapshot */
function refuseTwice(machine: MachineRow, volumeId: string): void {
  const has = (disk: { volumeId: string }): boolean => disk.volumeId === volumeId;
  if (!machine.disks.some(has) && !machine.borrowed.some(has)) return;
  throw new RefusedError("disk-attached", "The disk is already attached to the machine.");
}

const attachable = ["ACTIVE", "PAUSED", "SHUTOFF"];

function refusePower({ instance }: MachineRow): void {
  if (attachable.includes(instance.powerState)) return;
  throw new RefusedError("machine-locked", `Machine ${instance.id} is ${instance.powerState}.`);
}

/** Whether a hypervisor that can be asked has the machine running. */
const isReachable = ({ instance }: MachineRow): boolean =>
  needsSocket(instance.driver) && instance.powerState !== "SHUTOFF";

/** Nobody here can put a disk into a machine that runs, and whose hypervisor is not known. @throws RefusedError */
function refusePlug(machine: MachineRow, plugged: boolean): void {
  const { instance } = machine;
  if (!plugged || instance.powerState === "SHUTOFF" || isReachable(machine)) return;
  throw new RefusedError("machine-unreachable", `Machine ${instance.id} runs, and cannot be reached.`);
}

export interface DiskSettings {
  active: boolean;
  bootable: boolean;
  readOnly: boolean;
  interface: DiskInterface;
}

/** The disk that was attached, which the machine has from then on. */
const diskOf = (machine: MachineRow, volumeId: string): MachineDisk => {
  const disk = machine.disks.find((other) => other.volumeId === volumeId);
  if (!disk) throw new NotFoundError("Volume", volumeId);
  return disk;
};

/** Attaches a disk that no machine has. @throws NotFoundError for the machine; RefusedError, in oVirt's order (docs/ovirt.md) */
export async function attachDisk(
  database: Database,
  principal: Principal,
  machineId: string,
  diskId: string,
  settings: DiskSettings,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const machine = await lockMachine(tx, principal, machineId);
    const volume = await lockDisk(tx, principal, diskId);
    await attachLocked(tx, principal, machine, volume, settings);
  });
}

/** As `attachDisk`, of a machine and a disk that are locked. */
export async function attachLocked(
  tx: Transaction,
  principal: Principal,
  machine: MachineRow,
  volume: VolumeRow,
  settings: DiskSettings,
): Promise<void> {
  const { instance } = machine;
  refuseTwice(machine, volume.id);
  if (volume.attachments.length > 0) {
    throw new RefusedError("disk-attached-elsewhere", "The disk is already attached to a machine.");
  }
  refuseBusyDisk(volume);
  refuseHeld(machine);
  refusePreviewed(machine);
  refusePower(machine);
  refusePlug(machine, settings.active);
  const mode = settings.readOnly ? "ro" : "rw";
  const device = nextDevice(machine.disks);
  await attachWithin(tx, principal, volume.id, { serverId: instance.id, hostName: null, device, mode });
  const of = { volumeId: volume.id, serverId: instance.id };
  const plugged = settings.active && !isReachable(machine);
  await tx.attachment.updateMany({ where: of, data: { plugged, interface: settings.interface } });
  if (settings.bootable) await setBoot(tx, machine, volume.id);
}

async function setBoot(tx: Transaction, { instance }: MachineRow, bootVolumeId: string | null): Promise<void> {
  const { projectId, id } = instance;
  await tx.instance.update({
    where: { projectId_id: { projectId, id } },
    data: { bootVolumeId, updatedAt: new Date() },
  });
}

export interface SnapshotDisk {
  diskId: string;
  snapshotId: string;
  active: boolean;
  interface: DiskInterface;
}

/**
 * Attaches a disk of a machine's snapshot to another machine, or to the same. What is written there is thrown away at detach; the snapshot
 * cannot be deleted until then.
 *
 * @throws NotFoundError for the machine; RefusedError, in oVirt's order (docs/ovirt.md)
 */
export async function attachSnapshotDisk(
  database: Database,
  principal: Principal,
  machineId: string,
  disk: SnapshotDisk,
): Promise<void> {
  const { projectId } = principal;
  await inTransaction(database, async (tx) => {
    const owner = await ownerOf(tx, principal, disk.snapshotId);
    const machine = await lockMachine(tx, principal, machineId);
    const volume = await lockDisk(tx, principal, disk.diskId);
    const snapshot = owner === null ? null : await lockOwned(tx, projectId, owner.snapshotId);
    if (!snapshot) {
      if (owner?.active) throw new RefusedError("snapshot-not-regular", "The snapshot is the machine as it is now.");
      throw new RefusedError("snapshot-unknown", `Snapshot ${disk.snapshotId} does not exist.`);
    }
    if (snapshot.previewOfId !== null) {
      throw new RefusedError("snapshot-not-regular", "The snapshot is the machine as it was before a preview.");
    }
    if (snapshot.status !== "available") {
      throw new RefusedError("snapshot-locked", `Snapshot ${snapshot.id} is ${snapshot.status}.`);
    }
    const part = snapshot.snapshots.find(({ volumeId }) => volumeId === volume.id);
    if (!part) throw new RefusedError("snapshot-lacks-disk", `Snapshot ${snapshot.id} has no disk ${volume.id}.`);
    refuseTwice(machine, volume.id);
    if (part.status !== "available" && part.status !== "backing-up") {
      throw new RefusedError("disks-locked", `Snapshot ${part.id} is ${part.status}.`, { disks: nameOf(volume) });
    }
    refuseHeld(machine);
    refusePower(machine);
    refusePlug(machine, disk.active);
    const what = { volumeId: volume.id, groupSnapshotId: snapshot.id, snapshotId: part.id };
    const { id: instanceId } = machine.instance;
    const how = { plugged: disk.active && !isReachable(machine), interface: disk.interface };
    await tx.snapshotAttachment.create({ data: { id: randomUUID(), projectId, instanceId, ...what, ...how } });
  });
}

/** What a snapshot's id means: a snapshot of a machine, or the machine as it is now. */
async function ownerOf(
  tx: Transaction,
  { projectId }: Principal,
  id: string,
): Promise<{ snapshotId: string; active: boolean } | null> {
  const known = knownId(id);
  if (known === null) return null;
  const active = (await tx.group.count({ where: { id: known, projectId, instanceId: { not: null } } })) > 0;
  return { snapshotId: known, active };
}

/** Locked after the volume, as a deletion locks it before its snapshots: none begins before the attachment is there. */
async function lockOwned(tx: Transaction, projectId: string, id: string) {
  await tx.$queryRaw`SELECT id FROM group_snapshots WHERE id = ${id}::uuid AND project_id = ${projectId} FOR NO KEY UPDATE`;
  return tx.groupSnapshot.findFirst({ where: { id, projectId, ovf: { not: null } }, include: { snapshots: true } });
}

export interface DiskChange {
  active?: boolean;
  bootable?: boolean;
  interface?: DiskInterface;
}

/**
 * Changes how a machine has a disk. `active` alone is refused where it is so already: an action says so, a change of the whole does not.
 *
 * @returns the operation by which a hypervisor is told; null where there is nothing to wait for
 * @throws NotFoundError when the machine has no such disk; RefusedError
 */
export async function changeDisk(
  database: Database,
  principal: Principal,
  machineId: string,
  diskId: string,
  change: DiskChange,
  { refuseSame = false }: { refuseSame?: boolean } = {},
): Promise<string | null> {
  return inTransaction(database, async (tx) => {
    const machine = await lockMachine(tx, principal, machineId);
    const isIt = ({ volumeId }: { volumeId: string }): boolean => volumeId === diskId.toLowerCase();
    const borrowed = machine.borrowed.find(isIt);
    const disk = borrowed ?? diskOf(machine, diskId.toLowerCase());
    if (change.active === disk.plugged && refuseSame) {
      const rule = change.active ? "disk-active" : "disk-inactive";
      throw new RefusedError(rule, `The disk is ${change.active ? "active" : "inactive"} already.`);
    }
    refuseHeld(machine);
    refuseBusyDisk(disk.volume);
    if (!disk.plugged) refusePlug(machine, change.active ?? false);
    const active = change.active ?? disk.plugged;
    // A disk of a snapshot may have a layer of its own, whatever has become of the machine.
    const leaves = !active && borrowed !== undefined && needsSocket(machine.instance.driver);
    const asks = active !== disk.plugged && (isReachable(machine) || leaves);
    const data = {
      ...(change.active !== undefined && !asks && { plugged: change.active }),
      ...(change.interface !== undefined && { interface: change.interface }),
    };
    const { volumeId, volume } = disk;
    const which = { attachmentId: disk.id, volumeId, backend: volume.backend };
    const snapshotId = borrowed?.snapshotId ?? null;
    const ask = () => (asks ? startPlug(tx, principal, machine, { ...which, snapshotId }, active) : null);
    if (borrowed) {
      await tx.snapshotAttachment.update({ where: { id: borrowed.id }, data });
      return ask();
    }
    await tx.attachment.update({ where: { id: disk.id }, data });
    const boots = machine.instance.bootVolumeId === disk.volumeId;
    if (change.bootable === true && !boots) await setBoot(tx, machine, disk.volumeId);
    if (change.bootable === false && boots) await setBoot(tx, machine, null);
    return ask();
  });
}

/** What a hypervisor has must be unplugged before. @throws RefusedError */
function refusePlugged({ instance }: MachineRow, { plugged, volume }: { plugged: boolean; volume: Volume }): void {
  if (!plugged || !needsSocket(instance.driver)) return;
  throw new RefusedError("disk-plugged", `Disk ${volume.id} is plugged into machine ${instance.id}.`);
}

/**
 * Detaches a disk, its own or that of a snapshot; the volume stays. `volumesOnly`: what is attached of a snapshot is refused, since whoever
 * asks means to remove the volume afterwards.
 *
 * @throws NotFoundError when the machine has no such disk; RefusedError
 */
export async function detachDisk(
  database: Database,
  principal: Principal,
  machineId: string,
  diskId: string,
  { volumesOnly = false }: { volumesOnly?: boolean } = {},
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const machine = await lockMachine(tx, principal, machineId);
    const id = diskId.toLowerCase();
    const borrowed = machine.borrowed.find(({ volumeId }) => volumeId === id);
    if (borrowed) {
      if (volumesOnly)
        throw new RefusedError("disk-of-snapshot", "The disk is that of a snapshot: it can be detached only.");
      refuseHeld(machine);
      refusePlugged(machine, borrowed);
      await tx.snapshotAttachment.delete({ where: { id: borrowed.id } });
      return;
    }
    const disk = diskOf(machine, id);
    refuseHeld(machine);
    refusePreviewed(machine);
    refuseBusyDisk(disk.volume);
    if (isReachable(machine)) refusePlugged(machine, disk);
    if (machine.instance.bootVolumeId === id) await setBoot(tx, machine, null);
    await detachWithin(tx, principal, id, disk.id);
  });
}
