import type { BackupReference } from "./backup-reference.ts";
import { keyOf } from "./backup-reference.ts";
import { codecOf } from "./compression.ts";
import { EngineError } from "./errors.ts";
import { dataName } from "./layout.ts";
import type { MappedObject } from "./merge-layers.ts";
import { expectedHashes, type RestoreJob, writeRuns } from "./restore-job.ts";
import { coveredBytes, relativeSegments, restoreObject } from "./restore-object.ts";
import { addDataRuns } from "./threads/cpu-tasks.ts";
import { fitsLanes, type LaneSlice, laneMemoryBytes, lanesMax, pumpLanes, sliceBytesOf } from "./threads/pump-lanes.ts";

/** Large objects that go in step: so few that every thread soon has a group. */
const largeLanesMax = 8;

/**
 * Groups objects that can be restored in step: raw ones in files, checked by MD5 and hash list. Those of one slice and larger
 * ones apart, so that no lane stays idle. All others come alone.
 */
export async function* laneGroups(
  job: RestoreJob,
  objects: Iterable<MappedObject> | AsyncIterable<MappedObject>,
): AsyncGenerator<MappedObject[]> {
  const small: MappedObject[] = [];
  const large: MappedObject[] = [];
  for await (const object of objects) {
    if (!fitsStep(job, object)) {
      yield [object];
      continue;
    }
    const group = object.entry.length <= sliceBytesOf(job.hashes?.blockBytes ?? 1) ? small : large;
    group.push(object);
    if (group.length === (group === small ? lanesMax : largeLanesMax)) yield group.splice(0);
  }
  if (large.length > 0) yield large;
  if (small.length > 0) yield small;
}

/** Blocks of the object must be blocks of the list: an object by another writer may be cut otherwise. */
function fitsStep(job: RestoreJob, { layer, entry, segments }: MappedObject): boolean {
  const { hashes, references, engine } = job;
  if (hashes === null || entry.md5 === null || codecOf(entry.compression) !== "none") return false;
  const { blockBytes } = hashes;
  const end = entry.offset + entry.length;
  return (
    references[layer]?.repository.filePath !== undefined &&
    engine.pool.hashing.md5 !== "openssl" &&
    fitsLanes(blockBytes) &&
    entry.offset % blockBytes === 0 &&
    segments.every(([, to]) => to === end || to % blockBytes === 0)
  );
}

/** An object that is done, and how many bytes of the volume it covers within the bounds; 0 when it was found to be damaged. */
export interface DoneObject {
  object: MappedObject;
  bytes: number;
}

/**
 * Restores objects that belong together. Those that cannot go in step, or did not pass there, are done by `alone`, which finds
 * out what is wrong with them.
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
  // One after another: each of them takes its own share of the memory.
  for (const object of again) results.push({ object, bytes: await alone(object) });
  return results;
}

/** An object on its way: what it must be, and what has been found so far. */
interface Lane {
  object: MappedObject;
  path: string;
  /** Per block of the object, where it is used: 32 bytes of the list, and 1 in `used`. */
  expected: Uint8Array;
  used: Uint8Array;
  failed: boolean;
}

/**
 * Reads, checks and writes objects in step, slice by slice. A block is written only when its SHA-256 is right; the MD5 of the
 * whole object is known at its end. Returns the objects that did not pass or could not be read: restoring them one by one finds
 * out, by two separate reads, what is wrong with them.
 */
async function restoreInStep(
  job: RestoreJob,
  objects: readonly MappedObject[],
  signal: AbortSignal,
): Promise<MappedObject[]> {
  const blockBytes = job.hashes?.blockBytes as number;
  const release = await job.engine.memory.claim(laneMemoryBytes(objects.length, blockBytes), signal);
  try {
    const lanes: Lane[] = [];
    const missed: MappedObject[] = [];
    for (const object of objects) {
      const lane = await openLane(job, object, blockBytes);
      if (lane === null) missed.push(object);
      else lanes.push(lane);
    }
    if (lanes.length === 0) return missed;
    const messages = lanes.map(({ path, object }) => {
      const { length } = object.entry;
      return { file: { path, sizeBytes: length }, offset: 0, length, data: null };
    });
    const consume = (slices: LaneSlice[]): Promise<unknown> =>
      Promise.all(slices.map((slice) => writeSlice(job, lanes[slice.index] as Lane, slice, signal)));
    const unread = await pumpLanes(job.engine.pool, { messages, blockBytes }, consume, signal);
    const again = unread === null ? lanes.filter(({ failed }) => failed) : lanes;
    return [...missed, ...again.map(({ object }) => object)];
  } finally {
    release();
  }
}

/** Null when its container or its hashes cannot be read: on its own it will be found out why. */
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
  return path === undefined ? null : { object, path, expected, used, failed: false };
}

async function writeSlice(job: RestoreJob, lane: Lane, slice: LaneSlice, signal: AbortSignal): Promise<void> {
  const { entry } = lane.object;
  const blockBytes = job.hashes?.blockBytes as number;
  if (slice.md5 !== null && slice.md5 !== entry.md5) lane.failed = true;
  const first = slice.offset / blockBytes;
  const runs: number[] = [];
  for (let index = 0; index < slice.zero.length; index++) {
    if (lane.used[first + index] === 0) continue;
    const wanted = Buffer.from(lane.expected.buffer, (first + index) * 32, 32);
    if (wanted.compare(slice.hashes, index * 32, index * 32 + 32) !== 0) lane.failed = true;
    const start = index * blockBytes;
    const length = Math.min(blockBytes, slice.bytes.length - start);
    const skip = job.skipZeros && slice.zero[index] === 1;
    addDataRuns(runs, skip ? skipped : kept, { start, length, blockBytes });
  }
  if (lane.failed) return;
  await writeRuns(job, entry.offset + slice.offset, slice.bytes, Float64Array.from(runs), signal);
}

const kept = Uint8Array.of(0);
const skipped = Uint8Array.of(1);
