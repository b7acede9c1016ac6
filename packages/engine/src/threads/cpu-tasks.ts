import { hash } from "node:crypto";
import { type Compression, compressPieces, decompressExactly, labelToTry } from "../compression.ts";

/** An extent of a window that becomes one object. */
export interface WindowExtent {
  /** Relative to the window's start, in bytes. */
  offset: number;
  length: number;
  md5: string;
  compression: Compression;
  /** The stored bytes when compressed; null means the raw bytes of the window. */
  pieces: Uint8Array<ArrayBuffer>[] | null;
}

export interface CopyWindowRequest {
  kind: "copyWindow";
  /** Exactly the window's bytes; its ownership moves to the thread. */
  window: ArrayBuffer;
  blockBytes: number;
  /** 32 bytes for every block of the window, or null to take the whole window as one extent. */
  parentHashes: Uint8Array<ArrayBuffer> | null;
  compression: Compression;
  level: number;
  /** Whether an extent of zeros is compressed although compression is off. */
  compressZeros: boolean;
}

export interface CopyWindowResult {
  /** 32 bytes for every block. */
  hashes: Uint8Array<ArrayBuffer>;
  extents: WindowExtent[];
  /** The window, handed back when the raw bytes of an extent are needed. */
  window: ArrayBuffer | null;
}

export interface CheckObjectRequest {
  kind: "checkObject";
  /** The bytes of the object as stored; their buffer's ownership moves to the thread. */
  stored: Uint8Array<ArrayBuffer>;
  compression: Compression;
  /** Length and MD5 of the decoded object. */
  length: number;
  /** Null when the metadata has none. */
  md5: string | null;
  blockBytes: number;
  /** Pairs of start and end within the object, starts on block boundaries. */
  segments: Float64Array<ArrayBuffer>;
  /** 32 bytes for every block of every segment, in order; null when the backup has no list of hashes. */
  expected: Uint8Array<ArrayBuffer> | null;
}

export type CheckObjectResult =
  | { outcome: "ok"; data: Uint8Array<ArrayBuffer>; dataRuns: Float64Array<ArrayBuffer> }
  /** The object contradicts its entry in the metadata. */
  | { outcome: "object"; reason: string }
  /** The object agrees with its entry, but a block contradicts the hash list; `at` is its offset within the object. */
  | { outcome: "hash"; at: number };

/** Checks decoded blocks of a large object that arrives piece by piece: the same as checkObject without decoding and MD5. */
export interface CheckBlocksRequest {
  kind: "checkBlocks";
  data: Uint8Array<ArrayBuffer>;
  blockBytes: number;
  segments: Float64Array<ArrayBuffer>;
  expected: Uint8Array<ArrayBuffer> | null;
}

export interface ZeroFormRequest {
  kind: "zeroForm";
  compression: Compression;
  length: number;
  level: number;
}

/** What every object of `length` zeros has in common. `pieces` is null when such an object is stored raw. */
export interface ZeroFormResult {
  md5: string;
  pieces: Uint8Array<ArrayBuffer>[] | null;
}

export type CpuRequest = CopyWindowRequest | CheckObjectRequest | CheckBlocksRequest | ZeroFormRequest;
export type CpuResult<Request extends CpuRequest> = Request extends CopyWindowRequest
  ? CopyWindowResult
  : Request extends CheckObjectRequest | CheckBlocksRequest
    ? CheckObjectResult
    : ZeroFormResult;

type Cancelled = () => boolean;

/** Carries out one request; undefined when it was cancelled on the way. Pure computation: no I/O, no state. */
export function runCpuTask(
  request: CpuRequest,
  cancelled: Cancelled,
): CopyWindowResult | CheckObjectResult | ZeroFormResult | undefined {
  switch (request.kind) {
    case "copyWindow":
      return copyWindow(request, cancelled);
    case "checkObject":
      return checkObject(request, cancelled);
    case "checkBlocks":
      return checkSegments(request, request.data, cancelled);
    case "zeroForm":
      return zeroForm(request, cancelled);
  }
}

