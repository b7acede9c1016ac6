import { constants, deflateRawSync, inflateSync } from "node:zlib";
import { UnsupportedCompressionError } from "./errors.ts";

/** What is written. Cinder's `gzip` label holds the same data as `zlib`, and `off` and `no` mean `none`. */
export type Compression = "zlib" | "none";

/** The codec behind a label found in a repository. Throws UnsupportedCompressionError for everything that is not decoded here. */
export function codecOf(label: string): Compression {
  switch (label) {
    case "zlib":
    case "gzip":
      return "zlib";
    case "none":
    case "off":
    case "no":
      return "none";
    default:
      throw new UnsupportedCompressionError(label.slice(0, 64));
  }
}

/** Input is deflated in pieces of this size, so that a full-size output buffer is never needed. Part of what makes output repeatable. */
const pieceBytes = 1024 * 1024;
/** The window of deflate: what a piece may refer back to. */
const dictionaryBytes = 32 * 1024;

/**
 * Compresses `data` to one zlib stream (RFC 1950), returned as consecutive pieces of about 1 MiB at most. Returns null when
 * the stream would not be shorter than the data, and undefined as soon as `cancelled` says so. Equal input and level give
 * equal bytes. Each piece is deflated with the end of the one before as its dictionary and ends on a byte boundary.
 */
export function deflatePieces(
  data: Uint8Array,
  level: number,
  cancelled: () => boolean,
): Uint8Array<ArrayBuffer>[] | null | undefined {
  const pieces: Uint8Array<ArrayBuffer>[] = [zlibHeader(level)];
  let total = 2 + 4;
  let adler = 1;
  for (let start = 0; start < data.length; start += pieceBytes) {
    if (cancelled()) return undefined;
    const end = Math.min(start + pieceBytes, data.length);
    const input = data.subarray(start, end);
    adler = adler32(input, adler);
    const piece = deflateRawSync(input, {
      level,
      chunkSize: pieceBytes + 4096,
      finishFlush: end === data.length ? constants.Z_FINISH : constants.Z_SYNC_FLUSH,
      ...(start > 0 ? { dictionary: data.subarray(Math.max(0, start - dictionaryBytes), start) } : {}),
    });
    total += piece.length;
    if (total >= data.length) return null;
    pieces.push(ownBytes(piece));
  }
  const trailer = new Uint8Array(4);
  new DataView(trailer.buffer).setUint32(0, adler);
  pieces.push(trailer);
  return pieces;
}

/**
 * Decompresses exactly one zlib stream to exactly `length` bytes, or says what is wrong with it. Output never exceeds
 * `length`, whatever the stream claims.
 */
export function inflateExactly(stored: Uint8Array, length: number): Uint8Array<ArrayBuffer> | { reason: string } {
  let result: { buffer: Buffer; engine: { bytesWritten: number } };
  try {
    result = inflateSync(stored, {
      chunkSize: Math.max(64, length),
      maxOutputLength: Math.max(1, length),
      info: true,
    }) as unknown as typeof result;
  } catch (error) {
    return { reason: `the zlib stream cannot be decoded to ${length} bytes (${(error as Error).message})` };
  }
  if (result.buffer.length !== length) return { reason: `${result.buffer.length} bytes decoded instead of ${length}` };
  if (result.engine.bytesWritten !== stored.length) {
    return { reason: "there is data behind the end of the zlib stream" };
  }
  return result.buffer.buffer.byteLength === length ? (result.buffer as Buffer<ArrayBuffer>) : ownBytes(result.buffer);
}

/** A copy in a buffer of its own, so that it can move between threads and the unused rest of the old one can be freed. */
function ownBytes(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const copy = new Uint8Array(bytes.length);
  copy.set(bytes);
  return copy;
}

/** RFC 1950 section 2.2: 32 KiB window, and the level as a hint; the check bits make it a multiple of 31. */
function zlibHeader(level: number): Uint8Array<ArrayBuffer> {
  if (level === 0 || level === 1) return Uint8Array.of(0x78, 0x01);
  if (level >= 2 && level <= 5) return Uint8Array.of(0x78, 0x5e);
  return level >= 7 ? Uint8Array.of(0x78, 0xda) : Uint8Array.of(0x78, 0x9c);
}

/** RFC 1950 section 8.2. 5552 is the most bytes whose sums stay below 2^32. */
function adler32(data: Uint8Array, seed: number): number {
  let low = seed & 0xffff;
  let high = seed >>> 16;
  for (let start = 0; start < data.length; start += 5552) {
    const end = Math.min(start + 5552, data.length);
    for (let index = start; index < end; index++) {
      low += data[index] as number;
      high += low;
    }
    low %= 65521;
    high %= 65521;
  }
  return high * 65536 + low;
}
