import { type BackupReference, damaged } from "../chain/backup-reference.ts";
import type { MappedObject } from "../chain/merge-layers.ts";
import { clipExtent, type Extent } from "../format/extents.ts";
import type { HashList } from "../format/hash-list.ts";
import { dataName, hashListName } from "../format/layout.ts";
import { type RunContext, writeBytesMax } from "../run/run-context.ts";
import type { CheckObjectResult } from "../threads/cpu-tasks.ts";
import type { DirectAccess } from "../threads/direct-access.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import type { VolumeTarget } from "../volume/volume.ts";

/** What all objects of one restore share. */
export interface RestoreJob {
  engine: EngineContext;
  /** Newest first. */
  references: readonly BackupReference[];
  /** Hash list of the backup being restored; null when it has none: then only lengths and MD5 are checked. */
  hashes: HashList | null;
  /** Null to verify everything and write nothing. */
  target: VolumeTarget | null;
  /** How threads write the target; null when everything is written by request. */
  access: DirectAccess | null;
  /** Whether the target is known to be all zeros, so that zeros need not be written. */
  skipZeros: boolean;
  /** Only this part of the volume is written. */
  bounds: Extent;
  ctx: RunContext;
}

/**
 * Throws DamagedObjectError unless the check passed. When the hash list disagrees, the error names the list, since the object's MD5
 * matches.
 */
export function passOrDamage(
  job: Pick<RestoreJob, "references">,
  object: MappedObject,
  result: CheckObjectResult,
): CheckObjectResult & { outcome: "ok" } {
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

/** The unit of zero detection where no hash list defines a block size. */
const blockBytesUnhashed = 32 * 1024;

export function blockBytesOf(job: Pick<RestoreJob, "hashes">): number {
  return job.hashes?.blockBytes ?? blockBytesUnhashed;
}

/** The hashes of all blocks of the segments, in order; null without a hash list. */
export async function expectedHashes(
  hashes: HashList | null,
  segments: readonly (readonly [number, number])[],
): Promise<Uint8Array<ArrayBuffer> | null> {
  if (hashes === null) return null;
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

const zeros = new Uint8Array(writeBytesMax);

/** Writes runs of an object (pairs relative to its start), clipped to the bounds, in pieces no larger than one fence check allows. */
export async function writeRuns(
  job: RestoreJob,
  objectOffset: number,
  data: Uint8Array | null,
  runs: Float64Array,
  signal: AbortSignal,
): Promise<void> {
  const { target } = job;
  if (target === null) return;
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
      await target.write(data === null ? zeros.subarray(0, piece) : data.subarray(from, from + piece), offset);
    }
  }
}
