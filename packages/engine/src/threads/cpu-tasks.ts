import { createHash } from "node:crypto";
import {
  type Compression,
  compressPieces,
  decompressExactly,
  type Encoding,
  labelToTry,
} from "../codec/compression.ts";
import type { Hashing } from "../hashing/hashing.ts";
import { addDataRuns } from "./block-runs.ts";
import type { CpuTools } from "./cpu-tools.ts";
import { type HashLanesRequest, type HashLanesResult, hashLanes } from "./hash-lanes.ts";
import { nbdReadBytes, type OpenLaneRequest, type OpenLaneResult, openLane } from "./nbd-lane.ts";
import { clipPairs, readPieces, type UnreadResult } from "./read-fully.ts";
import { type StoreLanesRequest, type StoreLanesResult, storeLanes } from "./store-lanes.ts";
import type { ThreadPlace } from "./thread-place.ts";
import { type UnwrittenResult, type WriteLanesRequest, type WriteLanesResult, writeLanes } from "./write-lanes.ts";

/** An extent of a window that is stored as one object. */
export interface WindowExtent {
  /** Relative to the window's start, in bytes. */
  offset: number;
  length: number;
  md5: string;
  compression: Compression;
  /** The stored bytes when compressed; null means the raw bytes, which start at `at` in the result's `raw`. */
  pieces: Uint8Array<ArrayBuffer>[] | null;
  /** MD5 of the stored bytes, where it is known. */
  storedMd5: string | null;
  at: number;
  /** Owner of the pieces: this extent, to be freed once stored, or shared by all equal extents of zeros. */
  ownership: "own" | "shared";
}

export interface CopyWindowRequest extends Encoding {
  kind: "copyWindow";
  /** Exactly the window's bytes; ownership moves to the thread. Null when the thread is to read them itself. */
  window: ArrayBuffer | null;
  /** Where the thread reads them, when it does. */
  source: WindowSource | null;
  blockBytes: number;
  /** 32 bytes for every block of the window, or null to take the whole window as one extent. */
  parentHashes: Uint8Array<ArrayBuffer> | null;
  /** Whether an extent of zeros is compressed although compression is off. */
  compressZeros: boolean;
  /** Whether compressed bytes are digested, too: for a store that checks what it is sent. */
  digestStored: boolean;
}

export interface WindowSource {
  place: ThreadPlace;
  offset: number;
  length: number;
  /** Pairs of start and end within the window, ascending: the gaps between them are zero and are not read. */
  data: Float64Array<ArrayBuffer>;
}

export interface CopyWindowResult {
  /** 32 bytes for every block. */
  hashes: Uint8Array<ArrayBuffer>;
  extents: WindowExtent[];
  /** The bytes of the extents, returned when any of them is stored raw. */
  raw: ArrayBuffer | null;
}

export interface CheckObjectRequest {
  kind: "checkObject";
  /** The object's stored bytes; their buffer's ownership moves to the thread. */
  stored: Uint8Array<ArrayBuffer>;
  compression: Compression;
  /** Length and MD5 of the decoded object. */
  length: number;
  /** Null when the metadata has none. */
  md5: string | null;
  blockBytes: number;
  /** Pairs of start and end within the object; starts are on block boundaries. */
  segments: Float64Array<ArrayBuffer>;
  /** 32 bytes for every block of every segment, in order; null without a hash list. */
  expected: Uint8Array<ArrayBuffer> | null;
}

export type CheckObjectResult =
  | { outcome: "ok"; data: Uint8Array<ArrayBuffer>; dataRuns: Float64Array<ArrayBuffer> }
  /** The object contradicts its metadata entry. */
  | { outcome: "object"; reason: string }
  /** The object matches its metadata entry, but a block contradicts the hash list; `at` is its offset within the object. */
  | { outcome: "hash"; at: number };

