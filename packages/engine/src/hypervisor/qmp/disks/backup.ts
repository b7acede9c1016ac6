import { readdir, stat, statfs } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  CheckpointInvalidError,
  GuestNotFrozenError,
  HypervisorRefusedError,
  HypervisorUnavailableError,
  ScratchFullError,
} from "../../../errors.ts";
import type { RunContext } from "../../../run/run-context.ts";
import { unlinkIfThere } from "../../../volume/file/copy-file.ts";
import { layersOf } from "../../../volume/qemu/checkpoint-bitmaps.ts";
import { guardStorage } from "../../../volume/storage-error.ts";
import type { BackupOptions, DiskExport, MachineBackup, MachineDisk, StartedBackup } from "../../machine-disks.ts";
import { createImage } from "../create-image.ts";
import { listJobs } from "../jobs.ts";
import { listNodes } from "../nodes.ts";
import type { QmpClient } from "../qmp-client.ts";
import { addImage, type Chain, findChain, type ImagePlaces, nameFor } from "./chain.ts";
import { addBitmap, dropInvalid, mergeCheckpoint, removeCheckpointOf, transact } from "./checkpoints.ts";
import { addExport, hasExport, removeExport, stopIdleServer } from "./exports.ts";
import { atOneMoment, type Guest } from "./layers.ts";

/*
 * From the moment on, a job copies each block into the disk's scratch file before the machine overwrites it. The scratch file builds on the
 * disk, so that it shows the disk as of that moment:
 *
 *     machine ──▶ job's filter ──▶ active layer ◀── scratch ◀── export, with a bitmap of what has changed
 *                      └── before the first write of a block ──▶
 *
 * A scratch file that cannot grow makes the machine's write fail. So there must be space for all that can be overwritten when a backup
 * begins, and when others take it away meanwhile, the jobs are cancelled first.
 */

/** Of the bitmap on the scratch file; the context that clients ask for. */
const changes = "changes";
const changesContext = `qemu:dirty-bitmap:${changes}`;
const lookEveryMs = 250;
const endMs = 60_000;

export interface BackupPlaces extends ImagePlaces {
  /** Where the process's NBD server listens, or will. */
  exportSocket: string;
}

/** What a backup of a disk is called in the process. */
interface Names {
  path: string;
  node: string;
  job: string;
  exportId: string;
  exportName: string;
}

const scratchStart = (backupId: string): string => `scratch-${backupId}-`;

const namesOf = ({ id, scratchFolder }: MachineBackup, disk: MachineDisk): Names => {
  const own = `${id} ${disk.id}`;
  return {
    path: join(scratchFolder, `${scratchStart(id)}${disk.id}`),
    node: nameFor(`scratch ${own}`),
    job: nameFor(`backup ${own}`),
    exportId: nameFor(`export ${own}`),
    exportName: `backup-${id}-${disk.id}`,
  };
};

interface Part {
  disk: MachineDisk;
  chain: Chain;
  names: Names;
  since: string | null;
}

/** See MachineDisks.startBackup. */
export async function startBackup(
  qmp: QmpClient,
  guest: Guest,
  backup: MachineBackup,
  options: BackupOptions,
  places: BackupPlaces,
  { signal, fence }: RunContext,
): Promise<StartedBackup> {
  await stopBackup(qmp, backup, { complete: false }, places);
  const parts: Part[] = [];
  for (const disk of backup.disks) {
    await dropInvalid(qmp, await findChain(qmp, disk, places));
    const chain = await findChain(qmp, disk, places);
    parts.push({ disk, chain, names: namesOf(backup, disk), since: options.since.get(disk.id) ?? null });
  }
  for (const { disk, chain, since } of parts) {
    if (since === null || layersOf(chain, since) !== null) continue;
    throw new CheckpointInvalidError(`Checkpoint ${since} of disk ${disk.id} has been lost: a full backup is needed.`);
  }
  await requireSpace(backup, parts);
  signal.throwIfAborted();
  fence();
  try {
    for (const part of parts) await prepareScratch(qmp, part);
    const { notFrozenBecause, ...moment } = await atOneMoment(guest, options, async () => {
      signal.throwIfAborted();
      fence();
      await transact(
        qmp,
        parts.flatMap((part) => beginning(part, backup)),
      );
    });
    if (options.requireConsistency && notFrozenBecause !== null) throw new GuestNotFrozenError(notFrozenBecause);
    const exports: DiskExport[] = [];
    for (const part of parts) exports.push(await exportPart(qmp, part, places.exportSocket));
    return { ...moment, exports, expired: await expire(qmp, backup, options, places) };
  } catch (error) {
    await stopBackup(qmp, backup, { complete: false }, places).catch(() => {}); // The first error tells more.
    throw error;
  }
}

