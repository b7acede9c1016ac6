import type { BackupReference } from "../chain/backup-reference.ts";
import { chainWarnings, openChain } from "../chain/chain.ts";
import { InvalidLayoutError } from "../errors.ts";
import { partOf } from "../format/extents.ts";
import { mapConcurrent } from "../run/map-concurrent.ts";
import type { RunContext } from "../run/run-context.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import { type Region, regionsWithin, restoreRegion } from "./regions.ts";

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
/** One region is output while the next is fetched. */
const regionsAtOnce = 2;

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
  const fetch = (region: Region, signal: AbortSignal) => restoreRegion(engine, chain, region, { ...ctx, signal });
  let bytes = 0;
  const regions = regionsWithin(chain, bounds, regionBytesAim, ctx.signal);
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
