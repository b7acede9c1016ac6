import type { BackupReference } from "../chain/backup-reference.ts";
import { type Chain, chainSteps, chainWarnings, findHashList, mergeChain, openChain } from "../chain/chain.ts";
import type { MappedObject, MergeStep } from "../chain/merge-layers.ts";
import {
  InvalidBackupError,
  InvalidLayoutError,
  RepositoryDeniedError,
  RepositoryFullError,
  RepositoryUnavailableError,
} from "../errors.ts";
import { type Extent, partOf } from "../format/extents.ts";
import { cachedHashList } from "../format/hash-list.ts";
import { stagingContainer } from "../repository/repository.ts";
import { mapConcurrent } from "../run/map-concurrent.ts";
import type { RunContext } from "../run/run-context.ts";
import { DirectAccess } from "../threads/direct-access.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import type { VolumeTarget } from "../volume/volume.ts";
import type { RestoreJob } from "./job.ts";
import { laneGroups, restoreGroup } from "./lanes.ts";
import { mapDigest, readMap, stageMap } from "./map.ts";

/**
 * A part of a restore for one task, with a slice of the map that says where its bytes come from: staged under a name, or, where nothing
 * can be written, merged again from the metadata by the executing task.
 */
export interface RestoreRange extends Extent {
  map: { name: string; digest: string } | { name: null; digest: string; volumeBytes: number; blockBytes: number };
  objects: number;
}

export interface PlanRestoreInput {
  /** Newest first; ends with the full backup. */
  chain: readonly BackupReference[];
  rangeBytes: number;
  rangesMax: number;
  staging: { operationId: string; name: string };
}

export interface PlannedRestore {
  volumeBytes: number;
  ranges: RestoreRange[];
  /** The volume_meta string of every member of the chain, newest first. */
  volumeMetas: (string | null)[];
  warnings: string[];
}

/**
 * Merges a chain into one map and stages it in slices next to the newest backup, one per range, cut where no object spans the boundary.
 * Every problem that the metadata objects can reveal is found here, before a byte is written.
 */
export async function planRestore(input: PlanRestoreInput, ctx: RunContext): Promise<PlannedRestore> {
  const chain = await openChain(input.chain, ctx.signal);
  const ranges = await stageRanges(chain, input, ctx);
  const volumeMetas = chain.summaries.map((summary) => summary.header.volumeMeta);
  return { volumeBytes: chain.volumeBytes, ranges, volumeMetas, warnings: chainWarnings(chain) };
}

/** Maximum number of ranges with unstaged slices: each reads the metadata of the whole chain again. */
const unstagedRangesMax = 64;

/**
 * Stages the merged map of a chain, slice by slice. Where the repository is read-only or full, nothing is staged: the ranges then
 * describe how to merge their slices again.
 */
export async function stageRanges(
  chain: Chain,
  input: Omit<PlanRestoreInput, "chain">,
  ctx: RunContext,
): Promise<RestoreRange[]> {
  const { repository } = chain.references[0] as BackupReference;
  const container = stagingContainer(input.staging.operationId);
  if (input.rangeBytes < 1 || input.rangesMax < 1) throw new InvalidLayoutError("A range must not be empty.");
  try {
    await repository.ensureContainer(container);
    return await cutMap(chain, input, ctx.signal, async (objects, index) => {
      const name = `${input.staging.name}-map-${index}`;
      return { name, digest: await stageMap(repository, { container, name }, objects, ctx) };
    });
  } catch (error) {
    if (!isWriteRefused(error)) throw error;
  }
  const { volumeBytes, hashes } = chain;
  const rangesMax = Math.min(input.rangesMax, unstagedRangesMax);
  return cutMap(chain, { ...input, rangesMax }, ctx.signal, async (objects) => {
    return { name: null, digest: mapDigest(objects), volumeBytes, blockBytes: hashes?.blockBytes ?? 1 };
  });
}

/** Cuts the merged map of a chain into ranges; `keep` stores or describes each range's slice. */
async function cutMap(
  chain: Chain,
  limits: { rangeBytes: number; rangesMax: number },
  signal: AbortSignal,
  keep: (objects: readonly MappedObject[], index: number) => Promise<RestoreRange["map"]>,
): Promise<RestoreRange[]> {
  const { volumeBytes } = chain;
  const rangeBytes = Math.max(limits.rangeBytes, Math.ceil(volumeBytes / limits.rangesMax));
  const ranges: RestoreRange[] = [];
  let objects: MappedObject[] = [];
  let offset = 0;
  const finish = async (end: number): Promise<void> => {
    const map = await keep(objects, ranges.length);
    ranges.push({ offset, length: end - offset, map, objects: objects.length });
    objects = [];
    offset = end;
  };
  for await (const step of chainSteps(chain, signal)) {
    if (step.kind === "object") objects.push(step.object);
    else if (step.at - offset >= rangeBytes) await finish(step.at);
  }
  if (volumeBytes > offset) await finish(volumeBytes);
  return ranges;
}

