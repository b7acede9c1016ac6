import fc from "fast-check";
import { expect, test } from "vitest";
import { clipExtent, cutRanges, cutWindows } from "./extents.ts";

const sizes = fc.record({
  volumeBytes: fc.integer({ min: 0, max: 5_000_000 }),
  objectBytes: fc.integer({ min: 1000, max: 300_000 }),
  rangeBytes: fc.integer({ min: 1, max: 2_000_000 }),
  rangesMax: fc.integer({ min: 1, max: 50 }),
});

test("ranges cover the volume once, in whole windows, and are no more than allowed", () => {
  fc.assert(
    fc.property(sizes, (input) => {
      const ranges = cutRanges(input);
      let at = 0;
      for (const { offset, length } of ranges) {
        expect(offset).toBe(at);
        expect(offset % input.objectBytes).toBe(0);
        expect(length).toBeGreaterThan(0);
        at += length;
      }
      expect(at).toBe(input.volumeBytes);
      expect(ranges.length).toBeLessThanOrEqual(input.rangesMax);
    }),
  );
});

test("an empty volume has no range, and a volume of 16 TiB is cut without losing a byte", () => {
  const sizing = { objectBytes: 52_428_800, rangeBytes: 1024 ** 3, rangesMax: 16_384 };
  expect(cutRanges({ volumeBytes: 0, ...sizing })).toEqual([]);
  const huge = cutRanges({ volumeBytes: 16 * 1024 ** 4 + 1, ...sizing });
  const last = huge.at(-1);
  expect((last?.offset ?? 0) + (last?.length ?? 0)).toBe(16 * 1024 ** 4 + 1);
});

test("windows cover their extent", () => {
  expect(cutWindows({ offset: 100, length: 25 }, 10)).toEqual([
    { offset: 100, length: 10 },
    { offset: 110, length: 10 },
    { offset: 120, length: 5 },
  ]);
});

test("a clipped extent is what both have in common", () => {
  expect(clipExtent({ offset: 0, length: 10 }, { offset: 5, length: 10 })).toEqual({ offset: 5, length: 5 });
  expect(clipExtent({ offset: 0, length: 5 }, { offset: 5, length: 10 })).toBeNull();
});