/** @throws ScratchFullError unless all that the disks hold would fit beside the reserve */
async function requireSpace({ scratchFolder, reserveBytes }: MachineBackup, parts: readonly Part[]): Promise<void> {
  let needed = reserveBytes;
  for (const { chain } of parts) {
    const held = await Promise.all(chain.map(async ({ path }) => (await stat(path)).blocks * 512));
    needed += Math.min(
      chain[0].sizeBytes,
      held.reduce((sum, bytes) => sum + bytes, 0),
    );
  }
  const free = await freeBytes(scratchFolder);
  if (free >= needed) return;
  throw new ScratchFullError(`The backup may need ${needed} bytes in ${scratchFolder}, which has ${free} free.`);
}

async function freeBytes(folder: string): Promise<number> {
  const { bavail, bsize } = await guardStorage(`measure ${folder}`, () => statfs(folder));
  return bavail * bsize;
}

async function prepareScratch(qmp: QmpClient, { chain: [active], names }: Part): Promise<void> {
  const { node, path } = names;
  const { sizeBytes, cache } = active;
  await createImage(qmp, { node, path, sizeBytes, cache, backing: null });
  await addImage(qmp, { node, path, format: "qcow2", backing: active.node, readOnly: false, cache });
}

/** All that happens at the one moment. */
function beginning({ disk, chain, names, since }: Part, { checkpointId, unrecorded }: MachineBackup) {
  const [active] = chain;
  const { node } = names;
  const layers = since === null ? null : layersOf(chain, since);
  return [
    ...(since === null || layers === null
      ? []
      : [
          addBitmap(node, changes, { persistent: false, disabled: true }),
          ...mergeCheckpoint(layers, since, { node, name: changes }),
        ]),
    ...(checkpointId === null || active.format === "raw" || unrecorded?.has(disk.id)
      ? []
      : [addBitmap(active.node, checkpointId)]),
    { type: "blockdev-backup", data: { "job-id": names.job, device: active.node, target: node, sync: "none" } },
  ];
}

async function exportPart(
  qmp: QmpClient,
  { disk, chain, names, since }: Part,
  socketPath: string,
): Promise<DiskExport> {
  const { node, exportId: id, exportName: name } = names;
  const bitmaps = since === null ? [] : [changes];
  await addExport(qmp, socketPath, { id, node, name, writable: false, bitmaps });
  const { sizeBytes } = chain[0];
  return { diskId: disk.id, socketPath, name, sizeBytes, changes: since === null ? null : changesContext };
}

/** Removes the oldest checkpoints that are too many. */
async function expire(
  qmp: QmpClient,
  { disks, checkpointId }: MachineBackup,
  { checkpointIds, checkpointsMax }: BackupOptions,
  places: ImagePlaces,
): Promise<string[]> {
  const kept = checkpointsMax - (checkpointId === null ? 0 : 1);
  const expired = checkpointIds.slice(0, Math.max(0, checkpointIds.length - kept));
  for (const id of expired) await removeCheckpoint(qmp, disks, id, places);
  return expired;
}

export async function removeCheckpoint(
  qmp: QmpClient,
  disks: readonly MachineDisk[],
  id: string,
  places: ImagePlaces,
): Promise<void> {
  for (const disk of disks) await removeCheckpointOf(qmp, await findChain(qmp, disk, places), id);
}

/** See MachineDisks.stopBackup. Each step is tolerant of what is not there (any more). */
export async function stopBackup(
  qmp: QmpClient,
  backup: MachineBackup,
  { complete }: { complete: boolean },
  places: ImagePlaces,
): Promise<void> {
  const all = backup.disks.map((disk) => namesOf(backup, disk));
  for (const { exportId } of all) await removeExport(qmp, exportId);
  await cancelJobs(qmp, all);
  await removeScratchNodes(qmp, all);
  await stopIdleServer(qmp);
  await removeScratchFiles(backup);
  if (!complete && backup.checkpointId !== null) await removeCheckpoint(qmp, backup.disks, backup.checkpointId, places);
}