/** Whether the failure was a write that would fail again: waiting does not make a repository writable, and a full one can still be read. */
function isWriteRefused(error: unknown): boolean {
  if (error instanceof RepositoryDeniedError || error instanceof RepositoryFullError) return true;
  return error instanceof RepositoryUnavailableError && !error.retryable;
}

/** The map slice planned for a range. InvalidBackupError when what is staged or stored has changed since. */
export async function readRange(
  references: readonly BackupReference[],
  range: RestoreRange,
  staging: { operationId: string },
  signal: AbortSignal,
): Promise<MappedObject[]> {
  const [newest] = references;
  if (newest === undefined) throw new InvalidBackupError("There is nothing to restore from.");
  const { map } = range;
  if (map.name !== null) {
    const key = { container: stagingContainer(staging.operationId), name: map.name };
    return readMap(newest.repository, key, { map }, signal);
  }
  const objects: MappedObject[] = [];
  for await (const step of mergeChain({ references, ...map }, signal)) {
    const at = step.kind === "cut" ? step.at : (step.object.segments[0]?.[0] ?? 0);
    if (at >= range.offset + range.length) break;
    if (step.kind === "object" && at >= range.offset) objects.push(step.object);
  }
  if (mapDigest(objects) !== map.digest) {
    throw new InvalidBackupError("The metadata of the chain is not what it was when the restore was planned.");
  }
  return objects;
}

/** Executes one range of a planned restore. Zeros are written unless the target is new. */
export async function restoreRange(
  engine: EngineContext,
  input: {
    chain: readonly BackupReference[];
    range: RestoreRange;
    staging: { operationId: string };
    target: VolumeTarget;
  },
  ctx: RunContext,
): Promise<{ bytesWritten: number; objects: number }> {
  const objects = await readRange(input.chain, input.range, input.staging, ctx.signal);
  const hashes = await findHashList(input.chain[0] as BackupReference, ctx.signal);
  const { offset, length } = input.range;
  const skipZeros = input.target.isNew === true;
  const job = { references: input.chain, hashes, target: input.target, bounds: { offset, length }, skipZeros };
  const bytesWritten = await restoreObjects({ ...job, engine, ctx }, objects);
  await input.target.flush();
  return { bytesWritten, objects: objects.length };
}

/**
 * Restores a whole volume, or the part `extent` of it, in this process, without staging anything. `openTarget` is called with the exact
 * length once the chain has been validated. Zeros are written unless the target is new. The caller keeps ownership of the target.
 */
export async function restoreWhole(
  engine: EngineContext,
  input: {
    chain: readonly BackupReference[];
    target: VolumeTarget | null;
    openTarget?: (volumeBytes: number) => Promise<VolumeTarget>;
    extent?: { offset: number; length: number | null };
  },
  ctx: RunContext,
): Promise<{ bytes: number; warnings: string[] }> {
  const chain = await openChain(input.chain, ctx.signal);
  const bounds = partOf(chain.volumeBytes, input.extent ?? { offset: 0, length: null });
  const target = input.target ?? (await input.openTarget?.(chain.volumeBytes));
  if (target === undefined) throw new InvalidLayoutError("A restore needs a target.");
  if (bounds === null || target.sizeBytes < bounds.offset + bounds.length) {
    throw new InvalidLayoutError("The part to restore does not lie within both the backup and the target.");
  }
  const { references, hashes } = chain;
  const skipZeros = target.isNew === true;
  const job = { engine, references, hashes, target, bounds, skipZeros, ctx };
  const bytes = await restoreObjects(job, objectsWithin(chainSteps(chain, ctx.signal), bounds));
  await target.flush();
  return { bytes, warnings: chainWarnings(chain) };
}

/** Restores objects as they arrive, several concurrently; returns the bytes of the volume they cover within the bounds. */
async function restoreObjects(
  job: Omit<RestoreJob, "access">,
  objects: Iterable<MappedObject> | AsyncIterable<MappedObject>,
): Promise<number> {
  let bytesDone = 0;
  const concurrency = job.engine.pool.threads + 2;
  using access = job.target === null ? null : await DirectAccess.open(job.engine.pool, job.target, concurrency);
  const cached = { ...job, access, hashes: job.hashes === null ? null : cachedHashList(job.hashes) };
  const restored = mapConcurrent(laneGroups(cached, objects), (group, signal) => restoreGroup(cached, group, signal), {
    concurrency,
    signal: job.ctx.signal,
    anyOrder: true,
  });
  for await (const group of restored) {
    for (const { bytes } of group) bytesDone += bytes;
    job.ctx.onProgress({ bytesDone, bytesStored: bytesDone });
  }
  return bytesDone;
}

async function* objectsWithin(steps: AsyncIterable<MergeStep>, bounds: Extent): AsyncGenerator<MappedObject> {
  for await (const step of steps) {
    if (step.kind === "cut") continue;
    const wanted = step.object.segments.some(
      ([start, end]) => end > bounds.offset && start < bounds.offset + bounds.length,
    );
    if (wanted) yield step.object;
  }
}
