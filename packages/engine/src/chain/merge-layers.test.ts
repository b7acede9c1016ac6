import fc from "fast-check";
import { expect, test } from "vitest";
import { DamagedObjectError } from "../errors.ts";
import type { ObjectEntry } from "../format/object-entry.ts";
import type { BackupReference } from "./backup-reference.ts";
import { type MergeStep, mergeLayers } from "./merge-layers.ts";

const blockBytes = 10;

/** A layer as the owner of every block: which object number covers it, 0 for none. */
const layer = fc.array(fc.tuple(fc.integer({ min: 1, max: 6 }), fc.boolean()), { maxLength: 12 });

function entriesOf(spans: readonly (readonly [number, boolean])[], volumeBytes: number): ObjectEntry[] {
  const entries: ObjectEntry[] = [];
  let offset = 0;
  for (const [blocks, stored] of spans) {
    const length = Math.min(blocks * blockBytes, volumeBytes - offset);
    if (length <= 0) break;
    if (stored) entries.push({ number: entries.length + 1, offset, length, md5: "", compression: "none" });
    offset += length;
  }
  return entries;
}

const fullOf = (volumeBytes: number, objectBytes: number): ObjectEntry[] =>
  Array.from({ length: Math.ceil(volumeBytes / objectBytes) }, (_, index) => {
    const offset = index * objectBytes;
    const length = Math.min(objectBytes, volumeBytes - offset);
    return { number: index + 1, offset, length, md5: "", compression: "none" };
  });

async function merge(layers: readonly ObjectEntry[][], volumeBytes: number): Promise<MergeStep[]> {
  const references = layers.map((_, index) => ({ backupId: `b${index}`, prefix: `p${index}` }) as BackupReference);
  const streams = layers.map(async function* (entries) {
    for (let start = 0; start < entries.length; start += 2) yield entries.slice(start, start + 2);
  });
  return Array.fromAsync(mergeLayers({ references, layers: streams, volumeBytes, blockBytes }));
}

test("every byte comes from the newest object that covers it, and every object comes once", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(layer, { maxLength: 4 }),
      fc.integer({ min: 1, max: 300 }),
      fc.integer({ min: 1, max: 7 }),
      async (incrementals, volumeBytes, objectBlocks) => {
        const newer = incrementals.map((spans) => entriesOf(spans, volumeBytes));
        const layers = [...newer, fullOf(volumeBytes, objectBlocks * blockBytes)];
        const owner = new Array<string>(volumeBytes);
        for (const [index, entries] of layers.entries().toArray().toReversed()) {
          for (const { number, offset, length } of entries) owner.fill(`${index}:${number}`, offset, offset + length);
        }
        const merged = new Array<string>(volumeBytes);
        const seen = new Set<string>();
        let cut = 0;
        for (const step of await merge(layers, volumeBytes)) {
          if (step.kind === "cut") {
            cut = step.at;
            continue;
          }
          const name = `${step.object.layer}:${step.object.entry.number}`;
          expect(seen.has(name)).toBe(false);
          seen.add(name);
          for (const [start, end] of step.object.segments) {
            expect(start).toBeGreaterThanOrEqual(cut);
            expect(merged.slice(start, end).every((value) => value === undefined)).toBe(true);
            merged.fill(name, start, end);
          }
        }
        expect(merged).toEqual(owner);
        expect(seen).toEqual(new Set(owner));
      },
    ),
  );
});

test("what a parent holds behind the end of a volume that shrank is left out", async () => {
  const steps = await merge([[], fullOf(100, 50)], 60);
  const segments = steps.flatMap((step) => (step.kind === "object" ? step.object.segments : []));
  expect(segments).toEqual([
    [0, 50],
    [50, 60],
  ]);
});

test("a hole in the chain, and an object that does not fit the blocks, are damage", async () => {
  const [first, , third] = fullOf(30, 10);
  await expect(merge([[first as ObjectEntry, third as ObjectEntry]], 30)).rejects.toBeInstanceOf(DamagedObjectError);
  const ragged: ObjectEntry[] = [{ number: 1, offset: 5, length: 10, md5: "", compression: "none" }];
  await expect(merge([ragged, fullOf(30, 30)], 30)).rejects.toBeInstanceOf(DamagedObjectError);
});
