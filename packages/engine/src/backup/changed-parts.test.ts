import { expect, it } from "vitest";
import { InvalidLayoutError } from "../errors.ts";
import { cutRanges, type Extent } from "../format/extents.ts";
import { type ChangedParts, divideChanges, readChanges } from "./changed-parts.ts";

const KiB = 1024;
const block = 32 * KiB;
const cut = (volumeBytes: number, rangeBytes: number): Extent[] =>
  cutRanges({ volumeBytes, objectBytes: 8 * block, rangeBytes, rangesMax: 16_384 });

async function divided(changes: readonly Extent[], ranges: readonly Extent[]): Promise<Extent[][]> {
  const stored = JSON.parse(JSON.stringify(await divideChanges(given(changes), ranges, block)));
  return ranges.map((range, index) => readChanges(stored[index], range));
}

async function* given(changes: readonly Extent[]): AsyncGenerator<Extent> {
  yield* changes;
}

it("each range gets the whole blocks in it that a change touches, in whatever order changes are told", async () => {
  const ranges = cut(20 * block + 100, 8 * block);
  const changes = [
    { offset: 20 * block + 99, length: 4000 },
    { offset: 7 * block + 5, length: 9 * block },
    { offset: 3 * block, length: 0 },
    { offset: 8 * block, length: 1 },
    { offset: 2 * block - 1, length: 2 },
    { offset: 500 * block, length: block },
  ];
  expect(await divided(changes, ranges)).toEqual([
    [
      { offset: block, length: 2 * block },
      { offset: 7 * block, length: block },
    ],
    [{ offset: 8 * block, length: 8 * block }],
    [
      { offset: 16 * block, length: block },
      { offset: 20 * block, length: 100 },
    ],
  ]);
});

it("a volume of very many blocks is told of in coarser grains, of which none is left out", async () => {
  const ranges = cut(8 * 2 ** 40 + 5 * block, 2 ** 29);
  const far = 8 * 2 ** 40 + 3 * block;
  const parts = await divideChanges(given([{ offset: far, length: 1 }]), ranges, block);
  expect(new Set(parts.map(({ grainBytes }) => grainBytes)).size).toBe(1);
  expect(JSON.stringify(parts).length / ranges.length).toBeLessThan(100);
  expect(new Set(parts.slice(0, -1).map(({ grains }) => grains)).size).toBe(1);
  const last = ranges.length - 1;
  const found = [0, last].flatMap((index) => readChanges(parts[index] as ChangedParts, ranges[index] as Extent));
  expect(found).toHaveLength(1);
  const [{ offset, length } = { offset: 0, length: 0 }] = found;
  expect(offset).toBeLessThanOrEqual(far);
  expect(offset + length).toBeGreaterThan(far);
  expect(length).toBeLessThanOrEqual(8 * block);
});

it("what was noted with another range, or is no such note, is refused", async () => {
  const [range] = cut(64 * block, 64 * block) as [Extent];
  const [part] = await divideChanges(given([]), [range], block);
  if (part === undefined) throw new Error("nothing divided");
  const refused = (parts: ChangedParts, of: Extent) => expect(() => readChanges(parts, of)).toThrow(InvalidLayoutError);
  refused(part, { offset: 0, length: 8 * block });
  refused(part, { offset: 0, length: 256 * block });
  refused({ ...part, grains: "" }, range);
  refused({ ...part, grains: "####" }, range);
});
