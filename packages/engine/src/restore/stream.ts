import { randomUUID } from "node:crypto";
import { open, unlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { BackupReference } from "../chain/backup-reference.ts";
import { chainSteps, chainWarnings, openChain } from "../chain/chain.ts";
import type { MappedObject, MergeStep } from "../chain/merge-layers.ts";
import { InvalidLayoutError } from "../errors.ts";
import { clipExtent, type Extent, partOf } from "../format/extents.ts";
import { mapConcurrent } from "../run/map-concurrent.ts";
import { type RunContext, writeBytesMax } from "../run/run-context.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import { guardStorage } from "../volume/storage-error.ts";
import type { VolumeTarget } from "../volume/volume.ts";
import type { RestoreJob } from "./job.ts";
import { restoreObject } from "./object.ts";

export interface RestoreStreamInput {
  /** Newest first; ends with the full backup. */
  chain: readonly BackupReference[];
  /** Receives the bytes in volume order; resolves when it is ready for more. It owns the chunk. */
  sink: (chunk: Uint8Array) => Promise<void>;
  /** Only this part of the volume. */
  extent?: { offset: number; length: number | null };
}

/** Regions end at the first cut after this many bytes, so that small objects do not become small writes. */
const regionBytesAim = 16 * 1024 * 1024;
/** Larger regions, needed only for very large objects, are assembled in a temporary file. */
const inMemoryBytesMax = 64 * 1024 * 1024;
/** One region is output while the next is fetched. */
const regionsAtOnce = 2;

/** Part of a volume that shares no object with the rest. */
interface Region extends Extent {
  objects: MappedObject[];
}

/**
 * Restores a volume, or a part of it, to a sink that accepts bytes only in order. Everything is checked before it is passed on; on damage
 * the call fails, and what was passed on is the data before it.
 */
export async function restoreStream(
  engine: EngineContext,
  input: RestoreStreamInput,
  ctx: RunContext,
): Promise<{ bytes: number; warnings: string[] }> {
  const chain = await openChain(input.chain, ctx.signal);
  const bounds = partOf(chain.volumeBytes, input.extent ?? { offset: 0, length: null });
  if (bounds === null) throw new InvalidLayoutError("The part to restore does not lie within the backup.");
  const { references, hashes } = chain;
  const fetch = async (region: Region, signal: AbortSignal): Promise<RegionTarget> => {
    const target = await openRegionTarget(region);
    try {
      const job: RestoreJob = {
        engine,
        references,
        hashes,
        target,
        access: null,
        skipZeros: true,
        bounds: region,
        ctx,
      };
      const restored = mapConcurrent(region.objects, (object, inner) => restoreObject(job, object, inner), {
        concurrency: engine.pool.threads,
        signal,
      });
      for await (const _ of restored);
      return target;
    } catch (error) {
      await target[Symbol.asyncDispose]();
      throw error;
    }
  };
  let bytes = 0;
  const regions = regionsWithin(chainSteps(chain, ctx.signal), chain.volumeBytes, bounds);
  for await (const region of mapConcurrent(regions, fetch, { concurrency: regionsAtOnce, signal: ctx.signal })) {
    await using target = region;
    for await (const chunk of target.chunks()) {
      ctx.signal.throwIfAborted();
      await input.sink(chunk);
      bytes += chunk.length;
      ctx.onProgress({ bytesDone: bytes, bytesStored: bytes });
    }
  }
  return { bytes, warnings: chainWarnings(chain) };
}

async function* regionsWithin(
  steps: AsyncIterable<MergeStep>,
  volumeBytes: number,
  bounds: Extent,
): AsyncGenerator<Region> {
  let start = 0;
  let objects: MappedObject[] = [];
  const upTo = (end: number): Region | null => {
    const part = clipExtent({ offset: start, length: end - start }, bounds);
    const region = part === null ? null : { ...part, objects };
    start = end;
    objects = [];
    return region;
  };
  for await (const step of steps) {
    if (step.kind === "object") {
      const inside = step.object.segments.some(([from, to]) => clipExtent({ offset: from, length: to - from }, bounds));
      if (inside) objects.push(step.object);
      continue;
    }
    if (step.at - start < regionBytesAim) continue;
    const region = upTo(step.at);
    if (region !== null) yield region;
    if (step.at >= bounds.offset + bounds.length) return;
  }
  const last = upTo(volumeBytes);
  if (last !== null) yield last;
}

/** Where a region is assembled. Zero until written; read once, in order. */
interface RegionTarget extends VolumeTarget {
  chunks(): AsyncIterable<Uint8Array>;
}

async function openRegionTarget(region: Extent): Promise<RegionTarget> {
  return region.length <= inMemoryBytesMax ? memoryTarget(region) : fileTarget(region);
}

function memoryTarget(region: Extent): RegionTarget {
  const bytes = new Uint8Array(region.length);
  return {
    sizeBytes: region.offset + region.length,
    async write(data, offset) {
      bytes.set(data, offset - region.offset);
    },
    async flush() {},
    async *chunks() {
      for (let at = 0; at < bytes.length; at += writeBytesMax) yield bytes.subarray(at, at + writeBytesMax);
    },
    async [Symbol.asyncDispose]() {},
  };
}

/** An unlinked file: it disappears with its descriptor, whatever happens. */
async function fileTarget(region: Extent): Promise<RegionTarget> {
  const path = join(tmpdir(), `tephra-region-${randomUUID()}`);
  const file = await guardStorage(`create ${path}`, () => open(path, "wx+", 0o600));
  try {
    await guardStorage(`remove ${path}`, () => unlink(path));
    await guardStorage(`write ${path}`, () => file.truncate(region.length));
  } catch (error) {
    await file.close();
    throw error;
  }
  return {
    sizeBytes: region.offset + region.length,
    async write(data, offset) {
      for (let done = 0; done < data.length; ) {
        const at = offset - region.offset + done;
        const { bytesWritten } = await guardStorage(`write ${path}`, () =>
          file.write(data, done, data.length - done, at),
        );
        done += bytesWritten;
      }
    },
    async flush() {},
    async *chunks() {
      for (let at = 0; at < region.length; ) {
        const chunk = new Uint8Array(Math.min(writeBytesMax, region.length - at));
        const { bytesRead } = await guardStorage(`read ${path}`, () => file.read(chunk, 0, chunk.length, at));
        at += bytesRead;
        yield chunk.subarray(0, bytesRead);
      }
    },
    [Symbol.asyncDispose]: () => file.close(),
  };
}
