import { writeSync } from "node:fs";
import { clipExtent, type Extent } from "../format/extents.ts";
import type { Md5InStep } from "../hashing/hashing.ts";
import { addDataRuns } from "./block-runs.ts";
import type { CpuTools } from "./cpu-tools.ts";
import { fileCall } from "./file-calls.ts";
import { sliceBytesOf } from "./lane-sizes.ts";
import { type NbdFailure, writeByNbd } from "./nbd-lane.ts";
import { type OpenedFile, openForReading, readFully, type UnreadResult } from "./read-fully.ts";
import type { ThreadPlace } from "./thread-place.ts";

/** The next piece of one of several raw objects that are restored in lockstep. */
export interface WriteLanePiece {
  file: { path: string; sizeBytes: number };
  /** Offset within the object, on a block boundary. */
  offset: number;
  length: number;
  /** Length of the whole object when this is its last piece, else null. Other pieces are a multiple of 64 bytes long. */
  endsAt: number | null;
  /** Hex MD5 of the whole object. */
  md5: string;
  /** Offset in the volume of the piece's first byte. */
  volumeOffset: number;
  /** Per block of the piece: its expected hash of 32 bytes, and 1 in `used` where the volume takes the block from this object. */
  expected: Uint8Array<ArrayBuffer>;
  used: Uint8Array<ArrayBuffer>;
}

export interface LaneTarget {
  place: ThreadPlace;
  skipZeros: boolean;
  /** Only this part of the volume is written. */
  bounds: Extent;
  /** See RunContext. */
  writableUntil: BigInt64Array<SharedArrayBuffer>;
}

/** Reads the next piece of several objects, checks every block, writes the correct ones and updates the objects' MD5 with all of them. */
export interface WriteLanesRequest {
  kind: "writeLanes";
  blockBytes: number;
  pieces: readonly WriteLanePiece[];
  /** MD5 states of the objects, in the order of the pieces; null at the start. */
  states: Uint8Array<ArrayBuffer> | null;
  /** Null to verify everything and write nothing. */
  target: LaneTarget | null;
}

export interface WriteLanesResult {
  states: Uint8Array<ArrayBuffer>;
  /** 1 for every object with a wrong block or, on its last piece, a wrong MD5. Wrong blocks are never written. */
  failed: Uint8Array<ArrayBuffer>;
}

/** The thread could not write, or is no longer allowed to; its owner determines why. */
export interface UnwrittenResult {
  unwritten: true;
  /** What the server did, where the target is an export. */
  failure?: NbdFailure;
}

interface Lane {
  piece: WriteLanePiece;
  opened: OpenedFile;
  /** Its slice of the scratch memory. */
  bytes: Uint8Array<ArrayBuffer>;
}

export function writeLanes(
  request: WriteLanesRequest,
  { hashing, cancelled, scratch: scratchOf }: CpuTools,
): WriteLanesResult | UnreadResult | UnwrittenResult | undefined {
  const { blockBytes, pieces, target } = request;
  const md5InStep = hashing.md5InStep as Md5InStep;
  const longest = Math.max(...pieces.map(({ length }) => length));
  const sliceBytes = Math.min(sliceBytesOf(blockBytes), Math.ceil(longest / 64) * 64);
  // Behind the lanes, as many zeros: a lane whose slice is all zeros is hashed from there, which stays in the processor's cache.
  const scratch = scratchOf((pieces.length + 1) * sliceBytes);
  scratch.fill(0, pieces.length * sliceBytes);
  const hashes = new Uint8Array(Math.ceil(sliceBytes / blockBytes) * 32);
  const zero = new Uint8Array(hashes.length / 32);
  const states = request.states ?? md5InStep.start(pieces.length);
  const failed = new Uint8Array(pieces.length);
  using files = new DisposableStack();
  const lanes: Lane[] = [];
  for (const [index, piece] of pieces.entries()) {
    const opened = openForReading(piece.file);
    if (opened === null) return { unread: { offset: piece.offset, length: piece.length } };
    files.use(opened);
    lanes.push({ piece, opened, bytes: scratch.subarray(index * sliceBytes, (index + 1) * sliceBytes) });
  }
  for (let at = 0; at < longest; at += sliceBytes) {
    const spans: { offset: number; length: number }[] = [];
    for (const [index, { piece, opened, bytes: space }] of lanes.entries()) {
      if (cancelled()) return undefined;
      const bytes = space.subarray(0, Math.max(0, Math.min(sliceBytes, piece.length - at)));
      const span = { offset: index * sliceBytes, length: bytes.length };
      spans.push(span);
      if (bytes.length === 0) continue;
      const offset = piece.offset + at;
      if (!readFully(opened.descriptor, bytes, offset)) return { unread: { offset, length: bytes.length } };
      hashing.hashBlocks(bytes, blockBytes, hashes, zero);
      const blocks = Math.ceil(bytes.length / blockBytes);
      if (zero.subarray(0, blocks).every((flag) => flag === 1)) span.offset = pieces.length * sliceBytes;
      const runs = checkedRuns({ piece, firstBlock: at / blockBytes, blockBytes, hashes, zero }, bytes.length, target);
      if (runs === null) failed[index] = 1;
      const mayWrite = runs !== null && failed[index] === 0 && target !== null;
      const unwritten = mayWrite ? writeRuns(target, piece.volumeOffset + at, bytes, runs) : null;
      if (unwritten !== null) return unwritten;
    }
    md5InStep.update(states, scratch, spans);
    for (const [index, { piece, bytes }] of lanes.entries()) {
      const length = (spans[index] as { length: number }).length;
      if (piece.endsAt === null || length === 0 || at + length < piece.length) continue;
      const md5 = md5InStep.finish(states, index, bytes.subarray(0, length), piece.endsAt);
      if (md5 !== piece.md5) failed[index] = 1;
    }
  }
  return { states, failed };
}

