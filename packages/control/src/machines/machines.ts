import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import { type Database, inTransaction, type Prisma, type Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { NotFoundError, RefusedError } from "../errors.ts";
import { addInstanceGroup, getInstanceOf, type InstanceRow, needsSocket, withDisks } from "../groups/instances.ts";
import type { Principal } from "../principal.ts";
import { lockGroup } from "../rows/groups.ts";
import type { MachineNic, MachineRecord, SnapshotAttachment } from "../rows/machines.ts";
import { lockQuota } from "../rows/quotas.ts";
import type { Volume } from "../rows/volumes.ts";
import {
  checkConfiguration,
  defaultConfiguration,
  type MachineConfiguration,
  readConfiguration,
} from "./configuration.ts";

/** A machine as a dialect shows it: the instance, what a hypervisor has to know of it, and what hangs on it. */
export interface MachineRow {
  instance: InstanceRow;
  settings: MachineConfiguration;
  nics: MachineNic[];
  /** Its own disks, boot disk first. */
  disks: MachineDisk[];
  /** Disks of other machines' snapshots that are attached to it. */
  borrowed: (SnapshotAttachment & { volume: Volume })[];
  /** The kind of the operation that has the machine to itself. */
  heldBy: string | null;
  /** The backup by changed blocks that has it locked. */
  backupId: string | null;
  /** While it is shown as it was at the snapshot `of`: the snapshot of how it was before. */
  preview: { id: string; of: string } | null;
}

export type MachineDisk = InstanceRow["disks"][number] & { volume: Volume };

export const listedMax = 10_000;

const nicOrder = [{ name: "asc" as const }, { id: "asc" as const }];

/** Reads what belongs to instances, of one project. */
async function withParts(
  database: Database | Transaction,
  projectId: string,
  instances: readonly InstanceRow[],
): Promise<MachineRow[]> {
  const ids = instances.map(({ id }) => id);
  const of = { projectId, instanceId: { in: ids } };
  const records = await database.machine.findMany({
    where: of,
    select: { instanceId: true, configuration: true, nics: { orderBy: nicOrder } },
  });
  const volumeIds = instances.flatMap(({ disks }) => disks.map(({ volumeId }) => volumeId));
  const volumes = await database.volume.findMany({ where: { id: { in: volumeIds } } });
  const borrowed = await database.snapshotAttachment.findMany({
    where: of,
    include: { volume: true },
    orderBy: [{ createdAt: "asc" }, { id: "asc" }],
  });
  const holders = await database.operation.findMany({
    where: { id: { in: instances.flatMap(({ group }) => group?.operationId ?? []) } },
    select: { id: true, kind: true },
  });
  const backups = await database.machineBackup.findMany({
    where: { ...of, endedAt: null },
    select: { id: true, instanceId: true },
  });
  const previews = await database.groupSnapshot.findMany({
    where: { ...of, previewOfId: { not: null } },
    select: { id: true, instanceId: true, previewOfId: true },
  });
  const previewOf = (id: string): MachineRow["preview"] => {
    const found = previews.find(({ instanceId }) => instanceId === id);
    return found?.previewOfId ? { id: found.id, of: found.previewOfId } : null;
  };
  return instances.map((instance) => {
    const record = records.find(({ instanceId }) => instanceId === instance.id);
    return {
      instance,
      settings: readConfiguration(record?.configuration),
      nics: record?.nics ?? [],
      disks: instance.disks.flatMap((disk) => {
        const volume = volumes.find(({ id }) => id === disk.volumeId);
        return volume ? [{ ...disk, volume }] : [];
      }),
      borrowed: borrowed.filter(({ instanceId }) => instanceId === instance.id),
      heldBy: holders.find(({ id }) => id === instance.group?.operationId)?.kind ?? null,
      backupId: backups.find(({ instanceId }) => instanceId === instance.id)?.id ?? null,
      preview: previewOf(instance.id),
    };
  });
}

/** A machine of the caller's project. @throws NotFoundError */
export async function getMachine(
  database: Database | Transaction,
  { projectId }: Principal,
  id: string,
): Promise<MachineRow> {
  const [machine] = await withParts(database, projectId, [await getInstanceOf(database, projectId, id)]);
  if (!machine) throw new NotFoundError("Instance", id);
  return machine;
}

/** All machines of the caller's project, oldest first. */
export async function listMachines(database: Database, { projectId }: Principal): Promise<MachineRow[]> {
  const rows = await database.instance.findMany({
    where: { projectId },
    include: { group: true },
    orderBy: [{ createdAt: "asc" }, { id: "asc" }],
    take: listedMax,
  });
  return withParts(database, projectId, await withDisks(database, rows));
}

/** Locks a machine of the caller's project, after its group. @throws NotFoundError */
export async function lockMachine(tx: Transaction, principal: Principal, id: string): Promise<MachineRow> {
  const { projectId } = principal;
  const seen = await getInstanceOf(tx, projectId, id);
  if (seen.group) await lockGroup(tx, seen.group.id);
  await tx.$queryRaw`SELECT id FROM instances WHERE project_id = ${projectId} AND id = ${seen.id}::uuid FOR UPDATE`;
  return getMachine(tx, principal, id);
}

const refusals = {
  "group-snapshot": "during-snapshot",
  "group-delete": "during-snapshot",
  "group-revert": "during-snapshot",
  "group-backup": "during-backup",
} as const;

/** @throws RefusedError while an operation has the machine to itself, and during a backup of it */
export function refuseHeld({ instance, heldBy, backupId }: MachineRow): void {
  if (backupId !== null) throw new RefusedError("during-backup", `Machine ${instance.id} is in backup ${backupId}.`);
  if (instance.group?.operationId == null) return;
  const rule = refusals[heldBy as keyof typeof refusals] ?? "machine-locked";
  throw new RefusedError(rule, `An operation is in progress on machine ${instance.id}.`);
}

/** @throws RefusedError while the machine is shown as it was at a snapshot: nothing is built on what may be undone */
export function refusePreviewed({ instance, preview }: MachineRow): void {
  if (preview === null) return;
  throw new RefusedError("in-preview", `Machine ${instance.id} is previewing snapshot ${preview.of}.`);
}

/** Another machine of the project that has the name. The project's quota is locked, so that none gets it meanwhile. */
async function refuseName(tx: Transaction, projectId: string, name: string, id: string | null): Promise<void> {
  const other = await tx.instance.findFirst({ where: { projectId, name, ...(id !== null && { id: { not: id } }) } });
  if (other) throw new RefusedError("machine-name-taken", `A machine named ${name} exists already.`, { name });
}

export interface NewMachine {
  id: string | null;
  name: string;
  configuration: Partial<MachineConfiguration>;
}

/** A machine that is off, without disks, in an instance group of its own. @throws RefusedError for a name or id that is taken */
export function createMachine(
  database: Database,
  config: Config,
  principal: Principal,
  machine: NewMachine,
): Promise<MachineRow> {
  return inTransaction(database, async (tx) => {
    const id = await addMachine(tx, config, principal, { ...machine, content: null });
    return getMachine(tx, principal, id);
  });
}

/** As `createMachine`, in the caller's transaction. @returns its id */
export async function addMachine(
  tx: Transaction,
  config: Config,
  principal: Principal,
  machine: NewMachine & { content: string | null },
): Promise<string> {
  const { projectId, userId } = principal;
  const { name, content } = machine;
  const id = machine.id ?? randomUUID();
  const configuration = checkConfiguration({ ...defaultConfiguration, ...machine.configuration });
  await lockQuota(tx, projectId);
  const [taken] = await tx.instance.findMany({ where: { projectId, id }, take: 1 });
  if (taken) {
    throw new RefusedError("machine-id-taken", `Machine ${id} exists already.`, { name: taken.name });
  }
  await refuseName(tx, projectId, name, null);
  await tx.instance.create({ data: { id, projectId, userId, name, powerState: "SHUTOFF", driver: "record" } });
  await tx.machine.create({ data: { projectId, instanceId: id, configuration, content } });
  await addInstanceGroup(tx, config, principal, { id, projectId, name });
  return id;
}

/** What is known of a machine besides its disks, in its row, which is made where an instance has none. The instance is locked. */
export async function needRecord(tx: Transaction, { instance }: MachineRow): Promise<MachineRecord> {
  const of = { projectId: instance.projectId, instanceId: instance.id };
  await tx.machine.createMany({ data: [{ ...of, configuration: defaultConfiguration }], skipDuplicates: true });
  return tx.machine.findUniqueOrThrow({ where: { projectId_instanceId: of } });
}

export interface MachineChange {
  name?: string;
  configuration?: Partial<MachineConfiguration>;
}

/** @throws NotFoundError; RefusedError while an operation has the machine, for a name that is taken, and for values out of bounds */
export function updateMachine(
  database: Database,
  principal: Principal,
  id: string,
  change: MachineChange,
): Promise<MachineRow> {
  return inTransaction(database, async (tx) => {
    const { projectId } = principal;
    if (change.name !== undefined) await lockQuota(tx, projectId);
    const machine = await lockMachine(tx, principal, id);
    refuseHeld(machine);
    const { instance } = machine;
    if (change.name !== undefined) await refuseName(tx, projectId, change.name, instance.id);
    await needRecord(tx, machine);
    const configuration = checkConfiguration({ ...machine.settings, ...change.configuration });
    const key = { projectId, instanceId: instance.id };
    await tx.machine.update({ where: { projectId_instanceId: key }, data: { configuration } });
    const data: Prisma.InstanceUpdateInput = {
      ...(change.name !== undefined && { name: change.name }),
      updatedAt: new Date(),
    };
    await tx.instance.update({ where: { projectId_id: { projectId, id: instance.id } }, data });
    return getMachine(tx, principal, id);
  });
}

/** What a client wants of the power of a machine. */
export type PowerVerb = "start" | "stop" | "shutdown";

/**
 * Records that a machine whose record is trusted runs, or is off. One that a hypervisor speaks for is not controlled here: its state is
 * what the hypervisor says.
 *
 * @throws NotFoundError; RefusedError in a state that does not allow it, and while an operation has the machine or its disks
 */
export function setPower(database: Database, principal: Principal, id: string, verb: PowerVerb): Promise<MachineRow> {
  return inTransaction(database, async (tx) => {
    const machine = await lockMachine(tx, principal, id);
    const { instance } = machine;
    if (needsSocket(instance.driver)) {
      const text = `Machine ${instance.id} is controlled by its hypervisor, which is not asked to ${verb} it.`;
      throw new RefusedError("power-not-controlled", text);
    }
    if (verb === "start" && instance.powerState === "ACTIVE") {
      throw new RefusedError("machine-running", `Machine ${instance.id} is running.`);
    }
    if (verb !== "start" && instance.powerState === "SHUTOFF") {
      throw new RefusedError("machine-not-running", `Machine ${instance.id} is not running.`);
    }
    refuseHeld(machine);
    const powerState = verb === "start" ? "ACTIVE" : "SHUTOFF";
    const key = { projectId: instance.projectId, id: instance.id };
    await tx.instance.update({ where: { projectId_id: key }, data: { powerState, updatedAt: new Date() } });
    return getMachine(tx, principal, id);
  });
}

/** Ids from a body that are not UUIDs match nothing. */
export const knownId = (id: string): string | null => (isUuid(id) ? id.toLowerCase() : null);
