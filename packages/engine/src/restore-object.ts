import { createHash } from "node:crypto";
import { asDamage, type BackupReference, confirmed, damaged, keyOf } from "./backup-reference.ts";
import { type EngineContext, remember } from "./engine-context.ts";
import type { Extent } from "./extents.ts";
import { clipExtent } from "./extents.ts";
import type { HashList } from "./hash-list.ts";
import { restoreLargeObject } from "./large-object.ts";
import { dataName, hashListName } from "./layout.ts";
import type { MappedObject } from "./merge-layers.ts";
import { type RunContext, writeBytesMax } from "./run-context.ts";
import type { CheckObjectResult } from "./threads/cpu-tasks.ts";
import type { VolumeTarget } from "./volume/volume.ts";
import { zeroBlockHashes } from "./zero-blocks.ts";

/** What all objects of one restore have in common. */
export interface RestoreJob {
  engine: EngineContext;
  /** Newest first. */
  references: readonly BackupReference[];
  /** Of the backup being restored. */
  hashes: HashList;
  target: VolumeTarget;
  /** Whether the target is known to be zero everywhere, so that zeros need not be written. */
  skipZeros: boolean;
  /** Only this part of the volume is written. */
  bounds: Extent;
  ctx: RunContext;
}

/** Larger objects, which only others write, are decoded and written piece by piece. */
export const wholeObjectBytesMax = 64 * 1024 * 1024;
/** Compressed zeros are far smaller than this; larger objects are not worth remembering. */
const knownZeroBytesMax = 256 * 1024;

/** Fetches, checks and writes one object of the map. Returns the bytes of the volume that it covers within the bounds. */
export async function restoreObject(job: RestoreJob, object: MappedObject, signal: AbortSignal): Promise<number> {
  const { entry } = object;
  if (entry.length > wholeObjectBytesMax) {
    await restoreLargeObject(job, object, signal);
  } else {
    const release = await job.engine.memory.claim(entry.length * (entry.compression === "zlib" ? 1.5 : 1), signal);
    try {
      const checked = await confirmed(() => fetchAndCheck(job, object, signal));
      await writeRuns(job, entry.offset, checked.data, checked.runs, signal);
      checked.data?.buffer.transfer(0);
    } finally {
      release();
    }
  }
  let bytes = 0;
  for (const [start, end] of object.segments) {
    bytes += clipExtent({ offset: start, length: end - start }, job.bounds)?.length ?? 0;
  }
  return bytes;
}

/** Decoded bytes, and what to write of them as pairs of start and end within the object. `data` null means zeros. */
interface Checked {
  data: Uint8Array<ArrayBuffer> | null;
  runs: Float64Array;
}

async function fetchAndCheck(job: RestoreJob, object: MappedObject, signal: AbortSignal): Promise<Checked> {
  const { entry } = object;
  const reference = job.references[object.layer] as BackupReference;
  const stored = await fetchStored(reference, dataName(reference.prefix, entry.number), entry.length, signal);
  const expected = await expectedHashes(job.hashes, object.segments);
  const segments = relativeSegments(object);
  const digest = stored.length <= knownZeroBytesMax ? storedDigest(stored, entry.length) : null;
  if (digest !== null && isKnownZero(job, object, digest, expected)) {
    return { data: null, runs: job.skipZeros ? new Float64Array() : segments };
  }
  const request = {
    kind: "checkObject" as const,
    stored,
    compression: entry.compression,
    length: entry.length,
    md5: entry.md5,
    blockBytes: job.hashes.blockBytes,
    segments,
    expected,
  };
  const result = await job.engine.pool.run(request, [stored.buffer, expected.buffer], signal);
  const { data, dataRuns } = await passOrDamage(job, object, result);
  const coversAll = segments.length === 2 && segments[0] === 0 && segments[1] === entry.length;
  if (digest !== null && dataRuns.length === 0 && coversAll && entry.compression === "zlib") {
    remember(job.engine.knownZeros, digest, { md5: entry.md5 });
  }
  return { data, runs: job.skipZeros ? dataRuns : segments };
}

function storedDigest(stored: Uint8Array, length: number): string {
  return `${length}:${createHash("sha256").update(stored).digest("hex")}`;
}

