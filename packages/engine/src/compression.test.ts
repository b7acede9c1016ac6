import { randomBytes } from "node:crypto";
import { deflateSync, inflateSync } from "node:zlib";
import { expect, test } from "vitest";
import { codecOf, deflatePieces, inflateExactly } from "./compression.ts";
import { UnsupportedCompressionError } from "./errors.ts";

const never = (): boolean => false;
const mebibyte = 1024 * 1024;

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
  expect(["zlib", "gzip", "none", "off", "no"].map(codecOf)).toEqual(["zlib", "zlib", "none", "none", "none"]);
  for (const label of ["bz2", "zstd", "ZLIB", "", "constructor"]) {
    expect(() => codecOf(label)).toThrow(UnsupportedCompressionError);
  }
});
