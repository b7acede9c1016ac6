import { LRUCache } from "lru-cache";
import type { BackupReference } from "../chain/backup-reference.ts";
import { type Chain, openChain } from "../chain/chain.ts";
import { clipExtent, type Extent } from "../format/extents.ts";
import { cachedHashList, type HashList, hashesPerReadMax } from "../format/hash-list.ts";
import { zeroBlockHashes } from "../format/zero-blocks.ts";
import type { RunContext } from "../run/run-context.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import type { VolumeSource } from "../volume/volume.ts";
import { mapBytes, parseMap } from "./map.ts";
import { type RegionTarget, regionsWithin, restoreRegion } from "./regions.ts";
import { openScratchFile, type ScratchFile } from "./scratch-file.ts";

/** The decoded regions of all backups that an engine has open: what is read again soon need not be fetched again. */
export type RegionCache = LRUCache<string, OpenRegion>;

/** Most bytes of decoded regions that are kept; what is being read at the moment comes on top. */
const cachedBytesMax = 256 * 1024 * 1024;

export const newRegionCache = (): RegionCache =>
  new LRUCache({ maxSize: cachedBytesMax, dispose: (region) => region.release() });

/** Closed when the cache has let go of it, and the last read of it has ended. */
class OpenRegion {
  readonly target: Promise<RegionTarget>;
  #users = 1;

  constructor(target: Promise<RegionTarget>) {
    this.target = target;
    target.catch(() => {});
  }

  retain(): void {
    this.#users += 1;
  }

  release(): void {
    this.#users -= 1;
    if (this.#users === 0)
      this.target.then(
        (target) => target[Symbol.asyncDispose](),
        () => {},
      );
  }
}

/** Regions end at the first cut after this many bytes: what a small read has to fetch, and what small objects are gathered to. */
const regionBytesAim = 1024 * 1024;
const linesBytesMax = 1024 * 1024;

/** What backups are opened with. */
export interface BackupSourceContext extends EngineContext {
  regions: RegionCache;
}

/** Where each region begins in the volume, and where the lines of its objects begin in a scratch file. */
interface RegionIndex {
  starts: number[];
  places: number[];
  lines: ScratchFile;
}

/**
 * A backup as a volume to read, any part at any time, without restoring it. Whatever is read was checked as a restore checks it:
 * DamagedObjectError for what is damaged, and only there. What is known to be zero is known from the hash list, without reading.
 * The map of the chain is kept in a temporary file, and decoded regions in the engine's cache.
 */
export async function openBackupSource(
  engine: BackupSourceContext,
  input: { chain: readonly BackupReference[] },
  signal: AbortSignal,
): Promise<VolumeSource> {
  const chain = await openChain(input.chain, signal);
  const index = await indexRegions(chain, signal);
  return new BackupSource(engine, chain, index);
}

async function indexRegions(chain: Chain, signal: AbortSignal): Promise<RegionIndex> {
  await using stack = new AsyncDisposableStack();
  const index: RegionIndex = { starts: [], places: [0], lines: stack.use(await openScratchFile(0)) };
  let [written, end] = [0, 0];
  let pending: Buffer[] = [];
  const flush = async (): Promise<void> => {
    await index.lines.write(Buffer.concat(pending), written);
    pending = [];
    written = end;
  };
  const whole = { offset: 0, length: chain.volumeBytes };
  for await (const { offset, objects } of regionsWithin(chain, whole, regionBytesAim, signal)) {
    for (const object of objects) {
      const line = mapBytes(object);
      pending.push(line);
      end += line.length;
    }
    index.starts.push(offset);
    index.places.push(end);
    if (end - written >= linesBytesMax) await flush();
  }
  await flush();
  stack.move();
  return index;
}

let opened = 0;

class BackupSource implements VolumeSource {
  readonly sizeBytes: number;
  readonly #engine: BackupSourceContext;
  readonly #chain: Pick<Chain, "references" | "hashes">;
  readonly #index: RegionIndex;
  readonly #closing = new AbortController();
  /** Names its regions among those of all backups. */
  readonly #number = ++opened;

