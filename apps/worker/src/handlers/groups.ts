import { type InstanceDriver, InvalidError } from "@tephra/control";
import {
  assertPartsDone,
  assertShutOff,
  beginGroupDelete,
  beginPublishing,
  type ClaimedTask,
  documents,
  finishGroupBackup,
  finishGroupDelete,
  finishGroupRestore,
  finishGroupSnapshot,
  isPublishing,
  type PreparedVolume,
  preparedVolumes,
  readParts,
} from "@tephra/control/work";
import { type Disk, type Hypervisor, openHypervisor, type PowerState, type RunContext } from "@tephra/engine";
import { type Handler, resultOf, type WorkerContext } from "../context.ts";

const noInstance = "00000000-0000-0000-0000-000000000000";

/** The machine that the group belongs to; a group without one is treated as belonging to a machine that is off. */
async function openMachine(groupId: string | null, { config, database }: WorkerContext): Promise<Hypervisor> {
  const group = await database.group.findUnique({ where: { id: groupId ?? noInstance }, include: { instance: true } });
  const instance = group?.instance;
  if (!instance) return openHypervisor({ driver: "record", powerState: "SHUTOFF" });
  return openHypervisor({
    driver: instance.driver as InstanceDriver,
    powerState: instance.powerState as PowerState,
    socket: instance.qmpSocket,
    agentSocket: instance.agentSocket,
    freezeMountpoints: instance.freezeMountpoints as string[] | null,
    socketRoots: config.instances.qmp_socket_roots,
  });
}

interface GroupDisk extends Disk {
  snapshotId: string;
}

/** The members of the group snapshot, with the guest's device names. */
async function readDisks(groupSnapshotId: string, { database, sites }: WorkerContext): Promise<GroupDisk[]> {
  const snapshots = await database.snapshot.findMany({
    where: { groupSnapshotId },
    include: { volume: { include: { attachments: true } } },
    orderBy: { id: "asc" },
  });
  const disks: GroupDisk[] = [];
  for (const { id, volume } of snapshots) {
    const backend = await sites.backend(volume.backend);
    const device = volume.attachments[0]?.device ?? volume.id;
    disks.push({ ...backend.snapshotPaths(volume.id, id), device, snapshotId: id });
  }
  return disks;
}

/** Takes all snapshots of a group at one instant; then its backups, if any are to be made, begin. */
export const snapshotGroupTask: Handler = async (task, context, run) => {
  const { config, database } = context;
  const row = await database.groupSnapshot.findUniqueOrThrow({
    where: { id: task.operation.groupSnapshotId ?? noInstance },
  });
  const disks = await readDisks(row.id, context);
  await using machine = await openMachine(row.groupId, context);
  const powerState = await machine.powerState(run.signal);
  if (powerState !== "ACTIVE" && powerState !== "SHUTOFF") {
    throw new InvalidError("request", `Cannot back up instance ${row.instanceId} in status ${powerState}.`);
  }
  const { freeze_limit_ms: freezeLimitMs, require_consistency: requireConsistency } = config.instance_groups;
  const options = { freezeLimitMs, requireConsistency, operationId: task.operationId };
  const taken = await machine.snapshotTogether(disks, options, run);
  const sizesBytes = new Map(disks.map((disk, at) => [disk.snapshotId, taken.sizesBytes[at] ?? 0]));
  const bytesDone = taken.sizesBytes.reduce((sum, size) => sum + size, 0);
  await finishGroupSnapshot(database, config, task.operation, resultOf(task, { bytesDone }), { ...taken, sizesBytes });
};

/** After failed snapshots: restores the machine to its previous state, unless another operation is using it, which then does so first. */
export async function recoverMachine(
  { id, groupSnapshotId }: { id: string; groupSnapshotId: string | null },
  context: WorkerContext,
  run: RunContext,
): Promise<void> {
  const row = await context.database.groupSnapshot.findUnique({
    where: { id: groupSnapshotId ?? noInstance },
    include: { group: true },
  });
  if (!row || row.group.operationId !== null) return;
  await using machine = await openMachine(row.groupId, context);
  context.log.info({ operation: id, instance: row.instanceId }, "the machine is looked after");
  await machine.recover(await readDisks(row.id, context), run);
}

/** Concludes a group operation when its parts have ended: it succeeds if all of them did. */
export const concludeGroupTask: Handler = async (task, context, run) => {
  const { database } = context;
  const { operation } = task;
  const parts = await readParts(database, operation.id);
  assertPartsDone(parts);
  if (operation.kind === "group-backup") return finishGroupBackup(database, operation, resultOf(task));
  if (operation.kind === "group-delete") {
    await beginGroupDelete(database, operation);
    await removeSnapshots(operation.groupSnapshotId, context, run);
    return finishGroupDelete(database, operation, resultOf(task));
  }
  await publishTogether(task, preparedVolumes(parts), context, run);
  await finishGroupRestore(database, operation, resultOf(task));
};

async function removeSnapshots(groupSnapshotId: string | null, context: WorkerContext, run: RunContext): Promise<void> {
  const snapshots = await context.database.snapshot.findMany({
    where: { groupSnapshotId: groupSnapshotId ?? noInstance },
    include: { volume: true },
  });
  for (const { id, volume } of snapshots) {
    run.fence();
    await (await context.sites.backend(volume.backend)).thaw(id);
  }
}

/**
 * Replaces all volumes by what was prepared for them. Before the first one it checks that the machine is still off and every file is there.
 * From then on there is no way back: whoever claims the task after a crash renames the rest.
 */
async function publishTogether(
  task: ClaimedTask,
  volumes: readonly PreparedVolume[],
  context: WorkerContext,
  run: RunContext,
): Promise<void> {
  const { database, sites } = context;
  if (!isPublishing(task.operation)) {
    await assertReady(task, volumes, context, run);
    await beginPublishing(database, task.operationId);
  }
  for (const { volumeId, backend, prepared } of volumes) {
    run.signal.throwIfAborted();
    run.fence();
    await (await sites.backend(backend)).publishRestore(volumeId, prepared, { fresh: false }, run);
  }
}

async function assertReady(
  task: ClaimedTask,
  volumes: readonly PreparedVolume[],
  context: WorkerContext,
  run: RunContext,
): Promise<void> {
  const { instanceId } = documents.groupRestore(task.operation.input);
  await using machine = await openMachine(task.operation.groupId, context);
  assertShutOff(instanceId, await machine.powerState(run.signal));
  for (const { volumeId, backend, prepared } of volumes) {
    await using target = await (await context.sites.backend(backend)).openRestoreTarget(volumeId, prepared);
    await target.flush();
  }
}