/** Checks decoded blocks of a large object that arrives piece by piece: like checkObject, without decoding and MD5. */
export interface CheckBlocksRequest {
  kind: "checkBlocks";
  data: Uint8Array<ArrayBuffer>;
  blockBytes: number;
  segments: Float64Array<ArrayBuffer>;
  expected: Uint8Array<ArrayBuffer> | null;
}

export interface ZeroFormRequest extends Encoding {
  kind: "zeroForm";
  length: number;
}

/** What all objects of `length` zeros have in common. `pieces` is null when such an object is stored raw. */
export interface ZeroFormResult {
  md5: string;
  pieces: Uint8Array<ArrayBuffer>[] | null;
}

export type CpuRequest =
  | CopyWindowRequest
  | HashLanesRequest
  | StoreLanesRequest
  | WriteLanesRequest
  | CheckObjectRequest
  | CheckBlocksRequest
  | ZeroFormRequest
  | OpenLaneRequest;
export type CpuResult<Request extends CpuRequest> = Request extends CopyWindowRequest
  ? CopyWindowResult | UnreadResult
  : Request extends HashLanesRequest
    ? HashLanesResult | UnreadResult
    : Request extends StoreLanesRequest
      ? StoreLanesResult | UnreadResult | UnwrittenResult
      : Request extends WriteLanesRequest
        ? WriteLanesResult | UnreadResult | UnwrittenResult
        : Request extends CheckObjectRequest | CheckBlocksRequest
          ? CheckObjectResult
          : Request extends OpenLaneRequest
            ? OpenLaneResult
            : ZeroFormResult;

/** Executes one request; undefined when it was cancelled meanwhile. Stateless; accesses no files but those it is given. */
export function runCpuTask(request: CpuRequest, tools: CpuTools): CpuResult<CpuRequest> | undefined {
  switch (request.kind) {
    case "copyWindow":
      return copyWindow(request, tools);
    case "hashLanes":
      return hashLanes(request, tools);
    case "storeLanes":
      return storeLanes(request, tools);
    case "writeLanes":
      return writeLanes(request, tools);
    case "checkObject":
      return checkObject(request, tools);
    case "checkBlocks":
      return checkSegments(request, request.data, tools);
    case "zeroForm":
      return zeroForm(request, tools);
    case "openLane":
      return openLane(request);
  }
}

function copyWindow(request: CopyWindowRequest, tools: CpuTools): CopyWindowResult | UnreadResult | undefined {
  const { hashing, cancelled } = tools;
  const taken = request.window === null ? readWindow(request, tools) : takeWindow(request, hashing);
  if (taken === undefined || "unread" in taken) return taken;
  const { raw, hashed, kept } = taken;
  const data = new Uint8Array(raw);
  const spans =
    request.parentHashes === null
      ? [{ first: 0, end: hashed.zero.length }]
      : changedSpans(hashed.hashes, request.parentHashes);
  const places = placesOf(spans, { windowBytes: taken.windowBytes, blockBytes: request.blockBytes, kept });
  const digests = hashing.md5(
    data,
    places.map(({ at, length }) => ({ offset: at, length })),
  );
  const extents: WindowExtent[] = [];
  for (const [index, { first, end }] of spans.entries()) {
    if (cancelled()) return undefined;
    const place = places[index] as (typeof places)[number];
    const zeros = request.compressZeros && hashed.zero.subarray(first, end).every((flag) => flag === 1);
    const label = labelToTry(request.compression, { known: zeros, compressZeros: request.compressZeros });
    const bytes = data.subarray(place.at, place.at + place.length);
    const pieces = compressPieces({ ...request, compression: label }, bytes, cancelled);
    if (pieces === undefined) return undefined;
    const md5 = digests[index] as string;
    const storedMd5 = pieces === null ? md5 : request.digestStored ? md5Of(pieces) : null;
    const compression = pieces === null ? "none" : label;
    extents.push({ ...place, md5, compression, pieces, storedMd5, ownership: "own" });
  }
  const needsRaw = extents.some((extent) => extent.pieces === null);
  if (needsRaw) return { hashes: hashed.hashes, extents, raw };
  // Free the memory now rather than at some later garbage collection: windows are large and arrive in quick succession.
  if (request.window === null && kept === "window") tools.giveBackWindow(raw);
  else raw.transfer(0);
  return { hashes: hashed.hashes, extents, raw: null };
}

