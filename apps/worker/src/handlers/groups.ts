import { type InstanceDriver, InvalidError } from "@tephra/control";
import {
  assertPartsDone,
  assertShutOff,
  beginGroupDelete,
  beginPublishing,
  beginRevert,
  type ClaimedTask,
  documents,
  finishGroupBackup,
  finishGroupDelete,
  finishGroupRestore,
  finishGroupSnapshot,
  finishRevert,
  isPublishing,
  type PreparedVolume,
  preparedVolumes,
  readParts,
} from "@tephra/control/work";
import {
  type Disk,
  type Hypervisor,
  openHypervisor,
  type PowerState,
  type RunContext,
  SourceChangedError,
  type TogetherResult,
  type VolumeBackend,
} from "@tephra/engine";
import { type Handler, resultOf, type WorkerContext } from "../context.ts";
import { freezeTask } from "./freeze.ts";
import { plugTask } from "./plug.ts";

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

interface GroupDisk {
  volumeId: string;
  snapshotId: string;
  /** The guest's name for it. */
  device: string;
  backend: VolumeBackend;
}

/** The members of the group snapshot. */
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
    disks.push({ volumeId: volume.id, snapshotId: id, device, backend });
  }
  return disks;
}

/** Those whose snapshots are copies, which a hypervisor can make room for. */
const copied = (disks: readonly GroupDisk[]): GroupDisk[] =>
  disks.filter(({ backend }) => backend.freezeTogether === undefined);

const atPaths = (disks: readonly GroupDisk[]): Disk[] =>
  disks.map(({ volumeId, snapshotId, device, backend }) => ({
    ...backend.snapshotPaths(volumeId, snapshotId),
    device,
  }));

/**
 * Takes the snapshots of a machine's disks. Those whose storage has layers get a new one, which needs a machine that is off from before the
 * first to after the last; the others are copied.
 */
async function takeTogether(
  machine: Hypervisor,
  disks: readonly GroupDisk[],
  powerState: PowerState,
  options: Parameters<Hypervisor["snapshotTogether"]>[1],
  run: RunContext,
): Promise<Omit<TogetherResult, "sizesBytes"> & { sizesBytes: Map<string, number> }> {
  const files = copied(disks);
  const layered = disks.filter((disk) => !files.includes(disk));
  const sizesBytes = new Map<string, number>();
  const note = (of: readonly GroupDisk[], sizes: readonly number[]): void => {
    for (const [at, { snapshotId }] of of.entries()) sizesBytes.set(snapshotId, sizes[at] ?? 0);
  };
  if (layered.length > 0 && powerState !== "SHUTOFF") {
    throw new InvalidError("request", "Snapshots of images with layers are taken of machines that are off.");
  }
  let taken: Omit<TogetherResult, "sizesBytes"> | null = null;
  for (const backend of new Set(layered.map((disk) => disk.backend))) {
    const own = layered.filter((disk) => disk.backend === backend);
    const frozen = await backend.freezeTogether?.(own, run);
    if (frozen === undefined) continue;
    note(own, frozen.sizesBytes);
    taken = { takenAt: frozen.takenAt, frozenMs: null, consistency: "application" };
  }
  if (files.length > 0) {
    const { sizesBytes: sizes, ...rest } = await machine.snapshotTogether(atPaths(files), options, run);
    note(files, sizes);
    taken = rest;
  }
  if (layered.length > 0 && (await machine.powerState(run.signal)) !== "SHUTOFF") {
    throw new SourceChangedError("The machine was started while its snapshots were taken.");
  }
  return { takenAt: new Date(), frozenMs: null, consistency: "application", ...taken, sizesBytes };
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
  const taken = await takeTogether(machine, disks, powerState, options, run);
  const bytesDone = [...taken.sizesBytes.values()].reduce((sum, size) => sum + size, 0);
  await finishGroupSnapshot(database, config, task.operation, resultOf(task, { bytesDone }), taken);
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
  await machine.recover(atPaths(copied(await readDisks(row.id, context))), run);
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
  if (operation.kind === "group-freeze") return freezeTask(task, context, run);
  if (operation.kind === "group-plug") return plugTask(task, context, run);
  if (operation.kind === "group-revert") {
    await goBack(task, context, run);
    return finishRevert(database, operation, resultOf(task));
  }
  await publishTogether(task, preparedVolumes(parts), context, run);
  await finishGroupRestore(database, operation, resultOf(task));
};

/** All disks get the snapshot's bytes again. Whoever claims the task after a crash begins again, which changes nothing of what is done. */
async function goBack({ operation }: ClaimedTask, context: WorkerContext, run: RunContext): Promise<void> {
  const { database } = context;
  const disks = await readDisks(operation.groupSnapshotId ?? noInstance, context);
  const { instanceId } = documents.groupRestore(operation.input);
  {
    await using machine = await openMachine(operation.groupId, context);
    assertShutOff(instanceId, await machine.powerState(run.signal));
  }
  if (!isPublishing(operation)) await beginRevert(database, operation.id);
  for (const { volumeId, snapshotId, backend } of disks) {
    run.signal.throwIfAborted();
    run.fence();
    await backend.goBack?.(volumeId, snapshotId, run);
  }
}

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