/** Whether exactly these stored bytes were decoded before and gave zeros, and zeros are what the hash list wants here. */
function isKnownZero(job: RestoreJob, object: MappedObject, digest: string, expected: Uint8Array): boolean {
  const known = job.engine.knownZeros.get(digest);
  if (known === undefined || known.md5 !== object.entry.md5 || object.entry.compression !== "zlib") return false;
  const wanted = object.segments.map(([start, end]) => zeroBlockHashes(end - start, job.hashes.blockBytes));
  return Buffer.concat(wanted).equals(expected);
}

/** Throws DamagedObjectError unless the check passed. When the hash list disagrees it is named, since the object's MD5 holds. */
export async function passOrDamage(
  job: Pick<RestoreJob, "references">,
  object: MappedObject,
  result: CheckObjectResult,
): Promise<CheckObjectResult & { outcome: "ok" }> {
  const reference = job.references[object.layer] as BackupReference;
  const newest = job.references[0] as BackupReference;
  const name = dataName(reference.prefix, object.entry.number);
  switch (result.outcome) {
    case "ok":
      return result;
    case "object":
      throw damaged(reference, name, result.reason);
    case "hash": {
      const at = object.entry.offset + result.at;
      const reason = `the hash of the block at byte ${at} does not match what object ${name} holds there`;
      throw damaged(newest, hashListName(newest.prefix), reason);
    }
  }
}

/** The stored bytes of an object; more than its decoded length is never stored. */
async function fetchStored(
  reference: BackupReference,
  name: string,
  lengthMax: number,
  signal: AbortSignal,
): Promise<Uint8Array<ArrayBuffer>> {
  const key = keyOf(reference, name);
  try {
    const { sizeBytes } = await reference.repository.stat(key);
    if (sizeBytes > lengthMax) throw damaged(reference, name, `${sizeBytes} bytes are stored, at most ${lengthMax} expected`);
    const stored = new Uint8Array(sizeBytes);
    let done = 0;
    for await (const chunk of reference.repository.get(key, { length: sizeBytes, signal })) {
      stored.set(chunk, done);
      done += chunk.length;
    }
    if (done !== sizeBytes) throw damaged(reference, name, `only ${done} of ${sizeBytes} bytes can be read`);
    return stored;
  } catch (error) {
    throw asDamage(reference, name, error);
  }
}

/** The hashes of all blocks of the segments, in order. */
export async function expectedHashes(
  hashes: HashList,
  segments: readonly (readonly [number, number])[],
): Promise<Uint8Array<ArrayBuffer>> {
  const first = (segments[0] as readonly [number, number])[0] / hashes.blockBytes;
  const last = Math.ceil((segments.at(-1) as readonly [number, number])[1] / hashes.blockBytes);
  const all = await hashes.read(first, last - first);
  const parts = segments.map(([start, end]) => {
    const from = start / hashes.blockBytes - first;
    return all.subarray(from * 32, (Math.ceil(end / hashes.blockBytes) - first) * 32);
  });
  if (parts.length === 1) return all;
  const joined = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    joined.set(part, at);
    at += part.length;
  }
  return joined;
}

/** Segments as pairs relative to the object's start. */
export function relativeSegments(object: MappedObject): Float64Array<ArrayBuffer> {
  const { entry, segments } = object;
  return Float64Array.from(segments.flatMap(([start, end]) => [start - entry.offset, end - entry.offset]));
}

const zeros = new Uint8Array(writeBytesMax);

/** Writes runs of an object (pairs relative to its start) that lie within the bounds, in pieces that the fence allows. */
export async function writeRuns(
  job: RestoreJob,
  objectOffset: number,
  data: Uint8Array | null,
  runs: Float64Array,
  signal: AbortSignal,
): Promise<void> {
  for (let pair = 0; pair < runs.length; pair += 2) {
    const start = runs[pair] as number;
    const length = (runs[pair + 1] as number) - start;
    const clipped = clipExtent({ offset: objectOffset + start, length }, job.bounds);
    if (clipped === null) continue;
    const end = clipped.offset + clipped.length;
    for (let offset = clipped.offset; offset < end; offset += writeBytesMax) {
      const piece = Math.min(writeBytesMax, end - offset);
      const from = offset - objectOffset;
      signal.throwIfAborted();
      job.ctx.fence();
      await job.target.write(data === null ? zeros.subarray(0, piece) : data.subarray(from, from + piece), offset);
    }
  }
}
