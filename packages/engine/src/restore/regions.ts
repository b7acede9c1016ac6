import { type Chain, chainSteps } from "../chain/chain.ts";
import type { MappedObject } from "../chain/merge-layers.ts";
import { clipExtent, type Extent } from "../format/extents.ts";
import { mapConcurrent } from "../run/map-concurrent.ts";
import { type RunContext, writeBytesMax } from "../run/run-context.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import type { VolumeTarget } from "../volume/volume.ts";
import type { RestoreJob } from "./job.ts";
import { restoreObject } from "./object.ts";
import { openScratchFile } from "./scratch-file.ts";

/** Larger regions, needed only for very large objects, are assembled in a temporary file. */
const inMemoryBytesMax = 64 * 1024 * 1024;

/** Part of a volume that shares no object with the rest. */
export interface Region extends Extent {
  objects: MappedObject[];
}

/** The regions of a chain within the bounds, in order. Each ends at the first cut after `bytesAim`. */
export async function* regionsWithin(
  chain: Chain,
  bounds: Extent,
  bytesAim: number,
  signal: AbortSignal,
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
  for await (const step of chainSteps(chain, signal)) {
    if (step.kind === "object") {
      const inside = step.object.segments.some(([from, to]) => clipExtent({ offset: from, length: to - from }, bounds));
      if (inside) objects.push(step.object);
      continue;
    }
    if (step.at - start < bytesAim) continue;
    const region = upTo(step.at);
    if (region !== null) yield region;
    if (step.at >= bounds.offset + bounds.length) return;
  }
  const last = upTo(chain.volumeBytes);
  if (last !== null) yield last;
}

/** Fetches and checks everything that a region holds. */
export async function restoreRegion(
  engine: EngineContext,
  { references, hashes }: Pick<Chain, "references" | "hashes">,
  region: Region,
  ctx: RunContext,
): Promise<RegionTarget> {
  const target = await openRegionTarget(region);
  try {
    const job: RestoreJob = { engine, references, hashes, target, access: null, skipZeros: true, bounds: region, ctx };
    const restored = mapConcurrent(region.objects, (object, signal) => restoreObject(job, object, signal), {
      concurrency: engine.pool.threads,
      signal: ctx.signal,
    });
    for await (const _ of restored);
    return target;
  } catch (error) {
    await target[Symbol.asyncDispose]();
    throw error;
  }
}

/** Where a region is assembled. Zero until written. Offsets are those of the volume. */
export interface RegionTarget extends VolumeTarget {
  /** All of it, in order. */
  chunks(): AsyncIterable<Uint8Array>;
  read(into: Uint8Array, offset: number): Promise<void>;
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
    async read(into, offset) {
      into.set(bytes.subarray(offset - region.offset, offset - region.offset + into.length));
    },
    async *chunks() {
      for (let at = 0; at < bytes.length; at += writeBytesMax) yield bytes.subarray(at, at + writeBytesMax);
    },
    async [Symbol.asyncDispose]() {},
  };
}

async function fileTarget(region: Extent): Promise<RegionTarget> {
  const file = await openScratchFile(region.length);
  return {
    sizeBytes: region.offset + region.length,
    write: (data, offset) => file.write(data, offset - region.offset),
    async flush() {},
    read: (into, offset) => file.read(into, offset - region.offset),
    async *chunks() {
      for (let at = 0; at < region.length; at += writeBytesMax) {
        const chunk = new Uint8Array(Math.min(writeBytesMax, region.length - at));
        await file.read(chunk, at);
        yield chunk;
      }
    },
    [Symbol.asyncDispose]: () => file[Symbol.asyncDispose](),
  };
}
