import { type InstanceDriver, InvalidError } from "@tephra/control";
import {
  assertPartsDone,
  assertShutOff,
  beginGroupDelete,
  beginPublishing,
  beginRevert,
  type ClaimedTask,
  continuePreview,
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
  GuestNotFrozenError,
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
import {
  findProcess,
  freezeRunning,
  type MachineProcess,
  mergeRunning,
  settleRunning,
  unreachable,
} from "./running-disks.ts";

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
  /** Whether the machine has it open while it runs. */
  plugged: boolean;
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
    const [attachment] = volume.attachments;
    const device = attachment?.device ?? volume.id;
    disks.push({ volumeId: volume.id, snapshotId: id, device, plugged: attachment?.plugged ?? false, backend });
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
 * Takes the snapshots of a machine's disks. Those whose storage has layers get a new one: through the machine's process (`running`), or, of a
 * machine that has none, while nobody writes them, from before the first to after the last. The others are copied.
 */
async function takeTogether(
  { machine, running, powerState }: { machine: Hypervisor; running: MachineProcess; powerState: PowerState },
  disks: readonly GroupDisk[],
  options: Parameters<Hypervisor["snapshotTogether"]>[1],
  run: RunContext,
): Promise<Omit<TogetherResult, "sizesBytes"> & { sizesBytes: Map<string, number> }> {
  const files = copied(disks);
  const layered = disks.filter((disk) => !files.includes(disk));
  const sizesBytes = new Map<string, number>();
  const note = (of: readonly Pick<GroupDisk, "snapshotId">[], sizes: readonly number[]): void => {
    for (const [at, { snapshotId }] of of.entries()) sizesBytes.set(snapshotId, sizes[at] ?? 0);
  };
  const { disks: process } = running;
  const open = layered.filter(({ plugged }) => process !== null && plugged);
  const idle = layered.filter((disk) => !open.includes(disk));
  let taken: Omit<TogetherResult, "sizesBytes"> | null = null;
  if (process === null && !running.isOff && layered.length > 0) throw unreachable();
  if (layered.length > 0 && files.length > 0 && powerState !== "SHUTOFF") throw new InvalidError("request", apart);
  if (process !== null && open.length > 0) {
    taken = await freezeRunning(process, open, { ...options, note }, run);
  } else if (options.requireConsistency && idle.length > 0 && powerState !== "SHUTOFF") {
    throw new GuestNotFrozenError("nothing but its record is known, which says that it runs");
  }
  for (const backend of new Set(idle.map((disk) => disk.backend))) {
    const own = idle.filter((disk) => disk.backend === backend);
    const frozen = await backend.freezeTogether?.(own, run);
    if (frozen === undefined) continue;
    note(own, frozen.sizesBytes);
    const consistency = powerState === "SHUTOFF" ? "application" : "crash";
    taken ??= { takenAt: frozen.takenAt, frozenMs: null, consistency };
  }
  if (files.length > 0) {
    const { sizesBytes: sizes, ...rest } = await machine.snapshotTogether(atPaths(files), options, run);
    note(files, sizes);
    taken = rest;
  }
  const wasOff = powerState === "SHUTOFF";
  if (idle.length > 0 && wasOff && (await machine.powerState(run.signal)) !== "SHUTOFF") {
    throw new SourceChangedError("The machine was started while its snapshots were taken.");
  }
  return { takenAt: new Date(), frozenMs: null, consistency: "application", ...taken, sizesBytes };
}

const apart =
  "Snapshots of images with layers and of raw files are taken together only while the machine is off: choose disks of one kind.";

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
  const running = await findProcess(row.groupId, disks, context);
  const taken = await takeTogether({ machine, running, powerState }, disks, options, run);
  const bytesDone = [...taken.sizesBytes.values()].reduce((sum, size) => sum + size, 0);
  await finishGroupSnapshot(database, config, task.operation, resultOf(task, { bytesDone }), taken, continuePreview);
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
  const disks = await readDisks(row.id, context);
  await machine.recover(atPaths(copied(disks)), run);
  const running = await findProcess(row.groupId, disks, context);
  await settleRunning(running, disks);
  await mergeRunning(running, disks, run);
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
    await removeSnapshots(operation, context, run);
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

async function removeSnapshots(
  { groupSnapshotId, groupId }: Pick<ClaimedTask["operation"], "groupSnapshotId" | "groupId">,
  context: WorkerContext,
  run: RunContext,
): Promise<void> {
  const disks = await readDisks(groupSnapshotId ?? noInstance, context);
  const running = await findProcess(groupId, disks, context);
  await settleRunning(running, disks);
  for (const { snapshotId, backend } of disks) {
    run.fence();
    await backend.thaw(snapshotId);
  }
  await mergeRunning(running, disks, run);
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
