import { createHash } from "node:crypto";
import { read } from "node:fs";
import { promisify } from "node:util";
import { asDamage, type BackupReference, confirmed, damaged, keyOf } from "../chain/backup-reference.ts";
import type { MappedObject } from "../chain/merge-layers.ts";
import { codecOf, memoryFactor, requireCodec } from "../codec/compression.ts";
import { clipExtent } from "../format/extents.ts";
import { dataName } from "../format/layout.ts";
import type { ObjectEntry } from "../format/object-entry.ts";
import { zeroBlockHashes } from "../format/zero-blocks.ts";
import type { ObjectFile, ObjectKey, Repository } from "../repository/repository.ts";
import { claimMemory } from "../run/memory-budget.ts";
import { blockBytesOf, expectedHashes, passOrDamage, type RestoreJob, writeRuns } from "./job.ts";
import { restoreLargeObject } from "./large-object.ts";

const readFile = promisify(read);
/** Size of one read call; bounds how long an abort waits. */
const readBytes = 4 * 1024 * 1024;

/** Larger objects, which only other writers create, are decoded and written piece by piece. */
export const wholeObjectBytesMax = 64 * 1024 * 1024;
/** Compressed zeros are far smaller than this; larger objects are not worth caching. */
const knownZeroBytesMax = 256 * 1024;

/** Fetches, checks and writes one object of the map. Returns the bytes of the volume that it covers within the bounds. */
export async function restoreObject(job: RestoreJob, object: MappedObject, signal: AbortSignal): Promise<number> {
  const { entry } = object;
  requireCodec(entry.compression);
  if (entry.length > wholeObjectBytesMax) {
    await restoreLargeObject(job, object, signal);
  } else {
    const claim = { bytes: entry.length * memoryFactor(entry.compression), of: entry.length };
    const release = await claimMemory(job.engine.memory, claim, { ...job.ctx, signal });
    try {
      const checked = await confirmed(() => fetchAndCheck(job, object, signal));
      await writeRuns(job, entry.offset, checked.data, checked.runs, signal);
      checked.data?.buffer.transfer(0);
    } finally {
      release();
    }
  }
  return coveredBytes(job, object);
}

/** Volume bytes taken from an object, within the bounds. */
export function coveredBytes(job: Pick<RestoreJob, "bounds">, object: MappedObject): number {
  let bytes = 0;
  for (const [start, end] of object.segments) {
    bytes += clipExtent({ offset: start, length: end - start }, job.bounds)?.length ?? 0;
  }
  return bytes;
}

/** Decoded bytes, and which of them to write, as pairs of start and end within the object. `data` null means zeros. */
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
  const compressed = codecOf(entry.compression) !== "none";
  const digest = compressed && stored.length <= knownZeroBytesMax ? storedDigest(stored, entry) : null;
  if (digest !== null && isKnownZero(job, object, digest, expected)) {
    return { data: null, runs: job.skipZeros ? new Float64Array() : segments };
  }
  const request = {
    kind: "checkObject" as const,
    stored,
    compression: entry.compression,
    length: entry.length,
    md5: entry.md5,
    blockBytes: blockBytesOf(job),
    segments,
    expected,
  };
  const moved = expected === null ? [] : [expected.buffer];
  const result = await job.engine.pool.run(request, [stored.buffer, ...moved], signal);
  const { data, dataRuns } = passOrDamage(job, object, result);
  const coversAll = segments.length === 2 && segments[0] === 0 && segments[1] === entry.length;
  if (digest !== null && dataRuns.length === 0 && coversAll && entry.md5 !== null) {
    job.engine.knownZeros.set(digest, { md5: entry.md5 });
  }
  return { data, runs: job.skipZeros ? dataRuns : segments };
}

function storedDigest(stored: Uint8Array, entry: ObjectEntry): string {
  return `${codecOf(entry.compression)}:${entry.length}:${createHash("sha256").update(stored).digest("hex")}`;
}

/** Whether exactly these stored bytes have decoded to zeros before, and the hash list expects zeros here. */
function isKnownZero(job: RestoreJob, object: MappedObject, digest: string, expected: Uint8Array | null): boolean {
  const known = job.engine.knownZeros.get(digest);
  if (known === undefined || known.md5 !== object.entry.md5) return false;
  if (expected === null) return true;
  const wanted = object.segments.map(([start, end]) => zeroBlockHashes(end - start, blockBytesOf(job)));
  return Buffer.concat(wanted).equals(expected);
}

/** The stored bytes of an object; more than its decoded length is never stored. */
async function fetchStored(
  reference: BackupReference,
  name: string,
  lengthMax: number,
  signal: AbortSignal,
): Promise<Uint8Array<ArrayBuffer>> {
  const { repository } = reference;
  const key = keyOf(reference, name);
  try {
    await using file = (await repository.openFile?.(key)) ?? null;
    const { sizeBytes } = file ?? (await repository.stat(key));
    if (sizeBytes > lengthMax) {
      throw damaged(reference, name, `${sizeBytes} bytes are stored, at most ${lengthMax} expected`);
    }
    const stored = new Uint8Array(sizeBytes);
    const done = file === null ? await collect(stored, repository, key, signal) : await fill(stored, file, signal);
    if (done !== sizeBytes) throw damaged(reference, name, `only ${done} of ${sizeBytes} bytes can be read`);
    return stored;
  } catch (error) {
    throw asDamage(reference, name, error);
  }
}

/** Fetches an object of this length; returns the number of bytes received. */
async function collect(
  into: Uint8Array<ArrayBuffer>,
  repository: Repository,
  key: ObjectKey,
  signal: AbortSignal,
): Promise<number> {
  let done = 0;
  for await (const chunk of repository.get(key, { length: into.length, signal })) {
    into.set(chunk, done);
    done += chunk.length;
  }
  return done;
}

/** Reads a file from its start until `into` is full, directly into place: chunks would use much memory until they are collected. */
async function fill(into: Uint8Array<ArrayBuffer>, file: ObjectFile, signal: AbortSignal): Promise<number> {
  let done = 0;
  while (done < into.length) {
    signal.throwIfAborted();
    const { bytesRead } = await readFile(file.descriptor, into, done, Math.min(readBytes, into.length - done), done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}

/** Segments as pairs relative to the object's start. */
export function relativeSegments(object: MappedObject): Float64Array<ArrayBuffer> {
  const { entry, segments } = object;
  return Float64Array.from(segments.flatMap(([start, end]) => [start - entry.offset, end - entry.offset]));
}
