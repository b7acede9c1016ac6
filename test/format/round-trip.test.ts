import { randomBytes } from "node:crypto";
import { open, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type BackupReference,
  compressions,
  cutRanges,
  type Engine,
  levelDefault,
  openEngine,
  openFileSource,
  openRepository,
  type RangeReport,
  RangesIncompleteError,
  type Repository,
  StrayObjectsError,
} from "@tephra/engine";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { times } from "../kit/long.ts";
import {
  backUp,
  freeContext,
  layoutFor,
  MemoryTarget,
  referenceTo,
  restoreToMemory,
  small,
  temporaryFolder,
} from "./backup-fixture.ts";

/** Printed with every failure; set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());

let engine: Engine;
beforeAll(() => {
  engine = openEngine({ threads: 2, memoryBytes: 1024 * 1024 });
});
afterAll(() => engine[Symbol.asyncDispose]());

/** One change of a volume: bytes of a kind at a place, both as fractions so that they fit every length. */
interface Edit {
  at: number;
  length: number;
  kind: "zero" | "random" | "text" | "hole";
}

const edit: fc.Arbitrary<Edit> = fc.record({
  at: fc.double({ min: 0, max: 1, noNaN: true }),
  length: fc.oneof(fc.integer({ min: 1, max: 300 }), fc.integer({ min: 1000, max: 150_000 })),
  kind: fc.constantFrom("zero", "random", "text", "hole"),
});

const history = fc.record({
  sizeBytes: fc.oneof(
    fc.integer({ min: 0, max: 700_000 }),
    fc.integer({ min: 0, max: 10 }).map((windows) => windows * small.objectBytes),
    fc.integer({ min: 0, max: 100 }).map((blocks) => blocks * small.blockBytes),
  ),
  compression: fc.constantFrom(...compressions),
  steps: fc.array(
    fc.record({ edits: fc.array(edit, { maxLength: 6 }), shrinkBy: fc.integer({ min: -3000, max: 9000 }) }),
    {
      minLength: 1,
      maxLength: 5,
    },
  ),
  rangeBytes: fc.integer({ min: 1, max: 400_000 }),
});

function applyEdits(volume: Buffer, edits: readonly Edit[], salt: number): void {
  for (const [index, { at, length, kind }] of edits.entries()) {
    const start = Math.floor(at * volume.length);
    const part = volume.subarray(start, start + length);
    if (kind === "random") randomBytes(part.length).copy(part);
    else if (kind === "text") part.fill(`some text that compresses ${salt} ${index} `);
    else part.fill(0);
  }
}

/** Writes the volume with holes where whole blocks are zero, so that both ways of finding zeros are used. */
async function writeSparse(path: string, volume: Buffer): Promise<void> {
  const file = await open(path, "w");
  try {
    await file.truncate(volume.length);
    for (let start = 0; start < volume.length; start += 8192) {
      const part = volume.subarray(start, start + 8192);
      if (part.some((byte) => byte !== 0)) await file.write(part, 0, part.length, start);
    }
  } finally {
    await file.close();
  }
}

test(`every backup of a random history restores exactly (seed ${seed})`, async () => {
  await fc.assert(
    fc.asyncProperty(history, async ({ sizeBytes, compression, steps, rangeBytes }) => {
      await using folder = await temporaryFolder();
      const repository = await openRepository(`posix:${join(folder.path, "repository")}`);
      await repository.initialize();
      const path = join(folder.path, "volume");
      let volume = Buffer.alloc(sizeBytes);
      const chain: BackupReference[] = [];
      const images: Buffer[] = [];
      for (const [index, step] of steps.entries()) {
        if (index > 0) volume = resized(volume, step.shrinkBy);
        applyEdits(volume, step.edits, index);
        await writeSparse(path, volume);
        const parent = chain[0];
        chain.unshift(
          await backUp(engine, {
            repository,
            path,
            layout: { compression, level: levelDefault(compression) },
            ...(parent ? { parent } : {}),
          }),
        );
        images.unshift(Buffer.from(volume));
      }
      for (const [index, image] of images.entries()) {
        expect((await restoreToMemory(engine, chain.slice(index))).equals(image)).toBe(true);
      }
      expect((await restoreInRanges(repository, chain, rangeBytes)).equals(images[0] as Buffer)).toBe(true);
    }),
    { seed, numRuns: times({ usual: 20, long: 60 }), endOnFailure: false },
  );
}, 120_000);

