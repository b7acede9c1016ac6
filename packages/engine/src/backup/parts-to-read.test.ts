import { expect, it } from "vitest";
import { partsToRead } from "./parts-to-read.ts";

const KiB = 1024;
const block = 32 * KiB;
const window = { offset: 64 * block, length: 200 * block - 100 };
const changesOf = (...changed: [offset: number, length: number][]) =>
  partsToRead(
    window,
    changed.map(([offset, length]) => ({ offset, length })),
    block,
  );

it("whole blocks that a change touches are read, and no others but samples", () => {
  const parts = changesOf(
    [0, 10],
    [66 * block + 1, 1],
    [67 * block, block + 1],
    [100 * block, 0],
    [500 * block, block],
  );
  expect(parts.filter(({ isSample }) => !isSample)).toEqual([
    { part: { offset: 66 * block, length: 3 * block }, isSample: false },
  ]);
});

it("a hundredth of the others are samples, at random, and never one that has changed", () => {
  const seen = new Set<number>();
  for (let round = 0; round < 100; round++) {
    const samples = changesOf([64 * block, 100 * block]).filter(({ isSample }) => isSample);
    expect(samples.reduce((sum, { part }) => sum + Math.ceil(part.length / block), 0)).toBe(1);
    for (const { part } of samples) seen.add(part.offset / block);
  }
  expect(seen.size).toBeGreaterThan(20);
  expect(Math.min(...seen)).toBeGreaterThanOrEqual(164);
});

it("the last block ends with the window, and where everything has changed there are no samples", () => {
  expect(changesOf([0, 1000 * block])).toEqual([{ part: window, isSample: false }]);
  expect(partsToRead({ offset: 0, length: block }, [], block)).toEqual([
    { part: { offset: 0, length: block }, isSample: true },
  ]);
});
