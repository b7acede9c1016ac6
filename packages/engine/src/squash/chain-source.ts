import type { Chain } from "../chain/chain.ts";
import type { MappedObject } from "../chain/merge-layers.ts";
import { clipExtent, type Extent } from "../format/extents.ts";
import type { HashList } from "../format/hash-list.ts";
import { zeroBlockHashes } from "../format/zero-blocks.ts";
import type { RestoreJob } from "../restore/job.ts";
import { restoreObject } from "../restore/object.ts";
import { mapConcurrent } from "../run/map-concurrent.ts";
import { MemoryBudget } from "../run/memory-budget.ts";
import type { RunContext } from "../run/run-context.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import type { VolumeSource, VolumeTarget } from "../volume/volume.ts";

/**
 * For the objects that are being read. Not of the engine's budget, of which the window that they go to has its share already: whoever waited
 * for the one while holding the other could wait for ever.
 */
const readingBytes = 128 * 1024 * 1024;

/**
 * A range of a chain as a volume that is read in whole windows, each once. Whatever is read was checked as a restore checks it. A window that
 * is zero is known from the hash list.
 */
export class ChainSource implements VolumeSource {
  readonly sizeBytes: number;
  readonly #engine: EngineContext;
  readonly #chain: Chain & { hashes: HashList };
  readonly #objects: ReadonlyMap<number, readonly MappedObject[]>;
  readonly #windowBytes: number;
  readonly #ctx: RunContext;

  constructor(
    engine: EngineContext,
    input: {
      chain: Chain & { hashes: HashList };
      /** What each window is made of, by where it begins. */
      objects: ReadonlyMap<number, readonly MappedObject[]>;
      windowBytes: number;
      ctx: RunContext;
    },
  ) {
    this.sizeBytes = input.chain.volumeBytes;
    this.#engine = { ...engine, memory: new MemoryBudget(readingBytes) };
    this.#chain = input.chain;
    this.#objects = input.objects;
    this.#windowBytes = input.windowBytes;
    // Whoever reads has been admitted with the window that it reads for.
    const { admit: _, ...ctx } = input.ctx;
    this.#ctx = ctx;
  }

  /** `into` is zero. */
  async read(into: Uint8Array, offset: number): Promise<void> {
    const bounds = { offset, length: into.length };
    const objects = this.#objects.get(offset - (offset % this.#windowBytes)) ?? [];
    const { references, hashes } = this.#chain;
    const target: VolumeTarget = {
      sizeBytes: this.sizeBytes,
      async write(data, at) {
        into.set(data, at - offset);
      },
      async flush() {},
      async [Symbol.asyncDispose]() {},
    };
    const job: RestoreJob = {
      engine: this.#engine,
      references,
      hashes,
      target,
      access: null,
      skipZeros: true,
      bounds,
      ctx: { ...this.#ctx, onProgress: () => {} },
    };
    const wanted = objects.filter(({ segments }) =>
      segments.some(([start, end]) => clipExtent({ offset: start, length: end - start }, bounds)),
    );
    const restored = mapConcurrent(wanted, (object, signal) => restoreObject(job, object, signal), {
      concurrency: this.#engine.pool.threads,
      signal: this.#ctx.signal,
    });
    for await (const _ of restored);
  }

  async *dataExtents(range: Extent): AsyncGenerator<Extent> {
    const { blockBytes, read } = this.#chain.hashes;
    const ofZeros = zeroBlockHashes(range.length, blockBytes);
    const digests = await read(range.offset / blockBytes, ofZeros.length / 32);
    if (Buffer.compare(digests, ofZeros) !== 0) yield range;
  }

  /** A backup never changes. */
  async fingerprint(): Promise<string> {
    return this.#chain.references.map(({ container, prefix }) => `${container}/${prefix}`).join(" ");
  }

  async [Symbol.asyncDispose](): Promise<void> {}
}
