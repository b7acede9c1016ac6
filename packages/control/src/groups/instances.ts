import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import { type Database, inTransaction, Prisma, type Transaction } from "../db/database.ts";
import { isUuid, matching } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { mayLook, type Principal, seesAll, visibleTo } from "../principal.ts";
import type { Json } from "../queue/tasks.ts";
import {
  addGroup,
  type Group,
  type Instance,
  instanceGroupType,
  lockGroup,
  refuseBusy,
  removeGroup,
} from "../rows/groups.ts";
import { type Attachment, findVolume } from "../rows/volumes.ts";
import { attachWithin, detachWithin, joinInstanceGroup } from "../volumes/attach.ts";

/** Power states that a hypervisor reports for a virtual machine; a record may contain any of them. */
export const powerStates = ["ACTIVE", "SHUTOFF", "PAUSED", "SUSPENDED", "MIGRATING", "ERROR"] as const;
export type InstancePowerState = (typeof powerStates)[number];

/** How a virtual machine is controlled: not at all, its record being trusted, or through QEMU's monitor. */
export const instanceDrivers = ["record", "qmp"] as const;
export type InstanceDriver = (typeof instanceDrivers)[number];
const driversWithSocket: ReadonlySet<string> = new Set<InstanceDriver>(["qmp"]);
/** Whether a driver controls the machine through a socket, which must be named. */
export const needsSocket = (driver: string): boolean => driversWithSocket.has(driver);

/** An instance with its disks, boot disk first, and its group. */
export type InstanceRow = Instance & { disks: Attachment[]; group: Group | null };

/** Boot disk first, then by the guest's device names. */
export function inDiskOrder<T extends { volumeId: string; device: string | null }>(
  disks: readonly T[],
  bootVolumeId: string | null,
): T[] {
  const key = (disk: T): string => `${disk.volumeId === bootVolumeId ? 0 : 1}${disk.device ?? ""} ${disk.volumeId}`;
  return disks.toSorted((one, other) => (key(one) < key(other) ? -1 : 1));
}

/**
 * Disks are only attachments of volumes in the instance's own project: whoever attaches a volume may name any server, so attachments of
 * other projects do not count.
 */
export async function withDisks(
  database: Database | Transaction,
  rows: readonly (Instance & { group: Group | null })[],
): Promise<InstanceRow[]> {
  const attachments = await database.attachment.findMany({
    where: {
      serverId: { in: rows.map((row) => row.id) },
      status: "attached",
      volume: { projectId: { in: rows.map((row) => row.projectId) } },
    },
    include: { volume: { select: { projectId: true } } },
  });
  return rows.map((row) => {
    const own = attachments.filter((a) => a.serverId === row.id && a.volume.projectId === row.projectId);
    const disks = own.map(({ volume: _volume, ...disk }) => disk);
    return { ...row, disks: inDiskOrder(disks, row.bootVolumeId) };
  });
}

/**
 * Ids are unique within a project. Where several projects use the id, an admin gets the one in the admin's own project.
 *
 * @throws NotFoundError for an unknown id or another project's; InvalidError when an admin's id is ambiguous
 */
export async function getInstance(
  database: Database | Transaction,
  principal: Principal,
  id: string,
): Promise<InstanceRow> {
  const found = isUuid(id)
    ? await database.instance.findMany({ where: { id, ...visibleTo(principal) }, include: { group: true } })
    : [];
  const [only, ...others] = found;
  const chosen = others.length === 0 ? only : found.find((row) => row.projectId === principal.projectId);
  if (only && !chosen) {
    throw new InvalidError("request", `Instance ${id} exists in several projects: ask with a token of the right one.`);
  }
  const [instance] = chosen ? await withDisks(database, [chosen]) : [];
  if (!instance) throw new NotFoundError("Instance", id);
  return instance;
}