function copyWindow(request: CopyWindowRequest, cancelled: Cancelled): CopyWindowResult | undefined {
  const data = new Uint8Array(request.window);
  const hashed = hashBlocks(data, request.blockBytes, cancelled);
  if (hashed === undefined) return undefined;
  const spans =
    request.parentHashes === null
      ? [{ first: 0, end: hashed.zero.length }]
      : changedSpans(hashed.hashes, request.parentHashes);
  const extents: WindowExtent[] = [];
  for (const span of spans) {
    const offset = span.first * request.blockBytes;
    const bytes = data.subarray(offset, Math.min(span.end * request.blockBytes, data.length));
    const zeros = request.compressZeros && hashed.zero.subarray(span.first, span.end).every((flag) => flag === 1);
    const label = labelToTry(request.compression, { known: zeros, compressZeros: request.compressZeros });
    const pieces = compressPieces(label, bytes, { level: request.level, cancelled });
    if (pieces === undefined) return undefined;
    extents.push({
      offset,
      length: bytes.length,
      md5: hash("md5", bytes, "hex"),
      compression: pieces === null ? "none" : label,
      pieces,
    });
  }
  const needsWindow = extents.some((extent) => extent.pieces === null);
  return { hashes: hashed.hashes, extents, window: needsWindow ? request.window : null };
}

/** SHA-256 of every block (the last one over its actual bytes), and which blocks are all zero. */
function hashBlocks(
  data: Uint8Array,
  blockBytes: number,
  cancelled: Cancelled,
): { hashes: Uint8Array<ArrayBuffer>; zero: Uint8Array } | undefined {
  const count = Math.ceil(data.length / blockBytes);
  const hashes = new Uint8Array(count * 32);
  const zero = new Uint8Array(count);
  const zeros = Buffer.alloc(blockBytes);
  const zeroHash = hash("sha256", zeros, "buffer");
  for (let block = 0; block < count; block++) {
    if (block % 256 === 0 && cancelled()) return undefined;
    const bytes = data.subarray(block * blockBytes, Math.min((block + 1) * blockBytes, data.length));
    const isZero = zeros.compare(bytes, 0, bytes.length, 0, bytes.length) === 0;
    zero[block] = isZero ? 1 : 0;
    hashes.set(isZero && bytes.length === blockBytes ? zeroHash : hash("sha256", bytes, "buffer"), block * 32);
  }
  return { hashes, zero };
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

function checkObject(request: CheckObjectRequest, cancelled: Cancelled): CheckObjectResult | undefined {
  const decoded = decompressExactly(request.compression, request.stored, request.length);
  if (!(decoded instanceof Uint8Array)) return { outcome: "object", reason: decoded.reason };
  if (cancelled()) return undefined;
  if (request.md5 !== null && hash("md5", decoded, "hex") !== request.md5) {
    return { outcome: "object", reason: "the MD5 does not match" };
  }
  return checkSegments(request, decoded, cancelled);
}

/** Compares every block with its expected hash and reports the runs of blocks that are not all zero. */
function checkSegments(
  request: { blockBytes: number; segments: Float64Array; expected: Uint8Array | null },
  data: Uint8Array<ArrayBuffer>,
  cancelled: Cancelled,
): CheckObjectResult | undefined {
  const { blockBytes, segments } = request;
  const zeros = Buffer.alloc(blockBytes);
  const zeroHash = hash("sha256", zeros, "buffer");
  const { expected: list } = request;
  const expected = list === null ? null : Buffer.from(list.buffer, list.byteOffset, list.byteLength);
  const runs: number[] = [];
  let block = 0;
  for (let pair = 0; pair < segments.length; pair += 2) {
    const segmentEnd = segments[pair + 1] as number;
    for (let start = segments[pair] as number; start < segmentEnd; start += blockBytes, block++) {
      if (block % 256 === 0 && cancelled()) return undefined;
      const end = Math.min(start + blockBytes, segmentEnd);
      const bytes = data.subarray(start, end);
      const isZero = zeros.compare(bytes, 0, bytes.length, 0, bytes.length) === 0;
      if (expected !== null) {
        const digest = isZero && bytes.length === blockBytes ? zeroHash : hash("sha256", bytes, "buffer");
        if (expected.compare(digest, 0, 32, block * 32, block * 32 + 32) !== 0) return { outcome: "hash", at: start };
      }
      if (isZero) continue;
      if (runs.length > 0 && runs.at(-1) === start) runs[runs.length - 1] = end;
      else runs.push(start, end);
    }
  }
  return { outcome: "ok", data, dataRuns: Float64Array.from(runs) };
}

function zeroForm(request: ZeroFormRequest, cancelled: Cancelled): ZeroFormResult | undefined {
  const zeros = new Uint8Array(request.length);
  const pieces = compressPieces(request.compression, zeros, { level: request.level, cancelled });
  return pieces === undefined ? undefined : { md5: hash("md5", zeros, "hex"), pieces };
}
