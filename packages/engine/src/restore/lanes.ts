import type { BackupReference } from "../chain/backup-reference.ts";
import { keyOf } from "../chain/backup-reference.ts";
import type { MappedObject } from "../chain/merge-layers.ts";
import { codecOf } from "../codec/compression.ts";
import { EngineError } from "../errors.ts";
import { dataName } from "../format/layout.ts";
import { claimMemory } from "../run/memory-budget.ts";
import type { CpuResult } from "../threads/cpu-tasks.ts";
import { nbdError } from "../threads/direct-access.ts";
import { fitsLanes, laneMemoryBytes, lanesMax, sliceBytesOf } from "../threads/lane-sizes.ts";
import type { ThreadPlace } from "../threads/thread-place.ts";
import type { LaneTarget, UnwrittenResult, WriteLanePiece, WriteLanesRequest } from "../threads/write-lanes.ts";
import type { VolumeTarget } from "../volume/volume.ts";
import { expectedHashes, type RestoreJob } from "./job.ts";
import { coveredBytes, relativeSegments, restoreObject } from "./object.ts";

/**
 * Groups objects that can be restored in lockstep: raw ones stored as files, checked by MD5 and hash list, for a target that threads may
 * write. Single-slice and larger objects are grouped separately, so that no lane stays idle. Of larger ones, as many as fill the lanes of all
 * threads are gathered and shared out evenly: eight lanes take as long as sixteen. All others are yielded alone.
 */
export async function* laneGroups(
  job: RestoreJob,
  objects: Iterable<MappedObject> | AsyncIterable<MappedObject>,
): AsyncGenerator<MappedObject[]> {
  const { threads } = job.engine.pool;
  const small: MappedObject[] = [];
  const large: MappedObject[] = [];
  for await (const object of objects) {
    if (!fitsStep(job, object)) {
      yield [object];
      continue;
    }
    const group = object.entry.length <= sliceBytesOf(job.hashes?.blockBytes ?? 1) ? small : large;
    group.push(object);
    if (small.length === lanesMax) yield small.splice(0);
    if (large.length === threads * lanesMax) yield* shares(large.splice(0), threads);
  }
  yield* shares(large, threads);
  if (small.length > 0) yield small;
}

/** Consecutive parts of nearly equal length, none of them empty. */
function* shares<Item>(items: readonly Item[], parts: number): Generator<Item[]> {
  for (let part = 0; part < parts; part++) {
    const bounds = [part, part + 1].map((at) => Math.floor((items.length * at) / parts));
    if (bounds[0] !== bounds[1]) yield items.slice(...bounds);
  }
}

/** The object's blocks must align with the list's: objects by another writer may be cut differently. */
function fitsStep(job: RestoreJob, { layer, entry, segments }: MappedObject): boolean {
  const { hashes, references, engine } = job;
  if (hashes === null || entry.md5 === null || codecOf(entry.compression) !== "none") return false;
  const { blockBytes } = hashes;
  const end = entry.offset + entry.length;
  return (
    references[layer]?.repository.filePath !== undefined &&
    (job.target === null || ((job.access?.places ?? 0) > 0 && job.ctx.writableUntil !== undefined)) &&
    engine.pool.hashing.md5 !== "openssl" &&
    fitsLanes(blockBytes) &&
    entry.offset % blockBytes === 0 &&
    segments.every(([, to]) => to === end || to % blockBytes === 0)
  );
}

/** A finished object, and how many bytes of the volume it covers within the bounds; 0 when it was damaged. */
export interface DoneObject {
  object: MappedObject;
  bytes: number;
}

/**
 * Restores a group of objects. Those that cannot be restored in lockstep, or failed there, are handled by `alone`, which determines what
 * is wrong with them.
 */
export async function restoreGroup(
  job: RestoreJob,
  objects: readonly MappedObject[],
  signal: AbortSignal,
  alone: (object: MappedObject) => Promise<number> = (object) => restoreObject(job, object, signal),
): Promise<DoneObject[]> {
  const [first] = objects;
  const inStep = first !== undefined && fitsStep(job, first);
  const again = inStep ? await restoreInStep(job, objects, signal) : objects;
  const done = objects.filter((object) => !again.includes(object));
  const results = done.map((object) => ({ object, bytes: coveredBytes(job, object) }));
  // One after another: each of them claims its own memory.
  for (const object of again) results.push({ object, bytes: await alone(object) });
  return results;
}

/** An object in progress, with its expected contents. */
interface Lane {
  object: MappedObject;
  md5: string;
  path: string;
  /** Per block of the object: the 32 bytes of its expected hash, and 1 in `used` where the restore needs the block. */
  expected: Uint8Array<ArrayBuffer>;
  used: Uint8Array<ArrayBuffer>;
}

/**
 * Slices of each object per request to a thread: enough to make the request overhead negligible, few enough for groups to share the
 * threads.
 */
const slicesPerStep = 16;

/**
 * Has threads read, check and write objects in lockstep. A block is written only when its SHA-256 matches; the MD5 of the whole object is
 * known at its end. Returns the objects that failed a check or could not be read or written: restoring them one by one determines, by two
 * separate reads, what is wrong.
 */
