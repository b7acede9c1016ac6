import type { BackupReference } from "./backup-reference.ts";
import { type Chain, chainSteps, chainWarnings, findHashList, openChain } from "./chain.ts";
import type { EngineContext } from "./engine-context.ts";
import { InvalidBackupError, InvalidLayoutError } from "./errors.ts";
import { type Extent, partOf } from "./extents.ts";
import { cachedHashList } from "./hash-list.ts";
import { mapConcurrent } from "./map-concurrent.ts";
import type { MappedObject, MergeStep } from "./merge-layers.ts";
import { stagingContainer } from "./repository/repository.ts";
import type { RestoreJob } from "./restore-job.ts";
import { laneGroups, restoreGroup } from "./restore-lanes.ts";
import { readMap, stageMap } from "./restore-map.ts";
import type { RunContext } from "./run-context.ts";
import type { VolumeTarget } from "./volume/volume.ts";

/** A part of a restore that one task carries out, with the staged slice of the map that says where its bytes come from. */
export interface RestoreRange extends Extent {
  map: { name: string; digest: string };
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
 * Merges a chain into one map and stages it in slices next to the newest backup, one per range, cut where no object crosses.
 * Everything that the metadata objects can show to be wrong is found here, before a byte is written.
 */
export async function planRestore(input: PlanRestoreInput, ctx: RunContext): Promise<PlannedRestore> {
  const chain = await openChain(input.chain, ctx.signal);
  const ranges = await stageRanges(chain, input, ctx);
  const volumeMetas = chain.summaries.map((summary) => summary.header.volumeMeta);
  return { volumeBytes: chain.volumeBytes, ranges, volumeMetas, warnings: chainWarnings(chain) };
}

/** Stages the merged map of a chain, slice by slice. */
export async function stageRanges(
  chain: Chain,
  input: Omit<PlanRestoreInput, "chain">,
  ctx: RunContext,
): Promise<RestoreRange[]> {
  const { volumeBytes } = chain;
  const { repository } = chain.references[0] as BackupReference;
  const container = stagingContainer(input.staging.operationId);
  if (input.rangeBytes < 1 || input.rangesMax < 1) throw new InvalidLayoutError("A range must not be empty.");
  const rangeBytes = Math.max(input.rangeBytes, Math.ceil(volumeBytes / input.rangesMax));
  await repository.ensureContainer(container);
  const ranges: RestoreRange[] = [];
  let objects: MappedObject[] = [];
  let offset = 0;
  const finish = async (end: number): Promise<void> => {
    const name = `${input.staging.name}-map-${ranges.length}`;
    const digest = await stageMap(repository, { container, name }, objects, ctx);
    ranges.push({ offset, length: end - offset, map: { name, digest }, objects: objects.length });
    objects = [];
    offset = end;
  };
  for await (const step of chainSteps(chain, ctx.signal)) {
    if (step.kind === "object") objects.push(step.object);
    else if (step.at - offset >= rangeBytes) await finish(step.at);
  }
  if (volumeBytes > offset) await finish(volumeBytes);
  return ranges;
}

/** The staged slice of the map that a range was planned with. */
export function readRange(
  newest: BackupReference,
  range: RestoreRange,
  staging: { operationId: string },
  signal: AbortSignal,
): Promise<MappedObject[]> {
  const key = { container: stagingContainer(staging.operationId), name: range.map.name };
  return readMap(newest.repository, key, range, signal);
}

/** Carries out one range of a planned restore. The target must be a new file: zeros are not written. */
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
  const [newest] = input.chain;
  if (newest === undefined) throw new InvalidBackupError("There is nothing to restore from.");
  const objects = await readRange(newest, input.range, input.staging, ctx.signal);
  const hashes = await findHashList(newest, ctx.signal);
  const { offset, length } = input.range;
  const job = { references: input.chain, hashes, target: input.target, bounds: { offset, length } };
  const bytesWritten = await restoreObjects({ ...job, engine, skipZeros: true, ctx }, objects);
  await input.target.flush();
  return { bytesWritten, objects: objects.length };
}

/**
 * Restores a whole volume, or the part `extent` of it, in this process, without staging anything. `openTarget` is called with
 * the exact length once the chain has been found in order. Zeros are written unless the target is new. The target stays the
 * caller's.
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

/** Restores objects as they come, several at a time; returns the bytes of the volume they cover within the bounds. */
async function restoreObjects(
  job: RestoreJob,
  objects: Iterable<MappedObject> | AsyncIterable<MappedObject>,
): Promise<number> {
  let bytesDone = 0;
  const cached = { ...job, hashes: job.hashes === null ? null : cachedHashList(job.hashes) };
  const restored = mapConcurrent(laneGroups(cached, objects), (group, signal) => restoreGroup(cached, group, signal), {
    concurrency: job.engine.pool.threads + 2,
    signal: job.ctx.signal,
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