function md5Of(pieces: readonly Uint8Array[]): string {
  const md5 = createHash("md5");
  for (const piece of pieces) md5.update(piece);
  return md5.digest("hex");
}

/** Extent positions, in the window and in the buffer, which holds either the whole window or only the extents, concatenated. */
function placesOf(
  spans: readonly { first: number; end: number }[],
  { windowBytes, blockBytes, kept }: { windowBytes: number; blockBytes: number; kept: "window" | "changed" },
): { offset: number; at: number; length: number }[] {
  let filled = 0;
  return spans.map(({ first, end }) => {
    const offset = first * blockBytes;
    const length = Math.min(end * blockBytes, windowBytes) - offset;
    filled += length;
    return { offset, at: kept === "window" ? offset : filled - length, length };
  });
}

/** Per block of a window: its SHA-256, and 1 when it is all zeros. */
interface HashedBlocks {
  hashes: Uint8Array<ArrayBuffer>;
  zero: Uint8Array<ArrayBuffer>;
}

function emptyHashes(bytes: number, blockBytes: number): HashedBlocks {
  const count = Math.ceil(bytes / blockBytes);
  return { hashes: new Uint8Array(count * 32), zero: new Uint8Array(count) };
}

/** A window that has been read and hashed. */
interface TakenWindow {
  /** The window, or only those of its blocks that differ from the parent's. */
  raw: ArrayBuffer;
  kept: "window" | "changed";
  windowBytes: number;
  hashed: HashedBlocks;
}

function takeWindow(request: CopyWindowRequest, hashing: Hashing): TakenWindow {
  const raw = request.window as ArrayBuffer;
  const hashed = emptyHashes(raw.byteLength, request.blockBytes);
  hashing.hashBlocks(new Uint8Array(raw), request.blockBytes, hashed.hashes, hashed.zero);
  return { raw, kept: "window", windowBytes: raw.byteLength, hashed };
}

/** Bytes read and hashed at a time, so that they are still in the processor's cache when they are hashed. */
const sliceBytesAim = 512 * 1024;

/** Reads and hashes a window slice by slice. With a parent, only the blocks that differ are kept. */
function readWindow(
  request: CopyWindowRequest,
  { hashing, cancelled, scratch: scratchOf, windowMemory }: CpuTools,
): TakenWindow | UnreadResult | undefined {
  const { blockBytes, parentHashes } = request;
  const source = request.source as WindowSource;
  const hashed = emptyHashes(source.length, blockBytes);
  const aim = "nbd" in source.place ? nbdReadBytes : sliceBytesAim;
  const sliceBytes = Math.max(1, Math.floor(aim / blockBytes)) * blockBytes;
  const window = parentHashes === null ? new Uint8Array(windowMemory(source.length)) : null;
  const scratch = window ?? scratchOf(Math.min(sliceBytes, source.length));
  const changed = new GrowingBytes(source.length);
  for (let start = 0; start < source.length; start += sliceBytes) {
    if (cancelled()) return undefined;
    const length = Math.min(sliceBytes, source.length - start);
    const slice = window === null ? scratch.subarray(0, length) : window.subarray(start, start + length);
    const first = start / blockBytes;
    const data = clipPairs(source.data, start, start + length);
    const unread = readPieces(source.place, [{ offset: source.offset + start, data, into: slice }]);
    if (unread !== null) return { unread };
    const hashes = hashed.hashes.subarray(first * 32);
    hashing.hashBlocks(slice, blockBytes, hashes, hashed.zero.subarray(first));
    if (parentHashes === null) continue;
    const blocks = Math.ceil(length / blockBytes);
    for (const span of changedSpans(hashes.subarray(0, blocks * 32), parentHashes.subarray(first * 32))) {
      changed.append(slice.subarray(span.first * blockBytes, span.end * blockBytes));
    }
  }
  const windowBytes = source.length;
  return window === null
    ? { raw: changed.buffer, kept: "changed", windowBytes, hashed }
    : { raw: window.buffer, kept: "window", windowBytes, hashed };
}