/** The instance of a given project. @throws NotFoundError */
export async function getInstanceOf(tx: Database | Transaction, projectId: string, id: string): Promise<InstanceRow> {
  const row = isUuid(id)
    ? await tx.instance.findUnique({ where: { projectId_id: { projectId, id } }, include: { group: true } })
    : null;
  const [instance] = row ? await withDisks(tx, [row]) : [];
  if (!instance) throw new NotFoundError("Instance", id);
  return instance;
}

export interface InstanceQuery {
  /** A part of the name, or how the id begins. */
  text?: string | undefined;
  powerState?: string | undefined;
  /** The last one of the page before. */
  after?: { projectId: string; id: string } | undefined;
  limit: number;
}

/**
 * Newest first; only the caller's project, unless one who sees all asks.
 *
 * @throws NotFoundError where the one before is not there any more, or another project's
 */
export async function listInstances(
  database: Database,
  principal: Principal,
  { text, powerState, after, limit }: InstanceQuery,
): Promise<InstanceRow[]> {
  const every = Prisma.sql`true`;
  let beyond = every;
  if (after !== undefined) {
    const last = await database.instance.findUnique({ where: { projectId_id: after } });
    if (!last || !mayLook(principal, last)) throw new NotFoundError("Instance", after.id);
    beyond = Prisma.sql`(i.created_at, i.id, i.project_id) < (${last.createdAt}::timestamptz, ${last.id}::uuid, ${last.projectId})`;
  }
  const keys = await database.$queryRaw<{ projectId: string; id: string }[]>`
    SELECT i.project_id AS "projectId", i.id FROM instances i
    WHERE ${seesAll(principal) ? every : Prisma.sql`i.project_id = ${principal.projectId}`} AND ${beyond}
      AND ${text === undefined ? every : matching("i", text)} AND ${powerState === undefined ? every : Prisma.sql`i.power_state = ${powerState}`}
    ORDER BY i.created_at DESC, i.id DESC, i.project_id DESC LIMIT ${limit}`;
  const rows = await database.instance.findMany({
    where: { OR: keys },
    include: { group: true },
    orderBy: [{ createdAt: "desc" }, { id: "desc" }, { projectId: "desc" }],
  });
  return withDisks(database, rows);
}

export interface NewInstance {
  id: string | null;
  projectId: string;
  name: string;
  powerState: InstancePowerState;
  driver: InstanceDriver;
  qmpSocket: string | null;
  agentSocket: string | null;
  freezeMountpoints: string[] | null;
  bootVolumeId: string | null;
  configuration: { [key: string]: Json };
}

/** JSON columns, in which null is a value of its own. */
function columnsOf<T extends Pick<InstanceChange, "configuration" | "freezeMountpoints">>(change: T) {
  const { configuration, freezeMountpoints, ...columns } = change;
  return {
    ...columns,
    ...(configuration !== undefined && { configuration: configuration as Prisma.InputJsonObject }),
    ...(freezeMountpoints !== undefined && { freezeMountpoints: freezeMountpoints ?? Prisma.DbNull }),
  };
}

/** The disk that a machine boots from by default. */
const bootDevice = "/dev/vda";

/**
 * Registers a virtual machine. One that boots from a volume gets an instance group, and the volume is attached to it.
 *
 * @throws InvalidError when the id is taken or the volume cannot be attached; NotFoundError
 */
export async function createInstance(
  database: Database,
  config: Config,
  principal: Principal,
  instance: NewInstance,
): Promise<InstanceRow> {
  const id = instance.id ?? randomUUID();
  return inTransaction(database, async (tx) => {
    const made = await tx.instance.createManyAndReturn({
      data: [{ ...columnsOf(instance), id, userId: principal.userId }],
      skipDuplicates: true,
    });
    if (made.length === 0) throw new InvalidError("request", `Instance ${id} already exists.`);
    if (instance.bootVolumeId !== null)
      await bootFrom(tx, config, principal, { ...instance, id }, instance.bootVolumeId);
    return getInstanceOf(tx, instance.projectId, id);
  });
}

