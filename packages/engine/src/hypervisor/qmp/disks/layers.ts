import { link, lstat, readdir, rename, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { GuestNotFrozenError, HypervisorRefusedError } from "../../../errors.ts";
import { identityOf } from "../../../folder.ts";
import type { RunContext } from "../../../run/run-context.ts";
import { unlinkIfThere } from "../../../volume/file/copy-file.ts";
import { newDraft } from "../../../volume/file/drafts.ts";
import { syncFolder } from "../../../volume/file/sync-folder.ts";
import { validIds } from "../../../volume/qemu/checkpoint-bitmaps.ts";
import { inspectImage } from "../../../volume/qemu/image-chain.ts";
import { guardStorage } from "../../../volume/storage-error.ts";
import type { DiskToLayer, MachineDisk, MergeOptions, Moment, MomentOptions } from "../../machine-disks.ts";
import { createImage } from "../create-image.ts";
import { freezeWhile } from "../freeze-while.ts";
import type { GuestAgent } from "../guest-agent.ts";
import { jobEnd, listJobs } from "../jobs.ts";
import { listNodes, type Node, pathOf } from "../nodes.ts";
import type { QmpClient } from "../qmp-client.ts";
import {
  addImage,
  type Chain,
  canReopen,
  dropFiles,
  findChain,
  type ImagePlaces,
  type Layer,
  nameFor,
  nodeAt,
  reopenAs,
} from "./chain.ts";
import { addBitmap, dropInvalid, liftCheckpoints, moveCheckpoints, takeOver, transact } from "./checkpoints.ts";

export interface Guest {
  agent: GuestAgent | null;
  freezeMountpoints: readonly string[] | null;
}

/** Runs `act` with the guest frozen, where it can be. The label of the moment. */
export async function atOneMoment(
  { agent, freezeMountpoints }: Guest,
  { freezeLimitMs }: MomentOptions,
  act: () => Promise<void>,
): Promise<Moment & { notFrozenBecause: string | null }> {
  const freeze = { mountpoints: freezeMountpoints, limitMs: freezeLimitMs };
  const { result, frozenMs, notFrozenBecause } = await freezeWhile(agent, freeze, async () => {
    const takenAt = new Date();
    await act();
    return takenAt;
  });
  return {
    takenAt: result,
    frozenMs,
    consistency: notFrozenBecause === null ? "application" : "crash",
    notFrozenBecause,
  };
}

/** See MachineDisks.takeSnapshot. */
export async function takeSnapshot(
  qmp: QmpClient,
  guest: Guest,
  layers: readonly DiskToLayer[],
  options: MomentOptions & ImagePlaces,
  run: Pick<RunContext, "signal" | "fence">,
): Promise<Moment> {
  const { signal, fence } = run;
  const taken = await takenBefore(qmp, layers);
  if (taken !== null) {
    await nameKept(qmp, layers, options);
    return taken;
  }
  try {
    const chains = await Promise.all(layers.map(({ disk }) => findChain(qmp, disk, options)));
    for (const chain of chains) await dropInvalid(qmp, chain);
    signal.throwIfAborted();
    fence();
    for (const [index, layer] of layers.entries()) await prepare(qmp, chains[index] as Chain, layer);
    const moment = await atOneMoment(guest, options, async () => {
      signal.throwIfAborted();
      fence();
      await transact(
        qmp,
        layers.flatMap(({ overlayPath }, index) => switching(chains[index] as Chain, overlayPath)),
      );
    });
    const { notFrozenBecause, ...rest } = moment;
    if (options.requireConsistency && notFrozenBecause !== null) {
      for (const { disk, overlayPath } of layers) {
        const grown = { ...disk, path: overlayPath, format: "qcow2" } as const;
        const back = { disk: grown, layerPath: overlayPath, intoPath: disk.path, keepName: false };
        await mergeLayer(qmp, back, options, run);
      }
      throw new GuestNotFrozenError(notFrozenBecause);
    }
    await nameKept(qmp, layers, options);
    for (const folder of new Set(layers.map(({ overlayPath }) => dirname(overlayPath)))) await syncFolder(folder);
    return rest;
  } catch (error) {
    // The first error tells more; what stays is removed by the next call.
    for (const layer of layers) await removeUnused(qmp, layer).catch(() => {});
    throw error;
  }
}

/** Not null when an interrupted call has taken it: one transaction switches all disks. */
async function takenBefore(qmp: QmpClient, layers: readonly DiskToLayer[]): Promise<Moment | null> {
  const [first] = layers;
  if (first === undefined) throw new HypervisorRefusedError("A snapshot of no disk cannot be taken.");
  const node = await nodeAt(qmp, first.overlayPath);
  if (!isUsed(node)) return null;
  const { mtime } = await guardStorage(`read ${first.overlayPath}`, () => lstat(first.overlayPath));
  return { takenAt: mtime, frozenMs: null, consistency: "crash" };
}

/** What was the active layer of each disk is open by the name that it keeps. */
async function nameKept(qmp: QmpClient, layers: readonly DiskToLayer[], places: ImagePlaces): Promise<void> {
  for (const { overlayPath, keptPath } of layers) {
    if (keptPath === undefined) continue;
    const [, kept, below] = await findChain(qmp, { path: overlayPath, format: "qcow2" }, places);
    if (kept !== undefined && kept.openedAs !== keptPath) await reopenAs(qmp, kept, below, keptPath);
  }
}

async function prepare(qmp: QmpClient, [active]: Chain, layer: DiskToLayer): Promise<void> {
  const { overlayPath: path, keptPath } = layer;
  if (keptPath !== undefined && active.openedAs !== keptPath && !canReopen(active)) {
    throw new HypervisorRefusedError(
      `The machine has ${active.path} open as a node without a name of its own (-blockdev with node-name gives it one).`,
    );
  }
  await removeUnused(qmp, layer);
  if (dirname(path) !== dirname(active.path)) {
    throw new HypervisorRefusedError(`The new layer ${path} is not in the folder of ${active.path}.`);
  }
  const { sizeBytes, cache } = active;
  const backing = { path: basename(active.path), format: active.format };
  if (keptPath === undefined) await createImage(qmp, { node: nameFor(path), path, sizeBytes, cache, backing });
  await addImage(qmp, { node: nameFor(path), path, format: "qcow2", backing: null, readOnly: false, cache });
}

/** What makes a prepared layer the active one: it records for every checkpoint that is valid. */
function switching(chain: Chain, overlayPath: string) {
  const overlay = nameFor(overlayPath);
  return [
    { type: "blockdev-snapshot", data: { node: chain[0].node, overlay } },
    ...validIds(chain).map((id) => addBitmap(overlay, id)),
  ];
}

/** Whether a disk has come to use a prepared layer. */
export const isUsed = (node: Node | undefined): boolean => node !== undefined && node.backing_file_depth > 0;

/** A prepared layer that no disk has come to use. */
async function removeUnused(qmp: QmpClient, { overlayPath: path, keptPath }: DiskToLayer): Promise<void> {
  if (isUsed(await nodeAt(qmp, path))) return;
  for (const { "node-name": name } of (await listNodes(qmp)).filter(
    (each) => pathOf(each) === path && each.drv !== "file",
  )) {
    await qmp.execute("blockdev-del", { "node-name": name });
  }
  const half = `${nameFor(path)}-f`;
  if ((await listNodes(qmp)).some((each) => each["node-name"] === half)) {
    await qmp.execute("blockdev-del", { "node-name": half });
  }
  if (keptPath === undefined) await unlinkIfThere(path);
}

type Merge = Required<MergeOptions> & { disk: MachineDisk };

/** See MachineDisks.mergeLayer. */
export async function mergeLayer(
  qmp: QmpClient,
  merge: Merge,
  places: ImagePlaces,
  { signal, fence }: Pick<RunContext, "signal" | "fence">,
): Promise<void> {
  const { layerPath, intoPath, keepName } = merge;
  const id = nameFor(`merge ${layerPath}`);
  // The lower layer has the upper's name: only its own may be left.
  const isNamed = keepName && (await isSameFile(layerPath, intoPath));
  const job = (await listJobs(qmp)).find((each) => each.id === id);
  // The file is removed first, the job that proves its success then, the node last.
  const isMerged =
    isNamed ||
    (await lstat(layerPath).catch(() => undefined)) === undefined ||
    job?.status === "concluded" ||
    (job === undefined && (await isOut(qmp, merge, places)));
  if (!isMerged) {
    signal.throwIfAborted();
    fence();
    await commit(qmp, merge, { id, isRunning: job !== undefined }, places);
  } else if (job?.error !== undefined) {
    await qmp.execute("job-dismiss", { id });
    throw new HypervisorRefusedError(`The hypervisor's job failed: ${job.error}.`);
  }
  if (keepName) await shareName(merge);
  else await unlinkIfThere(layerPath);
  await syncFolder(dirname(layerPath));
  if ((await listJobs(qmp)).some((each) => each.id === id)) await qmp.execute("job-dismiss", { id });
  // Until it is open under the upper's name, the lower layer's node has its own.
  const node = isMoved(keepName, await nodeAt(qmp, intoPath)) ? undefined : await nodeAt(qmp, layerPath);
  if (node !== undefined) await qmp.execute("blockdev-del", { "node-name": node["node-name"] });
  await dropFiles(qmp, layerPath);
  if (keepName) await leaveName(qmp, merge, places);
}

const isMoved = (keepName: boolean, lower: Node | undefined): boolean => keepName && lower === undefined;

/** The lower layer, which shows all that the upper does, gets the upper's name, under which other images may build on it. */
async function shareName({ layerPath, intoPath }: Merge): Promise<void> {
  if (!(await isSameFile(layerPath, intoPath))) {
    await using draft = await newDraft(layerPath);
    await guardStorage(`rename ${intoPath}`, async () => {
      await link(intoPath, draft.path);
      await rename(draft.path, layerPath);
    });
  }
}

/** It loses its own, when QEMU does not need that any more. */
async function leaveName(qmp: QmpClient, { disk, layerPath, intoPath }: Merge, places: ImagePlaces): Promise<void> {
  const chain = await findChain(qmp, disk, places);
  const at = chain.findIndex(({ path }) => path === layerPath);
  const lower = chain[at];
  if (lower !== undefined && lower.openedAs !== layerPath) await reopenAs(qmp, lower, chain[at + 1], layerPath);
  await unlinkIfThere(intoPath);
}

async function isSameFile(one: string, other: string): Promise<boolean> {
  const [a, b] = await Promise.all([one, other].map((path) => lstat(path, bigint).catch(() => undefined)));
  return a !== undefined && b !== undefined && identityOf(a) === identityOf(b);
}

/** Whether a layer is out of the chain: the process was killed after the layer above had been put on the one below. */
async function isOut(qmp: QmpClient, { disk, layerPath, intoPath }: Merge, places: ImagePlaces): Promise<boolean> {
  const paths = (await findChain(qmp, disk, places)).map(({ path }) => path);
  const { backing } = await inspectImage(layerPath);
  return (
    !paths.includes(layerPath) &&
    paths.includes(intoPath) &&
    backing !== null &&
    resolve(dirname(layerPath), backing) === intoPath
  );
}

async function commit(
  qmp: QmpClient,
  merge: Merge,
  { id, isRunning }: { id: string; isRunning: boolean },
  places: ImagePlaces,
): Promise<void> {
  const { disk, layerPath, keepName } = merge;
  const { upper, lower } = await pairOf(qmp, merge, places);
  if (!isRunning) {
    if (keepName && !canReopen(lower)) {
      throw new HypervisorRefusedError(`The machine has had ${lower.path} open since it was started.`);
    }
    await refuseOthers(qmp, upper, lower);
    await dropInvalid(qmp, await findChain(qmp, disk, places));
    const isActive = layerPath === disk.path;
    // What is not the active layer would be gone from the chain as soon as the job has written it; finalizing it waits for `beforeEnd`.
    const name = basename(keepName ? upper.path : lower.path);
    const inside = { "top-node": upper.node, "backing-file": name, "auto-finalize": false };
    const [active] = await findChain(qmp, disk, places);
    const args = { "job-id": id, device: active.node, "base-node": lower.node, "auto-dismiss": false };
    await qmp.execute("block-commit", { ...args, ...(isActive ? {} : inside) });
  }
  await jobEnd(qmp, id, async () => {
    // The lower layer is writable now, and as long as the upper one.
    const now = await pairOf(qmp, merge, places);
    if (now.lower.format === "qcow2") await moveCheckpoints(qmp, now.upper, now.lower);
    else await liftCheckpoints(qmp, now.chain, now.upper);
  });
}

async function pairOf(qmp: QmpClient, { disk, layerPath, intoPath }: Merge, places: ImagePlaces) {
  const chain = await findChain(qmp, disk, places);
  const at = chain.findIndex(({ path }) => path === layerPath);
  const [upper, lower] = at < 0 ? [] : chain.slice(at);
  if (upper === undefined || lower?.path !== intoPath) {
    throw new HypervisorRefusedError(`The layer ${layerPath} is not the next above ${intoPath} in disk ${disk.id}.`);
  }
  return { chain, upper, lower };
}

/** QEMU itself writes into a layer that another image builds on, and so changes that image. */
async function refuseOthers(qmp: QmpClient, upper: Layer, lower: Layer): Promise<void> {
  const folder = dirname(lower.path);
  const files = (await guardStorage(`list ${folder}`, () => readdir(folder))).map((name) => join(folder, name));
  const open = (await listNodes(qmp)).filter(({ drv }) => drv === "qcow2").map(pathOf);
  for (const path of new Set([...files, ...open])) {
    if (path === "" || (await isSameFile(path, upper.path))) continue;
    const { backing } = await inspectImage(path).catch(() => ({ backing: null }));
    if (backing === null) continue;
    const [its, own] = await Promise.all([
      stat(resolve(dirname(path), backing), bigint).catch(() => null),
      stat(lower.path, bigint),
    ]);
    if (its !== null && identityOf(its) === identityOf(own)) {
      throw new HypervisorRefusedError(
        `The image ${path} builds on ${lower.path}, which can therefore not be changed.`,
      );
    }
  }
}

const bigint = { bigint: true } as const;

/** See MachineDisks.resize. */
export async function resizeDisk(
  qmp: QmpClient,
  disk: MachineDisk,
  sizeBytes: number,
  places: ImagePlaces,
): Promise<void> {
  const chain = await findChain(qmp, disk, places);
  const [active] = chain;
  if (active.sizeBytes >= sizeBytes) return;
  await dropInvalid(qmp, chain);
  await takeOver(qmp, await findChain(qmp, disk, places));
  await qmp.execute("block_resize", { "node-name": active.node, size: sizeBytes });
}
