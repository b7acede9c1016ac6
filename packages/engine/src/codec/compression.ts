import { constants, deflateRawSync, inflateSync } from "node:zlib";
import { UnsupportedCompressionError } from "../errors.ts";
import { bunzip2Exactly, bzip2Pieces, requireBzip2 } from "./bzip2.ts";
import { isalPieces, requireIsal } from "./isal.ts";
import { isNoise } from "./noise.ts";
import { ownBytes } from "./own-bytes.ts";
import { unzstdExactly, zstdPieces } from "./zstd.ts";

/** Every value of Cinder's option; also the labels of objects compressed with it. */
export const compressions = ["zlib", "gzip", "bz2", "bzip2", "zstd", "none", "off", "no"] as const;
export type Compression = (typeof compressions)[number];

export type Codec = "zlib" | "bz2" | "zstd" | "none";

/** Encoders that produce zlib streams: zlib, or ISA-L, which is ten times as fast. Any decoder reads both. */
export const zlibEncoders = ["zlib", "isal"] as const;
export type ZlibEncoder = (typeof zlibEncoders)[number];

/** What determines an object's compressed form, besides its bytes. */
export interface Encoding {
  compression: Compression;
  /** The encoder's level, see levelsOf. */
  level: number;
  zlibEncoder: ZlibEncoder;
}

/** Consecutive pieces of the compressed bytes; null when they would not be shorter than the data, undefined when cancelled. */
type Pieces = Uint8Array<ArrayBuffer>[] | null | undefined;

interface Encoder {
  /** A codec's default is the default of its Python module, which Cinder uses. */
  level: { default: number; min: number; max: number };
  compress(data: Uint8Array, level: number, cancelled: () => boolean): Pieces;
}

interface CodecEntry extends Encoder {
  /** Bytes held while compressing or decoding, as a multiple of the raw bytes; data that hardly shrinks takes twice its size. */
  memoryFactor: number;
  /** Exactly `length` bytes, or why decoding failed. Output never exceeds `length`, whatever the stored bytes claim. */
  decompress(stored: Uint8Array<ArrayBuffer>, length: number): Uint8Array<ArrayBuffer> | { reason: string };
}

const codecs: Record<Codec, CodecEntry> = {
  zlib: {
    level: { default: 6, min: 0, max: 9 },
    memoryFactor: 1.5,
    compress: deflatePieces,
    decompress: inflateExactly,
  },
  bz2: {
    level: { default: 9, min: 1, max: 9 },
    memoryFactor: 1.5,
    compress: bzip2Pieces,
    decompress: bunzip2Exactly,
  },
  zstd: {
    level: { default: 3, min: 1, max: 19 },
    memoryFactor: 1.5,
    compress: zstdPieces,
    decompress: unzstdExactly,
  },
  none: {
    // Zeros are compressed with zlib although compression is off.
    level: { default: 6, min: 0, max: 9 },
    memoryFactor: 1,
    compress: () => null,
    decompress: (stored, length) =>
      stored.length === length ? stored : { reason: `${stored.length} bytes are stored instead of ${length}` },
  },
};

const isal: Encoder = {
  // At level 1 a backup is no faster, and larger; level 3 takes four times as long for 0.2 % less.
  level: { default: 2, min: 0, max: 3 },
  compress: isalPieces,
};

const codecOfLabel: Record<Compression, Codec> = {
  zlib: "zlib",
  gzip: "zlib",
  bz2: "bz2",
  bzip2: "bz2",
  zstd: "zstd",
  none: "none",
  off: "none",
  no: "none",
};

/**
 * Parses an option or a label found in a repository; case-insensitive, as in Cinder. UnsupportedCompressionError, with Cinder's message,
 * for anything that cannot be decoded here.
 */
export function parseCompression(text: string): Compression {
  const found = compressions.find((each) => each === text.toLowerCase());
  if (found === undefined) throw new UnsupportedCompressionError(text.slice(0, 64));
  return found;
}

/** The codec behind a label. Cinder's `gzip` holds the same data as `zlib`, and `off` and `no` mean `none`. */
export function codecOf(compression: Compression): Codec {
  return codecOfLabel[compression];
}

/** The level that Cinder would use, or a comparable one of ISA-L. */
export function levelDefault(compression: Compression, zlibEncoder: ZlibEncoder = "zlib"): number {
  return levelsOf(compression, zlibEncoder).default;
}

/** The levels that an encoder supports. */
export function levelsOf(
  compression: Compression,
  zlibEncoder: ZlibEncoder,
): { default: number; min: number; max: number } {
  return encoderOf(compression, zlibEncoder).level;
}

function encoderOf(compression: Compression, zlibEncoder: ZlibEncoder): Encoder {
  const codec = codecOf(compression);
  return codec === "zlib" && zlibEncoder === "isal" ? isal : codecs[codec];
}

/** Most memory that one object takes, as a multiple of its decoded size. */
export function memoryFactor(compression: Compression): number {
  return codecs[codecOf(compression)].memoryFactor;
}

/** Throws CodecUnavailableError when this machine lacks what decoding needs. */
export function requireCodec(compression: Compression): void {
  if (codecOf(compression) === "bz2") requireBzip2();
}

/** Throws CodecUnavailableError when this machine lacks what compressing needs, or would produce different bytes than other machines. */
export function requireEncoder({ compression, level, zlibEncoder }: Encoding): void {
  requireCodec(compression);
  if (codecOf(compression) === "zlib" && zlibEncoder === "isal") requireIsal(level);
}

