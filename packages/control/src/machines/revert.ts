import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { liveStates } from "../db/live.ts";
import { RefusedError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { documentVersion } from "../queue/document-version.ts";
import { completeOperation, lockLiveOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { holdGroup, releaseGroup } from "../rows/groups.ts";
import { refuseTransferredSnapshot } from "../rows/image-transfers.ts";
import { refuseAttachedSnapshot } from "../rows/machines.ts";
import { move } from "../rows/move.ts";
import { releaseTarget } from "../rows/release.ts";
import { lockVolume, moveVolume } from "../rows/volumes.ts";
import { goesBack } from "../volume-backends.ts";
import { checkConfiguration } from "./configuration.ts";
import { nameOf } from "./disks.ts";
import { getMachine, lockMachine, refuseHeld } from "./machines.ts";
import { readOvf } from "./ovf/read.ts";
import { getMachineSnapshot, type MachineSnapshot, refuseActive } from "./snapshots.ts";

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
 * @throws NotFoundError; RefusedError, in oVirt's order (docs/ovirt.md)
 */
export async function restoreMachineSnapshot(
  database: Database,
  config: Config,
  principal: Principal,
  { machineId, id }: { machineId: string; id: string },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const machine = await lockMachine(tx, principal, machineId);
    refuseActive(machine, id);
    const snapshot = await getMachineSnapshot(tx, principal, machineId, id);
    const { powerState } = machine.instance;
    if (powerState !== "SHUTOFF") {
      throw new RefusedError("machine-not-down", `Machine ${machineId} is ${powerState}.`, { powerState });
    }
    refuseHeld(machine);
    if (snapshot.status !== "available") {
      throw new RefusedError("snapshot-locked", `Snapshot ${snapshot.id} is ${snapshot.status}.`);
    }
    for (const each of [snapshot, ...(await newerThan(tx, snapshot))]) {
      await tx.$queryRaw`SELECT id FROM group_snapshots WHERE id = ${each.id}::uuid FOR NO KEY UPDATE`;
      await refuseAttachedSnapshot(tx, each);
      await refuseTransferredSnapshot(tx, each);
    }
    for (const { volume } of snapshot.snapshots) {
      if (goesBack(config.volume_backends, volume.backend)) continue;
      throw new RefusedError("restore-unsupported", `Backend ${volume.backend} cannot go back to a snapshot.`);
    }
    if (snapshot.snapshots.length === 0) {
      await applyConfiguration(tx, snapshot);
      await removeNewer(tx, principal, snapshot);
      return;
    }
    const input = { instanceId: machine.instance.id, concludeNeeds: needsOf(snapshot.snapshots) };
    const operationId = await startOperation(tx, principal, {
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
  });
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
    await removeNewer(tx, whole, seen);
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
  for (const { id, projectId, groupId, snapshots } of await newerThan(tx, snapshot)) {
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
}
