import { execFileSync, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { inflateSync } from "node:zlib";
import fc from "fast-check";
import { expect, test } from "vitest";
import { CodecUnavailableError } from "../errors.ts";
import { inflateExactly } from "./compression.ts";
import { isalPieces, requireIsal, zstream } from "./isal.ts";

const never = (): boolean => false;
const mebibyte = 1024 * 1024;
const levels = [0, 1, 2, 3];
const hasAvx512 = readFileSync("/proc/cpuinfo", "utf8").includes(" avx512f ");
const hasCompiler = spawnSync("cc", ["--version"]).status === 0;

interface Draw {
  seed: number;
  length: number;
  /** Length of each section in bytes. */
  section: number;
}

/** Sections of noise, zeros, small alphabets, and near and far repetitions, in an order determined by the seed. */
function dataOf({ seed, length, section }: Draw): Uint8Array {
  const data = new Uint8Array(length);
  let draw = seed | 1;
  let kind = 0;
  let back = 1;
  for (let at = 0; at < length; at++) {
    draw = (Math.imul(draw, 1_103_515_245) + 12_345) | 0;
    if (at % section === 0) {
      kind = (draw >>> 13) % 5;
      back = 1 + ((draw >>> 8) % 70_000);
    }
    if (kind === 0) data[at] = draw >>> 16;
    else if (kind === 1) data[at] = 97 + ((draw >>> 16) % 7);
    else if (kind !== 2 && at >= back) data[at] = draw >>> 24 === 0 ? draw >>> 16 : (data[at - back] as number);
  }
  return data;
}

const length = fc.oneof(
  fc.integer({ min: 1, max: 300 }),
  fc.integer({ min: 1, max: 100_000 }),
  fc.integer({ min: mebibyte - 2, max: mebibyte + 2 }),
  fc.integer({ min: 2 * mebibyte, max: 4 * mebibyte }),
);
const draws = fc.record({ seed: fc.integer(), length, section: fc.integer({ min: 1, max: 200_000 }) });

test.each(levels)("level %i makes one zlib stream that any decoder reads, or nothing that is not shorter", (level) => {
  fc.assert(
    fc.property(draws, (draw) => {
      const data = dataOf(draw);
      const pieces = isalPieces(data, level, never);
      if (pieces === null || pieces === undefined) return pieces === null;
      const stream = Buffer.concat(pieces);
      const decoded = inflateExactly(stream, data.length);
      return (
        stream.length < data.length &&
        stream.readUInt16BE(0) % 31 === 0 &&
        pieces.every((piece) => piece.length <= mebibyte && piece.length === piece.buffer.byteLength) &&
        decoded instanceof Uint8Array &&
        Buffer.compare(decoded, data) === 0
      );
    }),
    { numRuns: 80 },
  );
});

test.each(levels)("level %i shrinks what can be shrunk and gives up on what cannot", (level) => {
  const text = Buffer.alloc(2 * mebibyte, "a line of text that repeats itself, ");
  for (const data of [text, Buffer.alloc(3 * mebibyte + 5), Buffer.alloc(mebibyte, "abc"), Buffer.alloc(1000, "x")]) {
    const stream = Buffer.concat(isalPieces(data, level, never) ?? []);
    expect(stream.length).toBeLessThan(Math.max(200, data.length / 20));
    expect(inflateSync(stream).equals(data)).toBe(true);
  }
  const noise = randomBytes(20 * mebibyte);
  for (const data of [noise, noise.subarray(0, 50), Buffer.from("a"), Buffer.alloc(0)]) {
    expect(isalPieces(data, level, never)).toBeNull();
  }
});

test("what was compressed before, and where the bytes lie, changes nothing", () => {
  fc.assert(
    fc.property(
      draws,
      draws,
      fc.integer({ min: 0, max: 63 }),
      fc.constantFrom(...levels),
      (one, other, shift, level) => {
        const data = dataOf(one);
        const first = Buffer.concat(isalPieces(data, level, never) ?? []);
        isalPieces(dataOf(other), (level + 1) % 4, never);
        isalPieces(dataOf(other), level, never);
        const moved = new Uint8Array(shift + data.length + 100).fill(shift);
        moved.set(data, shift);
        const second = Buffer.concat(isalPieces(moved.subarray(shift, shift + data.length), level, never) ?? []);
        return first.equals(second);
      },
    ),
    { numRuns: 40 },
  );
});

test("a cancelled compression ends without a result, and the next one is whole", () => {
  let calls = 0;
  const data = Buffer.alloc(5 * mebibyte, "ab");
  expect(isalPieces(data, 2, () => ++calls > 2)).toBeUndefined();
  expect(calls).toBe(3);
  expect(inflateSync(Buffer.concat(isalPieces(data, 2, never) ?? [])).equals(data)).toBe(true);
});

test("this machine makes the bytes that all others make, or refuses a level at which it does not", () => {
  for (const level of levels.filter((each) => each < 3)) expect(() => requireIsal(level)).not.toThrow();
  // At level 3 ISA-L uses a different match finder on processors with AVX-512, which finds other matches.
  if (hasAvx512) expect(() => requireIsal(3)).toThrow(CodecUnavailableError);
  else expect(() => requireIsal(3)).not.toThrow();
});

test.skipIf(!hasCompiler)("the state is laid out as the library's header says", () => {
  const members: Record<keyof typeof zstream, string | null> = {
    bytes: null,
    nextIn: "next_in",
    availIn: "avail_in",
    nextOut: "next_out",
    availOut: "avail_out",
    level: "level",
    levelBufferBytes: "level_buf_size",
    levelBuffer: "level_buf",
    endOfStream: "end_of_stream",
    gzipFlag: "gzip_flag",
    state: "internal_state.state",
  };
  const numbers = Object.values(members).map((member) =>
    member === null ? "sizeof(struct isal_zstream)" : `offsetof(struct isal_zstream, ${member})`,
  );
  const constants =
    "IGZIP_ZLIB_NO_HDR, ZSTATE_END, ISAL_DEF_LVL1_DEFAULT, ISAL_DEF_LVL2_DEFAULT, ISAL_DEF_LVL3_DEFAULT";
  const program = `#include <isa-l/igzip_lib.h>
    #include <stddef.h>
    #include <stdio.h>
    int main(void) {
      long n[] = { ${numbers}, ${constants} };
      for (unsigned i = 0; i < sizeof n / sizeof *n; i++) printf("%ld ", n[i]);
    }`;
  const folder = mkdtempSync(join(tmpdir(), "tephra-isal-"));
  try {
    writeFileSync(join(folder, "layout.c"), program);
    execFileSync("cc", ["layout.c", "-o", "layout"], { cwd: folder });
    const found = execFileSync(join(folder, "layout"), { encoding: "utf8" }).trim().split(" ").map(Number);
    expect(found).toEqual([...Object.values(zstream), 4, 11, 282_624, 331_776, 348_160]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