async function cancelJobs(qmp: QmpClient, all: readonly Names[]): Promise<void> {
  const ours = async () => (await listJobs(qmp)).filter(({ id }) => all.some(({ job }) => job === id));
  for (const { id } of await ours()) {
    await qmp.execute("block-job-cancel", { device: id, force: true }).catch((error: unknown) => {
      if (!(error instanceof HypervisorRefusedError)) throw error; // It has just ended by itself.
    });
  }
  for (const until = performance.now() + endMs; (await ours()).length > 0; ) {
    if (performance.now() > until) throw new HypervisorUnavailableError("The jobs of the backup do not end.");
    await qmp.changed(lookEveryMs);
  }
}

async function removeScratchNodes(qmp: QmpClient, all: readonly Names[]): Promise<void> {
  const ours = all.flatMap(({ node }) => [node, `${node}-f`]);
  for (const { "node-name": name } of await listNodes(qmp)) {
    if (ours.includes(name)) await qmp.execute("blockdev-del", { "node-name": name });
  }
}

/** What is left of a backup whose machine is gone: its scratch files. */
export async function removeScratchFiles({
  id,
  scratchFolder,
}: Pick<MachineBackup, "id" | "scratchFolder">): Promise<void> {
  for (const name of await guardStorage(`list ${scratchFolder}`, () => readdir(scratchFolder))) {
    if (name.startsWith(scratchStart(id))) await unlinkIfThere(join(scratchFolder, name));
  }
}

/** Between two looks at the free space, which costs next to nothing. */
const spaceEveryMs = 50;
/** Between two looks at the jobs: meanwhile another caller may use the monitor. */
const jobsEveryMs = 2_000;
/** How often in a row the monitor may not be had, such as when another caller has it for long. */
const missesMax = 5;

/** See MachineDisks.watchBackup. */
export async function watchBackup(
  connect: () => Promise<QmpClient>,
  backup: MachineBackup,
  places: ImagePlaces,
  signal: AbortSignal,
): Promise<void> {
  let lookedAt = performance.now();
  let misses = 0;
  const atMonitor = async (act: (qmp: QmpClient) => Promise<void>): Promise<boolean> => {
    try {
      using qmp = await connect();
      await act(qmp);
      misses = 0;
      return true;
    } catch (error) {
      misses += 1;
      if (!(error instanceof HypervisorUnavailableError) || misses > missesMax) throw error;
      return false;
    }
  };
  while (!signal.aborted) {
    const free = await freeBytes(backup.scratchFolder);
    if (free < backup.reserveBytes && (await atMonitor((qmp) => giveUp(qmp, backup, places)))) {
      throw new ScratchFullError(`The scratch space of ${backup.scratchFolder} ran out: ${free} bytes are free.`);
    }
    if (performance.now() - lookedAt > jobsEveryMs && (await atMonitor((qmp) => requireRunning(qmp, backup)))) {
      lookedAt = performance.now();
    }
    await sleep(spaceEveryMs, undefined, { signal }).catch(() => {}); // Aborted.
  }
}

/** The jobs first: as long as they run, the machine's writes depend on the scratch files. */
async function giveUp(qmp: QmpClient, backup: MachineBackup, places: ImagePlaces): Promise<void> {
  const all = backup.disks.map((disk) => namesOf(backup, disk));
  await cancelJobs(qmp, all);
  await stopBackup(qmp, backup, { complete: false }, places);
}

async function requireRunning(qmp: QmpClient, backup: MachineBackup): Promise<void> {
  const jobs = await listJobs(qmp);
  for (const disk of backup.disks) {
    const { job, exportId } = namesOf(backup, disk);
    const found = jobs.find(({ id }) => id === job);
    if (found?.status === "running" && (await hasExport(qmp, exportId))) continue;
    throw new HypervisorRefusedError(`The backup of disk ${disk.id} has ended: ${found?.error ?? "its job is gone"}.`);
  }
}
