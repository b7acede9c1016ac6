import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { tellOvirtEvent } from "../events/ovirt-events.ts";
import type { Principal } from "../principal.ts";
import { lockQuota } from "../rows/quotas.ts";
import { lockVolume } from "../rows/volumes.ts";
import type { MachineConfiguration } from "./configuration.ts";
import { attachLocked, isDiskInterface } from "./disks.ts";
import { addMachine, getMachine, type MachineRow } from "./machines.ts";
import { freshMac } from "./nics.ts";
import type { OvfNic } from "./ovf/hardware.ts";
import { type ReadDisk, readOvf } from "./ovf/read.ts";

export interface FromOvf {
  ovf: string;
  /** What the request says wins over the OVF. */
  name?: string;
  configuration: Partial<MachineConfiguration>;
  /** The machine and its network interfaces get new ids, and the latter new addresses. */
  regenerateIds: boolean;
  /** Addresses that another machine has are replaced. */
  reassignBadMacs: boolean;
}

/** What was made, and what of the OVF could not be. */
export interface MadeFromOvf {
  machine: MachineRow;
  /** Addresses that another machine of the project has: these interfaces are there, unplugged. */
  clashes: { nic: string; mac: string; other: string }[];
  /** Disks of the OVF that do not exist, or that another machine has. */
  skipped: string[];
}

/**
 * Makes a machine of its description. Disks that exist and are free are attached; the others are skipped, and said.
 *
 * @throws RefusedError for an OVF that cannot be read, and as `createMachine`; nothing is left behind
 */
export function createMachineFromOvf(
  database: Database,
  config: Config,
  principal: Principal,
  request: FromOvf,
): Promise<MadeFromOvf> {
  return inTransaction(database, async (tx) => {
    const { projectId } = principal;
    await lockQuota(tx, projectId);
    const seen = readOvf(request.ovf, () => false);
    const wanted = seen.nics.map(({ id }) => id);
    const known = await tx.machineNic.findMany({ where: { projectId, id: { in: wanted } }, select: { id: true } });
    const taken = new Set(known.map(({ id }) => id));
    const read = readOvf(request.ovf, (id) => request.regenerateIds || taken.has(id));
    const id = await addMachine(tx, config, principal, {
      id: request.regenerateIds ? null : read.id,
      name: request.name ?? read.name,
      configuration: { ...read.configuration, ...request.configuration },
      content: read.content,
    });
    const clashes = await addNics(tx, projectId, id, read.nics, request);
    const skipped = await attachAll(tx, principal, id, read.disks);
    const machine = request.name ?? read.name;
    const tell = (kind: "mac-clash" | "disk-skipped", details: Record<string, string>): Promise<void> =>
      tellOvirtEvent(tx, principal, { kind, instanceId: id, details: { machine, ...details } });
    for (const clash of clashes) await tell("mac-clash", clash);
    for (const disk of skipped) await tell("disk-skipped", { disk });
    return { machine: await getMachine(tx, principal, id), clashes, skipped };
  });
}

/**
 * Addresses are kept. One that another machine of the project has leaves the interface unplugged: neither machine loses its network, and
 * whoever restores a machine beside the original decides.
 */
async function addNics(
  tx: Transaction,
  projectId: string,
  instanceId: string,
  nics: readonly OvfNic[],
  { regenerateIds, reassignBadMacs }: FromOvf,
): Promise<MadeFromOvf["clashes"]> {
  const clashes: MadeFromOvf["clashes"] = [];
  const own = new Set<string>();
  for (const nic of nics) {
    const other = await tx.machineNic.findFirst({
      where: { projectId, mac: nic.mac },
      include: { machine: { include: { instance: true } } },
    });
    const isFresh = regenerateIds || nic.mac === "" || (other !== null && reassignBadMacs) || own.has(nic.mac);
    const mac = isFresh ? await freshMac(tx, projectId) : nic.mac;
    const clash = !isFresh && other !== null;
    if (clash) clashes.push({ nic: nic.name, mac, other: other.machine.instance.name });
    own.add(mac);
    const state = clash ? { linked: false, plugged: false } : {};
    await tx.machineNic.create({ data: { ...nic, ...state, projectId, instanceId, mac } });
  }
  return clashes;
}

/** @returns names of the disks that were skipped */
async function attachAll(
  tx: Transaction,
  principal: Principal,
  machineId: string,
  disks: readonly ReadDisk[],
): Promise<string[]> {
  const skipped: string[] = [];
  for (const disk of disks) {
    const found = await tx.volume.findMany({
      where: { id: { in: disk.candidates }, projectId: principal.projectId, status: "available", groupId: null },
    });
    const id = disk.candidates.find((candidate) => found.some((volume) => volume.id === candidate));
    const volume = id === undefined ? null : await lockVolume(tx, id);
    if (volume?.status !== "available" || volume.attachments.length > 0) {
      skipped.push(disk.alias || (disk.candidates[0] ?? ""));
      continue;
    }
    const machine = await getMachine(tx, principal, machineId);
    await attachLocked(tx, principal, machine, volume, {
      active: disk.plugged,
      bootable: disk.bootable,
      readOnly: disk.readOnly,
      interface: isDiskInterface(disk.interface) ? disk.interface : "virtio",
    });
  }
  return skipped;
}
