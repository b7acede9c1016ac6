import { createHash } from "node:crypto";
import { VolumeStorageError } from "../../errors.ts";
import type { Extent } from "../../format/extents.ts";
import type { VolumeSource } from "../volume.ts";

/*
 * The bytes of a qcow2 file with a source's contents, which is written nowhere: where each byte is follows from where the source has data.
 *
 *   header | L1 table | refcount table | refcount blocks | L2 tables | clusters with data, in the order of the source
 *
 * Version 3, clusters of 64 KiB, refcounts of 16 bits which are all 1, no backing file. An L2 table without any data is left out.
 * https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt
 */

const clusterBits = 16;
const clusterBytes = 2 ** clusterBits;
const headerBytes = 104;
/** Clusters that one L2 table has entries for. */
const perTable = clusterBytes / 8;
/** Refcounts of one block. */
const perBlock = clusterBytes / 2;
/** QEMU opens no longer L1 table: 32 MiB. */
const sizeMax = ((32 * 1024 ** 2) / 8) * perTable * clusterBytes;
/**
 * Runs of clusters that are remembered, 24 bytes each. Of a source with more of them, zeros between two runs are treated as data: the file
 * becomes longer, but not the memory.
 */
const runsMax = 2 ** 18;
/** "Exactly one reference": of every entry of a table. */
const copied = 2n ** 63n;

/** An image file as a source: all of it may be data. */
export interface ImageFileSource extends VolumeSource {
  /** Of where everything is: another process reads the same bytes at the same offsets only if it finds the same. */
  readonly layout: string;
}

/** Clusters with data, ascending, with a gap before each. */
class Runs {
  /** First cluster of each. */
  readonly starts: number[] = [];
  readonly counts: number[] = [];
  /** Clusters of the source that are told apart: a power of two. */
  #granule = 1;