/**
 * The label of an extent that compression shrinks: the configured one. `off` and `no` are never used as labels: uncompressed data is
 * labelled `none`. Zeros are compressed even when compression is off, unless `compressZeros` is false.
 */
export function labelToTry(compression: Compression, zeros: { known: boolean; compressZeros: boolean }): Compression {
  if (codecOf(compression) !== "none") return compression;
  return zeros.known && zeros.compressZeros ? "zlib" : "none";
}

/** Compresses data in the format of the label. Null for `none` and for data that does not shrink: store it raw as `none`. */
export function compressPieces(
  { compression, level, zlibEncoder }: Encoding,
  data: Uint8Array,
  cancelled: () => boolean,
): Pieces {
  return encoderOf(compression, zlibEncoder).compress(data, level, cancelled);
}

/** Decodes a stored object to exactly `length` bytes, or says what is wrong with it. */
export function decompressExactly(
  label: Compression,
  stored: Uint8Array<ArrayBuffer>,
  length: number,
): Uint8Array<ArrayBuffer> | { reason: string } {
  return codecs[codecOf(label)].decompress(stored, length);
}

/** Input is deflated in pieces of this size, so that no full-size output buffer is needed. Changing it changes the output bytes. */
const pieceBytes = 1024 * 1024;
/** Deflate's window: how far back a piece may refer. */
const dictionaryBytes = 32 * 1024;

/** Noise is detected in units of this size and stored uncompressed: deflate would give the same result, thirty times slower. */
const unitBytes = 64 * 1024;
/** RFC 1951 section 3.2.4: the length of a stored block has 16 bits. */
const storedBytesMax = 0xffff;

/**
 * Compresses `data` to one zlib stream (RFC 1950), returned as consecutive pieces of about 1 MiB at most. Returns null when the stream
 * would not be shorter than the data, and undefined as soon as `cancelled` returns true. Equal input and level give equal bytes. Each
 * piece is deflated with the end of the previous one as its dictionary and ends on a byte boundary.
 */
export function deflatePieces(
  data: Uint8Array,
  level: number,
  cancelled: () => boolean,
): Uint8Array<ArrayBuffer>[] | null | undefined {
  const runs = cutRuns(data, level, cancelled);
  if (runs === undefined || runs.every(({ noise }) => noise)) return runs === undefined ? undefined : null;
  const pieces: Uint8Array<ArrayBuffer>[] = [zlibHeader(level)];
  let total = 2 + 4;
  let adler = 1;
  for (const { start, end, noise } of runs) {
    if (cancelled()) return undefined;
    const input = data.subarray(start, end);
    adler = adler32(input, adler);
    const last = end === data.length;
    const piece = noise ? storedBlocks(input, last) : deflatePiece(data, { start, end, level });
    total += piece.length;
    if (total >= data.length) return null;
    pieces.push(piece);
  }
  const trailer = new Uint8Array(4);
  new DataView(trailer.buffer).setUint32(0, adler);
  pieces.push(trailer);
  return pieces;
}

interface Run {
  start: number;
  end: number;
  noise: boolean;
}

/** Cuts data into runs of at most 1 MiB that are either noise or not. */
function cutRuns(data: Uint8Array, level: number, cancelled: () => boolean): Run[] | undefined {
  const runs: Run[] = [];
  for (let start = 0; start < data.length; start += unitBytes) {
    if (start % pieceBytes === 0 && cancelled()) return undefined;
    const end = Math.min(start + unitBytes, data.length);
    const noise = level > 0 && isNoise(data.subarray(start, end));
    const last = runs.at(-1);
    if (last !== undefined && last.noise === noise && end - last.start <= pieceBytes) last.end = end;
    else runs.push({ start, end, noise });
  }
  return runs;
}

function deflatePiece(data: Uint8Array, run: { start: number; end: number; level: number }): Uint8Array<ArrayBuffer> {
  const { start, end, level } = run;
  const chunkSize = Math.min(pieceBytes, end - start) + 4096;
  const piece = deflateRawSync(data.subarray(start, end), {
    level,
    chunkSize,
    finishFlush: end === data.length ? constants.Z_FINISH : constants.Z_SYNC_FLUSH,
    ...(start > 0 ? { dictionary: data.subarray(Math.max(0, start - dictionaryBytes), start) } : {}),
  });
  return ownBytes(piece, chunkSize);
}

/** RFC 1951 section 3.2.4: one byte that says "stored" (and whether this is the last block), the length, its complement, the bytes. */
function storedBlocks(input: Uint8Array, last: boolean): Uint8Array<ArrayBuffer> {
  const blocks = Math.ceil(input.length / storedBytesMax);
  const stored = new Uint8Array(input.length + blocks * 5);
  const view = new DataView(stored.buffer);
  let to = 0;
  for (let from = 0; from < input.length; from += storedBytesMax) {
    const length = Math.min(storedBytesMax, input.length - from);
    view.setUint8(to, last && from + length === input.length ? 1 : 0);
    view.setUint16(to + 1, length, true);
    view.setUint16(to + 3, storedBytesMax - length, true);
    stored.set(input.subarray(from, from + length), to + 5);
    to += length + 5;
  }
  return stored;
}

/**
 * Decompresses exactly one zlib stream to exactly `length` bytes, or says what is wrong with it. Output never exceeds
 * `length`, whatever the stream claims.
 */
export function inflateExactly(stored: Uint8Array, length: number): Uint8Array<ArrayBuffer> | { reason: string } {
  let result: { buffer: Buffer; engine: { bytesWritten: number } };
  const chunkSize = Math.max(64, length);
  try {
    result = inflateSync(stored, {
      chunkSize,
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
  return ownBytes(result.buffer, chunkSize);
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
