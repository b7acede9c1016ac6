import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { RefusedError } from "../errors.ts";
import { needsSocket } from "../groups/instances.ts";
import type { Principal } from "../principal.ts";
import { removeGroup } from "../rows/groups.ts";
import { refuseAttachedSnapshot } from "../rows/machines.ts";
import { lockQuota } from "../rows/quotas.ts";
import { detachWithin } from "../volumes/attach.ts";
import { startVolumeDelete } from "../volumes/delete.ts";
import { startSnapshotDelete } from "../volumes/snapshot-delete.ts";
import { refuseBusyDisk } from "./disks.ts";
import { lockMachine, type MachineRow, refuseHeld, refusePreviewed } from "./machines.ts";

/**
 * Removes a machine that is off with its snapshots, and its disks unless they are to be kept. What it had borrowed of other machines'
 * snapshots is given back.
 *
 * @throws NotFoundError; RefusedError while it runs, while an operation has it or one of its disks, with backups, and while a disk of one of
 * its snapshots is attached elsewhere
 */
export async function removeMachine(
  database: Database,
  principal: Principal,
  machineId: string,
  { keepDisks }: { keepDisks: boolean },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await lockQuota(tx, principal.projectId);
    const machine = await lockMachine(tx, principal, machineId);
    const { instance, disks } = machine;
    if (instance.powerState !== "SHUTOFF")
      throw new RefusedError("machine-running", `Machine ${machineId} is running.`);
    if (machine.settings.deleteProtected) {
      throw new RefusedError("machine-protected", `Machine ${machineId} is protected against deletion.`);
    }
    refuseHeld(machine);
    refusePreviewed(machine);
    for (const { volume } of disks) refuseBusyDisk(volume);
    const plugged = machine.borrowed.find((disk) => disk.plugged && needsSocket(instance.driver));
    if (plugged) throw new RefusedError("disk-plugged", `Disk ${plugged.volumeId} of a snapshot is plugged in.`);
    const snapshotIds = await dissolveSnapshots(tx, machine);
    for (const disk of disks) await detachWithin(tx, principal, disk.volumeId, disk.id);
    if (instance.group) await removeGroup(tx, instance.group);
    const of = { projectId: instance.projectId, instanceId: instance.id };
    await tx.snapshotAttachment.deleteMany({ where: of });
    await tx.instance.delete({ where: { projectId_id: { projectId: of.projectId, id: of.instanceId } } });
    if (keepDisks) for (const id of snapshotIds) await startSnapshotDelete(tx, principal, id, null);
    else {
      const gone = new Set(disks.map(({ volumeId }) => volumeId));
      for (const id of [...gone].sort())
        await startVolumeDelete(tx, principal, id, { cascade: true, cancelWork: null });
      // Of disks that it no longer had.
      const left = await tx.snapshot.findMany({ where: { id: { in: snapshotIds }, volumeId: { notIn: [...gone] } } });
      for (const { id } of left) await startSnapshotDelete(tx, principal, id, null);
    }
  });
}

/** The machine's snapshots end as such: those of its disks are ordinary ones from then on. @returns their ids */
async function dissolveSnapshots(tx: Transaction, { instance }: MachineRow): Promise<string[]> {
  if (!instance.group) return [];
  const groupId = instance.group.id;
  await tx.$queryRaw`SELECT id FROM group_snapshots WHERE group_id = ${groupId}::uuid ORDER BY id FOR NO KEY UPDATE`;
  const all = await tx.groupSnapshot.findMany({
    where: { groupId },
    orderBy: { id: "asc" },
    include: { snapshots: true },
  });
  const backup = all.find(({ ovf }) => ovf === null);
  if (backup) throw new RefusedError("machine-has-backups", `Machine ${instance.id} has backups: delete them first.`);
  for (const snapshot of all) await refuseAttachedSnapshot(tx, snapshot);
  const parts = all.flatMap(({ snapshots }) => snapshots.map(({ id }) => id));
  await tx.snapshot.updateMany({ where: { id: { in: parts } }, data: { groupSnapshotId: null } });
  await tx.groupSnapshot.deleteMany({ where: { groupId } });
  return parts;
}