  add(first: number, end: number): void {
    const from = Math.floor(first / this.#granule) * this.#granule;
    const to = Math.ceil(end / this.#granule) * this.#granule;
    const last = this.starts.length - 1;
    const lastEnd = (this.starts[last] ?? 0) + (this.counts[last] ?? 0);
    if (last >= 0 && from <= lastEnd) this.counts[last] = Math.max(lastEnd, to) - (this.starts[last] ?? 0);
    else {
      this.starts.push(from);
      this.counts.push(to - from);
      if (this.starts.length > runsMax) this.#coarsen();
    }
  }

  #coarsen(): void {
    const [starts, counts] = [this.starts.splice(0), this.counts.splice(0)];
    this.#granule *= 2;
    for (const [at, start] of starts.entries()) this.add(start, start + (counts[at] ?? 0));
  }

  /** Whatever was rounded up, nothing is behind the end. */
  endAt(clusters: number): void {
    const last = this.starts.length - 1;
    const start = this.starts[last] ?? 0;
    if (last >= 0) this.counts[last] = Math.min(this.counts[last] ?? 0, clusters - start);
  }
}

/** Where the parts of a file are, in clusters. */
interface Layout {
  sizeBytes: number;
  starts: Float64Array;
  counts: Float64Array;
  /** How many clusters with data are before each run. */
  before: Float64Array;
  /** Which L2 tables there are, ascending. */
  tables: number[];
  l1: { at: number; clusters: number; entries: number };
  refcountTable: { at: number; clusters: number };
  refcountBlocks: { at: number; clusters: number };
  l2At: number;
  dataAt: number;
  clusters: number;
}

async function layOut(source: VolumeSource): Promise<Layout> {
  const { sizeBytes } = source;
  if (sizeBytes > sizeMax) {
    throw new VolumeStorageError(`A qcow2 image has at most ${sizeMax} bytes.`, { retryable: false });
  }
  const runs = new Runs();
  for await (const { offset, length } of source.dataExtents({ offset: 0, length: sizeBytes })) {
    if (length > 0) runs.add(Math.floor(offset / clusterBytes), Math.ceil((offset + length) / clusterBytes));
  }
  runs.endAt(Math.ceil(sizeBytes / clusterBytes));
  const [starts, counts] = [Float64Array.from(runs.starts), Float64Array.from(runs.counts)];
  const before = new Float64Array(starts.length);
  const tables: number[] = [];
  let data = 0;
  for (const [at, start] of starts.entries()) {
    const count = counts[at] ?? 0;
    before[at] = data;
    data += count;
    for (let table = Math.floor(start / perTable); table * perTable < start + count; table += 1) {
      if (tables.at(-1) !== table) tables.push(table);
    }
  }
  const entries = Math.ceil(sizeBytes / clusterBytes / perTable);
  const l1Clusters = Math.max(1, Math.ceil((entries * 8) / clusterBytes));
  const fixed = 1 + l1Clusters + tables.length + data;
  let [blocks, tableClusters] = [1, 1];
  // The blocks count themselves, and the table that points to them.
  while (blocks * perBlock < fixed + blocks + tableClusters || tableClusters * perTable < blocks) {
    blocks = Math.ceil((fixed + blocks + tableClusters) / perBlock);
    tableClusters = Math.ceil(blocks / perTable);
  }
  const l1 = { at: 1, clusters: l1Clusters, entries };
  const refcountTable = { at: 1 + l1Clusters, clusters: tableClusters };
  const refcountBlocks = { at: refcountTable.at + tableClusters, clusters: blocks };
  const l2At = refcountBlocks.at + blocks;
  const dataAt = l2At + tables.length;
  const clusters = dataAt + data;
  return { sizeBytes, starts, counts, before, tables, l1, refcountTable, refcountBlocks, l2At, dataAt, clusters };
}

/** The last of ascending numbers that is not above `value`; -1 when all are. */
function lastUpTo(numbers: ArrayLike<number>, value: number): number {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((numbers[middle] ?? 0) <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

function headerOf({ sizeBytes, l1, refcountTable }: Layout): Buffer {
  const header = Buffer.alloc(clusterBytes);
  header.writeUInt32BE(0x514649fb, 0);
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(clusterBits, 20);
  header.writeBigUInt64BE(BigInt(sizeBytes), 24);
  header.writeUInt32BE(l1.entries, 36);
  header.writeBigUInt64BE(BigInt(l1.at * clusterBytes), 40);
  header.writeBigUInt64BE(BigInt(refcountTable.at * clusterBytes), 48);
  header.writeUInt32BE(refcountTable.clusters, 56);
  // As a power of two: 16 bits.
  header.writeUInt32BE(4, 96);
  header.writeUInt32BE(headerBytes, 100);
  return header;
}

const entry = (cluster: number): bigint => copied | BigInt(cluster * clusterBytes);

/** One cluster of tables. */
function tablesAt(layout: Layout, cluster: number): Buffer {
  const { l1, refcountTable, refcountBlocks, l2At, tables, clusters } = layout;
  if (cluster === 0) return headerOf(layout);
  const bytes = Buffer.alloc(clusterBytes);
  if (cluster < refcountTable.at) {
    const from = (cluster - l1.at) * perTable;
    for (let at = lastUpTo(tables, from - 1) + 1; (tables[at] ?? Infinity) < from + perTable; at += 1) {
      bytes.writeBigUInt64BE(entry(l2At + at), ((tables[at] ?? 0) - from) * 8);
    }
  } else if (cluster < refcountBlocks.at) {
    const from = (cluster - refcountTable.at) * perTable;
    for (let at = from; at < Math.min(from + perTable, refcountBlocks.clusters); at += 1) {
      bytes.writeBigUInt64BE(BigInt((refcountBlocks.at + at) * clusterBytes), (at - from) * 8);
    }
  } else if (cluster < l2At) {
    const counted = clusters - (cluster - refcountBlocks.at) * perBlock;
    for (let at = 0; at < Math.min(perBlock, counted); at += 1) bytes.writeUInt16BE(1, at * 2);
  } else {
    writeL2(layout, tables[cluster - l2At] ?? 0, bytes);
  }
  return bytes;
}

function writeL2({ starts, counts, before, dataAt }: Layout, table: number, bytes: Buffer): void {
  const [from, end] = [table * perTable, (table + 1) * perTable];
  for (let run = Math.max(0, lastUpTo(starts, from)); run < starts.length; run += 1) {
    const start = starts[run] ?? 0;
    if (start >= end) return;
    const last = Math.min(end, start + (counts[run] ?? 0));
    for (let at = Math.max(from, start); at < last; at += 1) {
      bytes.writeBigUInt64BE(entry(dataAt + (before[run] ?? 0) + at - start), (at - from) * 8);
    }
  }
}

class ImageOfSource implements ImageFileSource {
  readonly sizeBytes: number;
  readonly layout: string;
  readonly #source: VolumeSource;
  readonly #layout: Layout;

  constructor(source: VolumeSource, layout: Layout) {
    this.#source = source;
    this.#layout = layout;
    this.sizeBytes = layout.clusters * clusterBytes;
    const { starts, counts } = layout;
    const hash = createHash("sha256").update(`qcow2 ${layout.sizeBytes} ${starts.length} `);
    this.layout = hash.update(new Uint8Array(starts.buffer)).update(new Uint8Array(counts.buffer)).digest("hex");
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    const dataFrom = this.#layout.dataAt * clusterBytes;
    for (let done = 0; done < into.length; ) {
      const at = offset + done;
      const left = into.subarray(done);
      if (at >= dataFrom) {
        done += await this.#readData(left, at - dataFrom);
      } else {
        const within = at % clusterBytes;
        const part = tablesAt(this.#layout, Math.floor(at / clusterBytes)).subarray(within, within + left.length);
        left.set(part);
        done += part.length;
      }
    }
  }

  /** Reads what is within one run. @returns how many bytes that are */
  async #readData(into: Uint8Array, offset: number): Promise<number> {
    const { starts, counts, before, sizeBytes } = this.#layout;
    const run = lastUpTo(before, Math.floor(offset / clusterBytes));
    const within = offset - (before[run] ?? 0) * clusterBytes;
    const length = Math.min(into.length, (counts[run] ?? 0) * clusterBytes - within);
    const from = (starts[run] ?? 0) * clusterBytes + within;
    // The last cluster may be longer than what there is of the source.
    const there = Math.max(0, Math.min(length, sizeBytes - from));
    if (there > 0) await this.#source.read(into.subarray(0, there), from);
    into.fill(0, there, length);
    return length;
  }

  async *dataExtents(range: Extent): AsyncGenerator<Extent> {
    if (range.length > 0) yield range;
  }

  async fingerprint(): Promise<string> {
    return `${this.layout} ${await this.#source.fingerprint()}`;
  }

  [Symbol.asyncDispose](): PromiseLike<void> {
    return this.#source[Symbol.asyncDispose]();
  }
}

/**
 * A source as a qcow2 file: standing by itself, whatever the source is made of. Takes ownership of the source, which must not change.
 *
 * @throws VolumeStorageError for a source that is longer than an image can be; the source is closed then
 */
export async function imageOf(source: VolumeSource): Promise<ImageFileSource> {
  await using stack = new AsyncDisposableStack();
  stack.use(source);
  const image = new ImageOfSource(source, await layOut(source));
  stack.move();
  return image;
}
