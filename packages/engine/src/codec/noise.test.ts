import { randomBytes } from "node:crypto";
import { deflateSync, inflateSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { deflatePieces, inflateExactly } from "./compression.ts";
import { isNoise } from "./noise.ts";

const KiB = 1024;
const never = (): boolean => false;
const text = (bytes: number): Buffer => Buffer.alloc(bytes, "it was the best of times, it was the worst of times; ");

describe("noise", () => {
  test("is what neither its values nor its repetitions let shrink", () => {
    expect(isNoise(randomBytes(64 * KiB))).toBe(true);
    expect(isNoise(text(64 * KiB))).toBe(false);
    expect(isNoise(Buffer.alloc(64 * KiB))).toBe(false);
    const half = randomBytes(32 * KiB);
    expect(isNoise(Buffer.concat([half, half]))).toBe(false);
    expect(isNoise(Buffer.from(randomBytes(24 * KiB).toString("base64")))).toBe(false);
  });

  test("is stored inside a stream that any inflater reads, wherever it lies", () => {
    const noise = randomBytes(200 * KiB);
    const parts = [text(90 * KiB), noise, Buffer.alloc(130 * KiB), text(64 * KiB)];
    for (const order of [
      [0, 1, 2],
      [1, 0],
      [0, 1],
      [1, 2, 1, 3, 1],
      [3, 2, 0, 1],
    ]) {
      const data = Buffer.concat(order.map((part) => parts[part] as Buffer));
      for (const level of [1, 6, 9]) {
        const stream = Buffer.concat(deflatePieces(data, level, never) as Uint8Array[]);
        expect(inflateSync(stream).equals(data)).toBe(true);
        expect(Buffer.from(inflateExactly(stream, data.length) as Uint8Array).equals(data)).toBe(true);
        expect(Buffer.concat(deflatePieces(data, level, never) as Uint8Array[]).equals(stream)).toBe(true);
      }
    }
  });

  test("alone is not compressed, and is found in a small part of the time that deflating it takes", () => {
    const volume = randomBytes(1024 * KiB);
    const best = { finding: Number.POSITIVE_INFINITY, deflating: Number.POSITIVE_INFINITY };
    const timed = (what: keyof typeof best, work: () => void): void => {
      const started = performance.now();
      work();
      best[what] = Math.min(best[what], performance.now() - started);
    };
    for (let round = 0; round < 8; round++) {
      timed("finding", () => expect(deflatePieces(volume, 6, never)).toBeNull());
      timed("deflating", () => expect(deflateSync(volume, { level: 6 }).length).toBeGreaterThan(0));
    }
    expect(best.finding).toBeLessThan(best.deflating / 2);
  });
});
