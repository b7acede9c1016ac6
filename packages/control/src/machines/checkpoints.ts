import { type Database, inTransaction } from "../db/database.ts";
import { NotFoundError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { findCheckpoints, type MachineCheckpointRow, retireCheckpoint } from "../rows/machine-backups.ts";
import { getMachine, knownId, lockMachine, refuseHeld } from "./machines.ts";

/** Oldest first. @throws NotFoundError for the machine */
export async function listCheckpoints(
  database: Database,
  principal: Principal,
  machineId: string,
): Promise<MachineCheckpointRow[]> {
  const { instance } = await getMachine(database, principal, machineId);
  return findCheckpoints(database, { projectId: instance.projectId, instanceId: instance.id });
}

/** @throws NotFoundError for the machine, and for a checkpoint that is not one of it */
export async function getCheckpoint(
  database: Database,
  principal: Principal,
  machineId: string,
  id: string,
): Promise<MachineCheckpointRow> {
  const all = await listCheckpoints(database, principal, machineId);
  const found = all.find((checkpoint) => checkpoint.id === knownId(id));
  if (!found) throw new NotFoundError("Machine checkpoint", id);
  return found;
}

/**
 * Removes a checkpoint: any, not only the oldest, valid or not. What the disks record for it is removed when they are next opened for a
 * backup.
 *
 * @throws NotFoundError; RefusedError during a backup, and while an operation has the machine
 */
export async function removeCheckpoint(
  database: Database,
  principal: Principal,
  machineId: string,
  id: string,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const machine = await lockMachine(tx, principal, machineId);
    const { projectId, id: instanceId } = machine.instance;
    const found = (await findCheckpoints(tx, { projectId, instanceId })).find((row) => row.id === knownId(id));
    if (!found) throw new NotFoundError("Machine checkpoint", id);
    refuseHeld(machine);
    await retireCheckpoint(tx, found.id);
  });
}