  constructor(engine: BackupSourceContext, chain: Chain, index: RegionIndex) {
    const { references, hashes, volumeBytes } = chain;
    this.sizeBytes = volumeBytes;
    this.#engine = engine;
    this.#chain = { references, hashes: hashes && cachedHashList(hashes) };
    this.#index = index;
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    for (let done = 0; done < into.length; ) {
      const number = this.#regionAt(offset + done);
      const { offset: start, length } = this.#extentOf(number);
      const part = into.subarray(done, done + Math.min(into.length - done, start + length - offset - done));
      const region = this.#open(number);
      region.retain();
      try {
        await (await region.target).read(part, offset + done);
      } finally {
        region.release();
      }
      done += part.length;
    }
  }

  async *dataExtents(range: Extent): AsyncGenerator<Extent> {
    const { hashes } = this.#chain;
    if (hashes === null) yield range;
    else yield* this.#unlikeZeros(hashes, range);
  }

  async *#unlikeZeros(hashes: HashList, range: Extent): AsyncGenerator<Extent> {
    const { blockBytes } = hashes;
    const end = Math.min(range.offset + range.length, this.sizeBytes);
    let data: Extent | null = null;
    for (let first = Math.floor(range.offset / blockBytes); first * blockBytes < end; first += hashesPerReadMax) {
      const start = first * blockBytes;
      const length = Math.min(hashesPerReadMax * blockBytes, Math.ceil(end / blockBytes) * blockBytes - start);
      const ofZeros = zeroBlockHashes(Math.min(length, this.sizeBytes - start), blockBytes);
      const digests = await hashes.read(first, ofZeros.length / 32);
      for (let at = 0; at < digests.length; at += 32) {
        if (Buffer.compare(digests.subarray(at, at + 32), ofZeros.subarray(at, at + 32)) === 0) continue;
        const block = clipExtent({ offset: start + (at / 32) * blockBytes, length: blockBytes }, range);
        if (block === null) continue;
        if (data !== null && data.offset + data.length === block.offset) data.length += block.length;
        else {
          if (data !== null) yield data;
          data = block;
        }
      }
    }
    if (data !== null) yield data;
  }

  /** A backup never changes. */
  async fingerprint(): Promise<string> {
    return this.#chain.references.map(({ backupId }) => backupId).join(" ");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort(new Error("The backup was closed while it was read."));
    for (let number = 0; number < this.#index.starts.length; number++) this.#engine.regions.delete(this.#key(number));
    await this.#index.lines[Symbol.asyncDispose]();
  }

  #key(number: number): string {
    return `${this.#number} ${number}`;
  }

  /** The last region that starts at or before a byte. */
  #regionAt(byte: number): number {
    const { starts } = this.#index;
    let [low, high] = [0, starts.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if ((starts[middle] ?? 0) <= byte) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #extentOf(number: number): Extent {
    const offset = this.#index.starts[number] ?? 0;
    return { offset, length: (this.#index.starts[number + 1] ?? this.sizeBytes) - offset };
  }

  /** The region, and, for who reads on and on, the next one. */
  #open(number: number): OpenRegion {
    const { regions } = this.#engine;
    const known = regions.get(this.#key(number));
    if (known !== undefined) return known;
    if (number + 1 < this.#index.starts.length && regions.has(this.#key(number - 1))) this.#fetch(number + 1);
    return this.#fetch(number);
  }

  #fetch(number: number): OpenRegion {
    const { regions } = this.#engine;
    const key = this.#key(number);
    const region = new OpenRegion(this.#restore(number));
    region.target.catch(() => {
      if (regions.peek(key) === region) regions.delete(key);
    });
    regions.set(key, region, { size: Math.min(this.#extentOf(number).length, cachedBytesMax) });
    return region;
  }

  async #restore(number: number): Promise<RegionTarget> {
    const { places, lines } = this.#index;
    const bytes = Buffer.alloc((places[number + 1] ?? 0) - (places[number] ?? 0));
    await lines.read(bytes, places[number] ?? 0);
    const region = { ...this.#extentOf(number), objects: parseMap(bytes) };
    const run: RunContext = { signal: this.#closing.signal, fence: () => {}, onProgress: () => {} };
    return restoreRegion(this.#engine, this.#chain, region, run);
  }
}