/** Makes the volume the instance's first disk, and gives the instance a group. */
async function bootFrom(
  tx: Transaction,
  config: Config,
  principal: Principal,
  instance: { id: string; projectId: string; name: string },
  volumeId: string,
): Promise<void> {
  await findDisk(tx, principal, instance, volumeId);
  await addInstanceGroup(tx, config, principal, instance);
  await attachDisk(tx, principal, instance.id, { volumeId, device: bootDevice });
}

/** Creates the instance's group, unless it has one; disks that are attached already become members. */
export async function addInstanceGroup(
  tx: Transaction,
  config: Config,
  principal: Principal,
  { id, projectId, name }: { id: string; projectId: string; name: string },
): Promise<void> {
  if ((await tx.group.count({ where: { projectId, instanceId: id } })) > 0) return;
  await addGroup(tx, config, {
    projectId,
    userId: principal.userId,
    name: `instance group of ${name}`.slice(0, 255),
    description: null,
    groupTypeId: instanceGroupType,
    availabilityZone: null,
    instanceId: id,
  });
  await joinInstanceGroup(tx, projectId, id);
}

/** A disk must belong to the instance's own project. @throws NotFoundError */
async function findDisk(tx: Transaction, principal: Principal, instance: { projectId: string }, volumeId: string) {
  const volume = await findVolume(tx, principal, volumeId);
  if (volume.projectId !== instance.projectId) throw new NotFoundError("Volume", volumeId);
  return volume;
}

async function attachDisk(
  tx: Transaction,
  principal: Principal,
  instanceId: string,
  disk: { volumeId: string; device: string },
): Promise<void> {
  const attachment = { serverId: instanceId, hostName: null, device: disk.device, mode: "rw" } as const;
  await attachWithin(tx, principal, disk.volumeId, attachment);
}

const keyOf = ({ projectId, id }: Pick<Instance, "projectId" | "id">) => ({ projectId_id: { projectId, id } });

/** Locks the instance, after its group: nothing that an operation on the group relies on can change. */
async function lockInstance(tx: Transaction, principal: Principal, id: string): Promise<InstanceRow> {
  const seen = await getInstance(tx, principal, id);
  if (seen.group) await lockGroup(tx, seen.group.id);
  await tx.$queryRaw`SELECT id FROM instances WHERE project_id = ${seen.projectId} AND id = ${seen.id}::uuid FOR UPDATE`;
  return getInstanceOf(tx, seen.projectId, id);
}

export interface InstanceChange {
  name?: string;
  powerState?: InstancePowerState;
  bootVolumeId?: string;
  driver?: InstanceDriver;
  qmpSocket?: string | null;
  agentSocket?: string | null;
  freezeMountpoints?: string[] | null;
  configuration?: { [key: string]: Json };
}

/** @throws InvalidError during a backup by changed blocks, which holds the machine and its disks as they are */
async function refuseBackedUp(tx: Transaction, { projectId, id: instanceId }: InstanceRow): Promise<void> {
  const backup = await tx.machineBackup.findFirst({ where: { projectId, instanceId, endedAt: null } });
  if (backup) throw new InvalidError("request", `Instance ${instanceId} is being backed up.`);
}

/**
 * Changes what is known about an instance. It gets a group when the change names its boot volume, or starts it and it boots from a volume.
 *
 * @throws InvalidError for a boot volume that is not one of its disks, or while an operation on its group is live; NotFoundError
 */
