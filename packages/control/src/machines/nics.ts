import { randomBytes, randomUUID } from "node:crypto";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { NotFoundError, RefusedError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import type { MachineNic } from "../rows/machines.ts";
import { lockQuota } from "../rows/quotas.ts";
import { lockMachine, type MachineRow, needRecord, refuseHeld } from "./machines.ts";
import { type NicInterface, nicInterfaces } from "./ovf/hardware.ts";

export const isNicInterface = (text: string): text is NicInterface => Object.hasOwn(nicInterfaces, text);

const nicsMax = 64;
const macPattern = /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/;

/** The first half of the addresses that oVirt gives, too. */
const macPrefix = "56:6f";

/** An address that no machine of the project has. The project's quota is locked. */
export async function freshMac(tx: Transaction, projectId: string): Promise<string> {
  for (;;) {
    const rest = [...randomBytes(4)].map((byte) => byte.toString(16).padStart(2, "0")).join(":");
    const mac = `${macPrefix}:${rest}`;
    if ((await tx.machineNic.count({ where: { projectId, mac } })) === 0) return mac;
  }
}

export interface NicChange {
  name?: string;
  /** Lower case, with colons. */
  mac?: string;
  network?: string | null;
  interface?: NicInterface;
  linked?: boolean;
  plugged?: boolean;
}

/** @throws RefusedError for a name that another of the machine has, an address that is none, or that one of the project has */
async function checkNic(tx: Transaction, machine: MachineRow, nicId: string | null, change: NicChange): Promise<void> {
  const others = machine.nics.filter(({ id }) => id !== nicId);
  const { name, mac } = change;
  if (name !== undefined && (name === "" || name.length > 255)) {
    throw new RefusedError("configuration-invalid", "The name of a network interface is invalid.", { field: "name" });
  }
  if (name !== undefined && others.some((nic) => nic.name === name)) {
    throw new RefusedError("nic-name-taken", `A network interface named ${name} exists already.`, { name });
  }
  if (mac === undefined) return;
  if (!macPattern.test(mac)) {
    throw new RefusedError("configuration-invalid", `${mac} is no MAC address.`, { field: "mac.address" });
  }
  const { projectId } = machine.instance;
  const other = await tx.machineNic.findFirst({
    where: { projectId, mac, ...(nicId !== null && { id: { not: nicId } }) },
  });
  if (other) throw new RefusedError("mac-taken", `MAC address ${mac} is in use.`, { mac });
}

/** Locks what the addresses of the project depend on, then the machine. */
async function lockForNics(tx: Transaction, principal: Principal, id: string): Promise<MachineRow> {
  await lockQuota(tx, principal.projectId);
  const machine = await lockMachine(tx, principal, id);
  refuseHeld(machine);
  return machine;
}

/** Adds a network interface; without an address it gets a free one. @throws NotFoundError, RefusedError */
export function addNic(
  database: Database,
  principal: Principal,
  machineId: string,
  nic: NicChange & { name: string },
): Promise<MachineNic> {
  return inTransaction(database, async (tx) => {
    const machine = await lockForNics(tx, principal, machineId);
    if (machine.nics.length >= nicsMax) {
      throw new RefusedError("configuration-invalid", `A machine has at most ${nicsMax} network interfaces.`, {
        field: "nics",
      });
    }
    await checkNic(tx, machine, null, nic);
    await needRecord(tx, machine);
    const { projectId, id: instanceId } = machine.instance;
    const mac = nic.mac ?? (await freshMac(tx, projectId));
    return tx.machineNic.create({ data: { ...nic, id: randomUUID(), projectId, instanceId, mac } });
  });
}

function nicOf(machine: MachineRow, nicId: string): MachineNic {
  const nic = machine.nics.find(({ id }) => id === nicId.toLowerCase());
  if (!nic) throw new NotFoundError("Network interface", nicId);
  return nic;
}

/** @throws NotFoundError, RefusedError */
export function updateNic(
  database: Database,
  principal: Principal,
  machineId: string,
  nicId: string,
  change: NicChange,
): Promise<MachineNic> {
  return inTransaction(database, async (tx) => {
    const machine = await lockForNics(tx, principal, machineId);
    const { id, projectId } = nicOf(machine, nicId);
    await checkNic(tx, machine, id, change);
    return tx.machineNic.update({ where: { projectId_id: { projectId, id } }, data: change });
  });
}

/** @throws NotFoundError, RefusedError */
export async function removeNic(
  database: Database,
  principal: Principal,
  machineId: string,
  nicId: string,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { id, projectId } = nicOf(await lockForNics(tx, principal, machineId), nicId);
    await tx.machineNic.delete({ where: { projectId_id: { projectId, id } } });
  });
}
