import { randomBytes } from "node:crypto";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type BackupReference,
  type Engine,
  type Extent,
  openEngine,
  openRepository,
  type VolumeSource,
} from "@tephra/engine";
import { afterAll, beforeAll, expect, test } from "vitest";
import { times } from "../kit/long.ts";
import { Random } from "../reliability/fuzz/random.ts";
import { backUp, small, temporaryFolder } from "./backup-fixture.ts";

/** Set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());
const never = new AbortController().signal;
const reads = times({ usual: 60, long: 2_000 });

let engine: Engine;
beforeAll(() => {
  engine = openEngine({ threads: 2 });
});
afterAll(() => engine[Symbol.asyncDispose]());

async function extentsOf(source: VolumeSource, range: Extent): Promise<Extent[]> {
  return Array.fromAsync(source.dataExtents(range));
}

/** What the gaps between extents say is zero, as a copy of `image` in which it is. */
function zeroedBetween(image: Buffer, range: Extent, data: readonly Extent[]): Buffer {
  const seen = Buffer.alloc(range.length);
  for (const { offset, length } of data) {
    expect(offset >= range.offset && offset + length <= range.offset + range.length, `seed ${seed}`).toBe(true);
    image.copy(seen, offset - range.offset, offset, offset + length);
  }
  return seen;
}

/** A full backup and two incrementals of a volume, with zeros within; `compression` as given. */
async function makeChain(folder: string, compression: "none" | "zstd") {
  const random = new Random(seed);
  const root = join(folder, "repository");
  const repository = await openRepository(`posix:${root}`);
  await repository.initialize();
  const path = join(folder, "volume");
  let image = randomBytes(40 * small.objectBytes - 1000).fill(0, 100_000, 300_000);
  const chain: BackupReference[] = [];
  const images: Buffer[] = [];
  for (let member = 0; member < 3; member += 1) {
    await writeFile(path, image);
    const [parent] = chain;
    chain.unshift(await backUp(engine, { repository, path, layout: { compression }, ...(parent && { parent }) }));
    images.unshift(image);
    image = Buffer.from(image);
    for (let change = 0; change < 20; change += 1) {
      const start = random.below(image.length);
      if (change % 2 === 0) image.fill(0, start, Math.min(start + 30_000, image.length));
      else image.set(randomBytes(Math.min(10_000, image.length - start)), start);
    }
  }
  const file = (reference: BackupReference, suffix: string): string =>
    join(root, reference.container, `${reference.prefix}${suffix}`);
  return { chain, images, file };
}

test.each(["none", "zstd"] as const)(
  `any part of any backup of a chain can be read, many at once: %s (seed ${seed})`,
  async (compression) => {
    await using folder = await temporaryFolder();
    const { chain, images } = await makeChain(folder.path, compression);
    for (const [index, image] of images.entries()) {
      await using source = await engine.openBackupSource({ chain: chain.slice(index) }, never);
      expect(source.sizeBytes).toBe(image.length);
      const random = new Random(seed + index);
      const parts = Array.from({ length: reads }, () => {
        const offset = random.below(image.length);
        return { offset, length: 1 + random.below(Math.min(image.length - offset, 200_000)) };
      });
      // Objects, and with them what is decoded as one, begin here.
      for (let offset = 0; offset < image.length; offset += small.objectBytes) parts.push({ offset, length: 1 });
      await Promise.all(
        parts.map(async (part) => {
          const into = Buffer.alloc(part.length);
          await source.read(into, part.offset);
          expect(into.equals(image.subarray(part.offset, part.offset + part.length)), JSON.stringify(part)).toBe(true);
        }),
      );
      for (const part of [{ offset: 0, length: image.length }, ...parts.slice(0, 5)]) {
        const data = await extentsOf(source, part);
        expect(zeroedBetween(image, part, data).equals(image.subarray(part.offset, part.offset + part.length))).toBe(
          true,
        );
        const told = data.reduce((sum, { length }) => sum + length, 0);
        if (part.length === image.length) expect(told).toBeLessThan(image.length - 100_000);
      }
    }
  },
);

test("a damaged object fails what is read of it, and nothing else", async () => {
  await using folder = await temporaryFolder();
  const { chain, images, file } = await makeChain(folder.path, "none");
  const [full] = chain.slice(-1) as [BackupReference];
  const image = images.at(-1) as Buffer;
  const damaged = file(full, "-00040");
  const bytes = await readFile(damaged);
  bytes.writeUInt8(255 - bytes.readUInt8(5), 5);
  await writeFile(damaged, bytes);
  await using source = await engine.openBackupSource({ chain: [full] }, never);
  const into = Buffer.alloc(4096);
  await source.read(into, 0);
  expect(into.equals(image.subarray(0, 4096))).toBe(true);
  for (let again = 0; again < 2; again += 1) {
    await expect(source.read(into, image.length - 4096)).rejects.toMatchObject({ code: "damaged_object" });
  }
});