/** An append-only buffer whose final size is not known in advance. */
class GrowingBytes {
  buffer = new ArrayBuffer(0);
  #filled = 0;
  readonly #max: number;

  constructor(max: number) {
    this.#max = max;
  }

  append(bytes: Uint8Array): void {
    const needed = this.#filled + bytes.length;
    if (needed > this.buffer.byteLength) {
      this.buffer = this.buffer.transfer(Math.min(this.#max, Math.max(needed, 2 * this.buffer.byteLength)));
    }
    new Uint8Array(this.buffer, this.#filled, bytes.length).set(bytes);
    this.#filled = needed;
  }
}

/** Runs of consecutive blocks whose hash differs from the parent's; an equal block or the window's end closes a run. */
export function changedSpans(hashes: Uint8Array, parent: Uint8Array): { first: number; end: number }[] {
  const spans: { first: number; end: number }[] = [];
  const count = hashes.length / 32;
  const mine = Buffer.from(hashes.buffer, hashes.byteOffset, hashes.byteLength);
  for (let block = 0; block < count; block++) {
    const at = block * 32;
    if (mine.compare(parent, at, at + 32, at, at + 32) === 0) continue;
    const last = spans.at(-1);
    if (last !== undefined && last.end === block) last.end = block + 1;
    else spans.push({ first: block, end: block + 1 });
  }
  return spans;
}

function checkObject(request: CheckObjectRequest, tools: CpuTools): CheckObjectResult | undefined {
  const decoded = decompressExactly(request.compression, request.stored, request.length);
  if (!(decoded instanceof Uint8Array)) return { outcome: "object", reason: decoded.reason };
  if (tools.cancelled()) return undefined;
  const [md5] = request.md5 === null ? [null] : tools.hashing.md5(decoded, [{ offset: 0, length: decoded.length }]);
  if (md5 !== request.md5) return { outcome: "object", reason: "the MD5 does not match" };
  return checkSegments(request, decoded, tools);
}

/** Compares every block with its expected hash and reports the runs of blocks that are not all zeros. */
function checkSegments(
  request: { blockBytes: number; segments: Float64Array; expected: Uint8Array | null },
  data: Uint8Array<ArrayBuffer>,
  { hashing, cancelled }: CpuTools,
): CheckObjectResult | undefined {
  const { blockBytes, segments } = request;
  const expected = request.expected ?? null;
  const runs: number[] = [];
  let block = 0;
  for (let pair = 0; pair < segments.length; pair += 2) {
    if (cancelled()) return undefined;
    const start = segments[pair] as number;
    const bytes = data.subarray(start, segments[pair + 1] as number);
    const { hashes, zero } = emptyHashes(bytes.length, blockBytes);
    hashing.hashBlocks(bytes, blockBytes, hashes, zero);
    if (expected !== null) {
      const wrong = changedSpans(hashes, expected.subarray(block * 32, block * 32 + hashes.length))[0];
      if (wrong !== undefined) return { outcome: "hash", at: start + wrong.first * blockBytes };
    }
    addDataRuns(runs, zero, { start, length: bytes.length, blockBytes });
    block += zero.length;
  }
  return { outcome: "ok", data, dataRuns: Float64Array.from(runs) };
}

function zeroForm(request: ZeroFormRequest, { hashing, cancelled }: CpuTools): ZeroFormResult | undefined {
  const zeros = new Uint8Array(request.length);
  const pieces = compressPieces(request, zeros, cancelled);
  if (pieces === undefined) return undefined;
  const [md5] = hashing.md5(zeros, [{ offset: 0, length: zeros.length }]) as [string];
  return { md5, pieces };
}