/** Smaller, or longer within the last block, which is all that Cinder's check of sizes lets through. */
function resized(volume: Buffer, by: number): Buffer<ArrayBuffer> {
  const blocks = Math.ceil(volume.length / small.blockBytes);
  const length = Math.max(0, Math.min(volume.length - by, blocks * small.blockBytes));
  const next = Buffer.alloc(length);
  volume.copy(next);
  return next;
}

async function restoreInRanges(
  repository: Repository,
  chain: readonly BackupReference[],
  rangeBytes: number,
): Promise<Buffer> {
  const staging = { operationId: "restore-1", name: "plan" };
  const plan = await engine.planRestore({ chain, rangeBytes, rangesMax: 20, staging }, freeContext());
  const target = new MemoryTarget(plan.volumeBytes, { isNew: true });
  let at = 0;
  for (const range of plan.ranges) {
    expect(range.offset).toBe(at);
    at += range.length;
    const done = await engine.restoreRange({ chain, range, staging, target }, freeContext());
    expect(done).toEqual({ bytesWritten: range.length, objects: range.objects });
  }
  expect(at).toBe(plan.volumeBytes);
  await engine.removeStaging(repository, staging.operationId);
  return target.bytes;
}

describe("a backup in ranges", () => {
  const volumeBytes = 10 * small.objectBytes + 777;

  async function setup(folder: string) {
    const repository = await openRepository(`posix:${join(folder, "repository")}`);
    await repository.initialize();
    const path = join(folder, "volume");
    const image = Buffer.concat([randomBytes(volumeBytes - 200_000), Buffer.alloc(200_000)]);
    await writeFile(path, image);
    return { repository, path, image };
  }

  const ranges = cutRanges({ volumeBytes, objectBytes: small.objectBytes, rangeBytes: 200_000, rangesMax: 100 });

  test("gives the same objects in whatever order the ranges are copied, and however often", async () => {
    await using folder = await temporaryFolder();
    const { repository, path, image } = await setup(folder.path);
    const operationId = "backup-1";
    const layout = layoutFor(repository, volumeBytes);
    await using source = await openFileSource(path);
    const reports: RangeReport[] = [];
    for (const claim of [1, 2]) {
      for (const index of ranges.keys().toArray().toReversed()) {
        const staging = { operationId, name: `task${index}-${claim}` };
        const range = ranges[index] as (typeof ranges)[number];
        const report = await engine.copyRange(
          { source, repository, layout, range, parent: null, staging },
          freeContext(),
        );
        if (claim === 2) {
          expect(report.bytesAdopted).toBe(report.bytesStored);
          expect({ ...report, staged: null, bytesAdopted: 0 }).toEqual({ ...reports[index], staged: null });
        }
        reports[index] = report;
      }
    }
    const sealed = await engine.seal({ repository, layout, operationId, reports }, freeContext());
    expect(sealed.objects).toBe(11);
    expect(await engine.seal({ repository, layout, operationId, reports }, freeContext())).toEqual(sealed);
    expect((await restoreToMemory(engine, [referenceTo(repository, layout)])).equals(image)).toBe(true);
  });

  test("an incremental in ranges numbers its objects by position", async () => {
    await using folder = await temporaryFolder();
    const { repository, path, image } = await setup(folder.path);
    const parent = await backUp(engine, { repository, path });
    randomBytes(10).copy(image, 5);
    randomBytes(10).copy(image, 4096 * 5);
    randomBytes(10).copy(image, 4 * small.objectBytes + 70_000);
    await writeFile(path, image);
    const operationId = "backup-2";
    const layout = layoutFor(repository, volumeBytes, { parentId: parent.backupId });
    await using source = await openFileSource(path);
    const reports: RangeReport[] = [];
    for (const [index, range] of ranges.entries()) {
      const staging = { operationId, name: `task${index}-1` };
      reports.push(await engine.copyRange({ source, repository, layout, range, parent, staging }, freeContext()));
    }
    await engine.seal({ repository, layout, operationId, reports }, freeContext());
    const found: string[] = [];
    for await (const { name } of repository.list(layout.container, `${layout.prefix}-`)) found.push(name.slice(-5));
    // Window 5 lies in the second range, whose first window is 3: 3 windows × 8 numbers each come before it.
    expect(found.sort()).toEqual(["00001", "00002", "00025"]);
    const chain = [referenceTo(repository, layout), parent];
    expect((await restoreToMemory(engine, chain)).equals(image)).toBe(true);
  });

  test("the seal names the ranges whose objects or slices are missing, and refuses strays", async () => {
    await using folder = await temporaryFolder();
    const { repository, path } = await setup(folder.path);
    const operationId = "backup-3";
    const layout = layoutFor(repository, volumeBytes);
    await using source = await openFileSource(path);
    const reports: RangeReport[] = [];
    const copy = async (index: number, claim: number): Promise<void> => {
      const staging = { operationId, name: `task${index}-${claim}` };
      const range = ranges[index] as (typeof ranges)[number];
      reports[index] = await engine.copyRange(
        { source, repository, layout, range, parent: null, staging },
        freeContext(),
      );
    };
    for (const index of ranges.keys()) await copy(index, 1);
    const seal = () => engine.seal({ repository, layout, operationId, reports }, freeContext());
    const incomplete = async (): Promise<number[]> => {
      const error = await seal().catch((caught: unknown) => caught);
      expect(error).toBeInstanceOf(RangesIncompleteError);
      return (error as RangesIncompleteError).ranges;
    };
    await repository.remove({ container: layout.container, name: `${layout.prefix}-00005` });
    expect(await incomplete()).toEqual([1]);
    await copy(1, 2);
    await repository.remove({ container: `.tephra/${operationId}`, name: "task2-1.hashes" });
    expect(await incomplete()).toEqual([2]);
    await copy(2, 2);
    const free = freeContext();
    for (const suffix of ["-00099", ".journal", "-1", "-00012"]) {
      const stray = { container: layout.container, name: `${layout.prefix}${suffix}` };
      await repository.putIfAbsent(stray, Buffer.from("x"), free);
      await expect(seal()).rejects.toBeInstanceOf(StrayObjectsError);
      await repository.remove(stray);
    }
    await expect(repository.stat({ container: layout.container, name: `${layout.prefix}_metadata` })).rejects.toThrow();
    await seal();
  });

  test("a part of a volume can be restored alone", async () => {
    await using folder = await temporaryFolder();
    const { repository, path, image } = await setup(folder.path);
    const reference = await backUp(engine, { repository, path });
    const extent = { offset: 70_001, length: 123_456 };
    const target = new MemoryTarget(volumeBytes);
    expect(await engine.restoreWhole({ chain: [reference], target, extent }, freeContext())).toEqual({
      bytes: 123_456,
      warnings: [],
    });
    expect(target.bytes.subarray(70_001, 193_457)).toEqual(image.subarray(70_001, 193_457));
    expect(target.bytes.subarray(0, 70_001).every((byte) => byte === 0xee)).toBe(true);
    expect(target.bytes.subarray(193_457).every((byte) => byte === 0xee)).toBe(true);
  });
});