async function restoreInStep(
  job: RestoreJob,
  objects: readonly MappedObject[],
  signal: AbortSignal,
): Promise<MappedObject[]> {
  const blockBytes = job.hashes?.blockBytes as number;
  const of = objects.reduce((sum, { entry }) => sum + entry.length, 0);
  const claim = { bytes: laneMemoryBytes(objects.length, blockBytes), of };
  const release = await claimMemory(job.engine.memory, claim, { ...job.ctx, signal });
  try {
    const lanes: Lane[] = [];
    const missed: MappedObject[] = [];
    for (const object of objects) {
      const lane = await openLane(job, object, blockBytes);
      if (lane === null) missed.push(object);
      else lanes.push(lane);
    }
    if (lanes.length === 0) return missed;
    const write = (place: ThreadPlace | null) => writeInSteps(job, lanes, { place, blockBytes }, signal);
    const { failed } = await (job.access === null ? write(null) : job.access.use(write));
    return [...missed, ...failed.map(({ object }) => object)];
  } finally {
    release();
  }
}

/** Returns the objects that failed: all of them where there is no place for a thread to write to. */
async function writeInSteps(
  job: RestoreJob,
  lanes: Lane[],
  { place, blockBytes }: { place: ThreadPlace | null; blockBytes: number },
  signal: AbortSignal,
): Promise<{ failed: Lane[]; unwritten?: true }> {
  if (place === null && job.target !== null) return { failed: lanes };
  const target = laneTarget(job, place);
  const stepBytes = slicesPerStep * sliceBytesOf(blockBytes);
  const longest = Math.max(...lanes.map(({ object }) => object.entry.length));
  const failed = new Set<Lane>();
  let states: Uint8Array<ArrayBuffer> | null = null;
  for (let at = 0; at < longest; at += stepBytes) {
    if (job.target !== null) job.ctx.fence();
    const pieces = lanes.map((lane) => pieceAt(lane, at, stepBytes, blockBytes));
    const request: WriteLanesRequest = { kind: "writeLanes", blockBytes, pieces, states, target };
    const moved: ArrayBuffer[] = states === null ? [] : [states.buffer];
    const result: CpuResult<WriteLanesRequest> = await job.engine.pool.run(request, moved, signal);
    if ("unwritten" in result) {
      refuseLostWrites(job.target, result);
      return { failed: lanes, unwritten: true };
    }
    if ("unread" in result) return { failed: lanes };
    for (const [index, lane] of lanes.entries()) if (result.failed[index] === 1) failed.add(lane);
    states = result.states;
  }
  return { failed: [...failed] };
}

/** A write on a connection that was lost may happen at any time, also when others have written there: the target cannot be called complete. */
function refuseLostWrites(target: VolumeTarget | null, { failure }: UnwrittenResult): void {
  const to = target?.nbdExport;
  if (failure !== undefined && failure.errno === null && to !== undefined) throw nbdError(to, failure);
}

function pieceAt(lane: Lane, at: number, stepBytes: number, blockBytes: number): WriteLanePiece {
  const { entry } = lane.object;
  const length = Math.max(0, Math.min(stepBytes, entry.length - at));
  const first = at / blockBytes;
  const end = first + Math.ceil(length / blockBytes);
  return {
    file: { path: lane.path, sizeBytes: entry.length },
    offset: at,
    length,
    endsAt: length > 0 && at + length === entry.length ? entry.length : null,
    md5: lane.md5,
    volumeOffset: entry.offset + at,
    expected: lane.expected.slice(first * 32, end * 32),
    used: lane.used.slice(first, end),
  };
}

function laneTarget({ skipZeros, bounds, ctx }: RestoreJob, place: ThreadPlace | null): LaneTarget | null {
  if (place === null) return null;
  return { place, skipZeros, bounds, writableUntil: ctx.writableUntil as BigInt64Array<SharedArrayBuffer> };
}

/** Null when its container or hashes cannot be read: restoring it alone determines why. */
async function openLane(job: RestoreJob, object: MappedObject, blockBytes: number): Promise<Lane | null> {
  try {
    return await openLaneOrThrow(job, object, blockBytes);
  } catch (error) {
    if (error instanceof EngineError) return null;
    throw error;
  }
}

async function openLaneOrThrow(job: RestoreJob, object: MappedObject, blockBytes: number): Promise<Lane | null> {
  const { entry, segments } = object;
  const { md5 } = entry;
  const reference = job.references[object.layer] as BackupReference;
  const listed = await expectedHashes(job.hashes, segments);
  const blocks = Math.ceil(entry.length / blockBytes);
  const expected = new Uint8Array(blocks * 32);
  const used = new Uint8Array(blocks);
  let taken = 0;
  const pairs = relativeSegments(object);
  for (let pair = 0; pair < pairs.length; pair += 2) {
    const first = (pairs[pair] as number) / blockBytes;
    const end = Math.ceil((pairs[pair + 1] as number) / blockBytes);
    used.fill(1, first, end);
    expected.set((listed as Uint8Array).subarray(taken * 32, (taken + end - first) * 32), first * 32);
    taken += end - first;
  }
  const path = await reference.repository.filePath?.(keyOf(reference, dataName(reference.prefix, entry.number)));
  return path === undefined || md5 === null ? null : { object, md5, path, expected, used };
}
