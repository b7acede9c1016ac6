import { randomBytes } from "node:crypto";
import { deflateSync, inflateSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { UnsupportedCompressionError } from "../errors.ts";
import {
  type Compression,
  codecOf,
  compressions,
  compressPieces,
  decompressExactly,
  deflatePieces,
  type Encoding,
  inflateExactly,
  levelDefault,
  parseCompression,
} from "./compression.ts";

const never = (): boolean => false;
const mebibyte = 1024 * 1024;
const encoding = (compression: Compression): Encoding => ({
  compression,
  level: levelDefault(compression),
  zlibEncoder: "zlib",
});

const samples: Record<string, Buffer> = {
  zeros: Buffer.alloc(3 * mebibyte + 5),
  text: Buffer.alloc(2 * mebibyte, "a line of text that repeats itself, "),
  "exactly one piece": Buffer.alloc(mebibyte, "abc"),
  mixed: Buffer.concat([randomBytes(700_000), Buffer.alloc(2 * mebibyte), randomBytes(700_000)]),
  short: Buffer.alloc(100, "x"),
};

test.each(Object.keys(samples))("%s become one zlib stream that any decoder reads", (name) => {
  const data = samples[name] as Buffer;
  for (const level of [1, 6, 9]) {
    const pieces = deflatePieces(data, level, never);
    const stream = Buffer.concat(pieces ?? []);
    expect(inflateSync(stream).equals(data)).toBe(true);
    expect(stream.readUInt16BE(0)).toBe(deflateSync("x", { level }).readUInt16BE(0));
    expect(stream.length).toBeLessThan(deflateSync(data, { level }).length * 1.02 + 100);
    expect(Buffer.concat(deflatePieces(data, level, never) ?? [])).toEqual(stream);
    const decoded = inflateExactly(stream, data.length);
    expect(decoded instanceof Uint8Array && data.equals(decoded)).toBe(true);
  }
});

test("what does not get shorter is not compressed", () => {
  for (const data of [randomBytes(2 * mebibyte), randomBytes(50), Buffer.from("a")]) {
    expect(deflatePieces(data, 6, never)).toBeNull();
  }
});

test("a cancelled compression ends without a result", () => {
  let calls = 0;
  expect(deflatePieces(Buffer.alloc(5 * mebibyte), 6, () => ++calls > 2)).toBeUndefined();
  expect(calls).toBe(3);
});

test("decoding gives exactly the declared length or a reason", () => {
  const stream = deflateSync(Buffer.alloc(100_000));
  for (const [stored, length] of [
    [stream, 99_999],
    [stream, 100_001],
    [stream.subarray(0, -1), 100_000],
    [Buffer.concat([stream, Buffer.from("x")]), 100_000],
    [Buffer.concat([stream, stream]), 100_000],
    [Buffer.from("nonsense"), 100_000],
    [Buffer.alloc(0), 100_000],
    [deflateSync(Buffer.alloc(100_000_000)), 100_000],
  ] as const) {
    expect(inflateExactly(stored, length)).toHaveProperty("reason");
  }
});

test("labels mean what they mean to Cinder", () => {
  const codecs = compressions.map((label) => [label, codecOf(label)]);
  expect(Object.fromEntries(codecs)).toEqual({
    zlib: "zlib",
    gzip: "zlib",
    bz2: "bz2",
    bzip2: "bz2",
    zstd: "zstd",
    none: "none",
    off: "none",
    no: "none",
  });
  expect(["ZLIB", "GZip", "BZ2", "None"].map(parseCompression)).toEqual(["zlib", "gzip", "bz2", "none"]);
  for (const label of ["lzma", "", "constructor", "zlib ", "deflate"]) {
    expect(() => parseCompression(label)).toThrow(UnsupportedCompressionError);
  }
});

describe.each(["zlib", "bz2", "zstd"] as const)("%s", (label) => {
  const compress = (data: Uint8Array): Uint8Array<ArrayBuffer> => {
    const pieces = compressPieces(encoding(label), data, never);
    const stream = Buffer.concat(pieces ?? []);
    return new Uint8Array(stream);
  };

  test.each(Object.keys(samples))("gives %s back", (name) => {
    const data = samples[name] as Buffer;
    const stored = compress(data);
    expect(stored.length).toBeLessThan(data.length);
    const decoded = decompressExactly(label, stored, data.length);
    expect(decoded instanceof Uint8Array && data.equals(decoded)).toBe(true);
  });

  test("stores what does not get shorter raw", () => {
    for (const data of [randomBytes(2 * mebibyte), randomBytes(50), Buffer.from("a")]) {
      expect(compressPieces(encoding(label), data, never)).toBeNull();
    }
  });

  test("decodes to exactly the declared length or gives a reason", () => {
    const data = Buffer.alloc(3 * mebibyte, "abc");
    const stored = compress(data);
    const bomb = compress(Buffer.alloc(60 * mebibyte));
    for (const [bytes, length] of [
      [stored, data.length - 1],
      [stored, data.length + 1],
      [stored.subarray(0, -1), data.length],
      [stored.subarray(0, 5), data.length],
      [Buffer.concat([stored, Buffer.from("x")]), data.length],
      [Buffer.from("nonsense"), 100],
      [new Uint8Array(0), 100],
      [bomb, 100_000],
    ] as const) {
      expect(decompressExactly(label, new Uint8Array(bytes), length)).toHaveProperty("reason");
    }
  });
});

test("a zstd frame has its content size in the header, without which a Cinder refuses it", () => {
  const data = Buffer.alloc(5 * mebibyte, "text ");
  const frame = Buffer.concat(compressPieces(encoding("zstd"), data, never) ?? []);
  expect(frame.readUInt32LE(0)).toBe(0xfd2fb528);
  // The two top bits of the frame header descriptor: the content size has 4 bytes. They are at the end of the header, after the window
  // byte.
  expect((frame[4] as number) >> 6).toBe(2);
  expect(frame.readUInt32LE((frame[4] as number) & 0x20 ? 5 : 6)).toBe(data.length);
});

test("bzip2 streams in a row are one object, as Cinder reads them, and a cancelled compression ends", () => {
  const parts = [Buffer.alloc(2 * mebibyte, "ab"), Buffer.alloc(100_000, "c")];
  const stored = Buffer.concat(parts.flatMap((part) => compressPieces(encoding("bz2"), part, never) ?? []));
  const decoded = decompressExactly("bz2", new Uint8Array(stored), 2 * mebibyte + 100_000);
  expect(decoded instanceof Uint8Array && Buffer.concat(parts).equals(decoded)).toBe(true);
  let calls = 0;
  const cancelled = (): boolean => ++calls > 2;
  expect(compressPieces(encoding("bz2"), Buffer.alloc(5 * mebibyte), cancelled)).toBeUndefined();
});