export async function updateInstance(
  database: Database,
  config: Config,
  principal: Principal,
  id: string,
  change: InstanceChange,
): Promise<InstanceRow> {
  await inTransaction(database, async (tx) => {
    const instance = await lockInstance(tx, principal, id);
    // A machine started while its disks are being replaced would run on disks from two points in time.
    const { name: _name, configuration: _configuration, ...vital } = change;
    if (instance.group && Object.keys(vital).length > 0) refuseBusy(instance.group);
    if (Object.keys(vital).length > 0) await refuseBackedUp(tx, instance);
    if (change.bootVolumeId !== undefined && !instance.disks.some((disk) => disk.volumeId === change.bootVolumeId)) {
      throw new InvalidError("request", `Volume ${change.bootVolumeId} is not attached to instance ${id}.`);
    }
    const data = { ...columnsOf(change), updatedAt: new Date() };
    await tx.instance.update({ where: keyOf(instance), data });
    const started = change.powerState === "ACTIVE" && instance.powerState !== "ACTIVE";
    if (change.bootVolumeId !== undefined || (started && instance.bootVolumeId !== null)) {
      await addInstanceGroup(tx, config, principal, instance);
    }
  });
  return getInstance(database, principal, id);
}

const letters = "abcdefghijklmnopqrstuvwxyz";

/** The first virtio device name that no disk has. */
export function nextDevice(disks: readonly { device: string | null }[]): string {
  const names = [...letters, ...[...letters].flatMap((first) => [...letters].map((second) => `${first}${second}`))];
  const taken = new Set(disks.map((disk) => disk.device));
  const free = names.map((name) => `/dev/vd${name}`).find((device) => !taken.has(device));
  if (free === undefined) throw new InvalidError("request", "The instance has no device name left.");
  return free;
}

/**
 * Attaches a volume as a disk of the instance, and adds it to the instance's group. Idempotent for the same disk.
 *
 * @throws InvalidError unless the volume is available and the device name free, or while an operation on the group is live; NotFoundError
 */
export async function attachInstanceVolume(
  database: Database,
  principal: Principal,
  id: string,
  disk: { volumeId: string; device: string | null },
): Promise<InstanceRow> {
  await inTransaction(database, async (tx) => {
    const instance = await lockInstance(tx, principal, id);
    if (instance.group) refuseBusy(instance.group);
    await refuseBackedUp(tx, instance);
    const volume = await findDisk(tx, principal, instance, disk.volumeId);
    const others = instance.disks.filter((other) => other.volumeId !== volume.id);
    const device = disk.device ?? nextDevice(others);
    if (others.some((other) => other.device === device)) {
      throw new InvalidError("request", `Device ${device} of instance ${id} is in use already.`);
    }
    await attachDisk(tx, principal, instance.id, { volumeId: volume.id, device });
  });
  return getInstance(database, principal, id);
}

/**
 * Detaches a disk from the instance, and removes it from the instance's group. A disk that is not attached is not an error.
 *
 * @throws InvalidError for the disk that it boots from, or while an operation on the group is live; NotFoundError
 */
export async function detachInstanceVolume(
  database: Database,
  principal: Principal,
  id: string,
  volumeId: string,
): Promise<InstanceRow> {
  await inTransaction(database, async (tx) => {
    const instance = await lockInstance(tx, principal, id);
    if (instance.group) refuseBusy(instance.group);
    await refuseBackedUp(tx, instance);
    const { id: found } = await findVolume(tx, principal, volumeId);
    if (found === instance.bootVolumeId) {
      throw new InvalidError("request", `Volume ${volumeId} is what instance ${id} boots from.`);
    }
    const disk = instance.disks.find((other) => other.volumeId === found);
    if (disk) await detachWithin(tx, principal, found, disk.id);
  });
  return getInstance(database, principal, id);
}

/**
 * Removes an instance: its disks are detached and its group is deleted; the volumes stay.
 *
 * @throws InvalidError while its group has backups, or an operation on it is live; NotFoundError
 */
export async function deleteInstance(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const instance = await lockInstance(tx, principal, id);
    await refuseBackedUp(tx, instance);
    if (instance.group) await removeGroup(tx, instance.group);
    for (const { volumeId, id: attachment } of instance.disks) await detachWithin(tx, principal, volumeId, attachment);
    await tx.snapshotAttachment.deleteMany({ where: { projectId: instance.projectId, instanceId: instance.id } });
    await tx.instance.delete({ where: keyOf(instance) });
  });
}