/** The runs of a slice to be written, as pairs of start and end within it; null when a needed block is wrong. */
function checkedRuns(
  slice: { piece: WriteLanePiece; firstBlock: number; blockBytes: number; hashes: Uint8Array; zero: Uint8Array },
  length: number,
  target: LaneTarget | null,
): number[] | null {
  const { piece, firstBlock, blockBytes, zero } = slice;
  const hashes = Buffer.from(slice.hashes.buffer, slice.hashes.byteOffset, slice.hashes.length);
  const runs: number[] = [];
  for (let index = 0; index * blockBytes < length; index++) {
    const block = firstBlock + index;
    if (piece.used[block] === 0) continue;
    if (hashes.compare(piece.expected, block * 32, block * 32 + 32, index * 32, index * 32 + 32) !== 0) return null;
    const start = index * blockBytes;
    const skip = target?.skipZeros === true && zero[index] === 1;
    addDataRuns(runs, skip ? skipped : kept, { start, length: Math.min(blockBytes, length - start), blockBytes });
  }
  return runs;
}

const kept = Uint8Array.of(0);
const skipped = Uint8Array.of(1);

/** @returns how much was written. @throws when nothing was, or a server may not have all of it */
function writeAt(place: ThreadPlace, data: Uint8Array, offset: number): number {
  if ("descriptor" in place) return fileCall(() => writeSync(place.descriptor, data, 0, data.length, offset));
  const failure = writeByNbd(place, data, offset);
  if (failure !== null) throw new ServerFailure(failure);
  return data.length;
}

class ServerFailure extends Error {
  readonly failure: NbdFailure;

  constructor(failure: NbdFailure) {
    super(failure.words);
    this.failure = failure;
  }
}

/** A slice is smaller than the write limit of one fence check. Null when everything was written. */
function writeRuns(
  target: LaneTarget,
  volumeOffset: number,
  bytes: Uint8Array,
  runs: readonly number[],
): UnwrittenResult | null {
  for (let pair = 0; pair < runs.length; pair += 2) {
    const start = runs[pair] as number;
    const run = { offset: volumeOffset + start, length: (runs[pair + 1] as number) - start };
    const clipped = clipExtent(run, target.bounds);
    if (clipped === null) continue;
    const from = clipped.offset - volumeOffset;
    for (let done = 0; done < clipped.length; ) {
      if (process.hrtime.bigint() >= Atomics.load(target.writableUntil, 0)) return { unwritten: true };
      try {
        const [at, length] = [done, clipped.length - done];
        done += writeAt(target.place, bytes.subarray(from + at, from + at + length), clipped.offset + at);
      } catch (error) {
        return error instanceof ServerFailure ? { unwritten: true, failure: error.failure } : { unwritten: true };
      }
    }
  }
  return null;
}
