import { randomBytes } from "node:crypto";
import { open, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type BackupReference,
  type Compression,
  DamagedObjectError,
  type Engine,
  levelDefault,
  openEngine,
  openRepository,
} from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { isLong } from "../kit/long.ts";
import { backUp, freeContext, restoreToMemory, temporaryFolder } from "./backup-fixture.ts";

let engine: Engine;
beforeAll(() => {
  engine = openEngine({ threads: 2 });
});
afterAll(() => engine[Symbol.asyncDispose]());

const mebibyte = 1024 * 1024;
/** Larger than what is held in memory whole, as Cinder's posix driver writes by default. */
const layoutSizes = { objectBytes: 80 * mebibyte, blockBytes: 32768 };

/** A full backup of one object of 70 MiB and an incremental that changes it in three places. */
async function makeChain(folder: string, compression: Compression) {
  const root = join(folder, "repository");
  const repository = await openRepository(`posix:${root}`);
  await repository.initialize();
  const path = join(folder, "volume");
  const volume = Buffer.alloc(70 * mebibyte + 123);
  randomBytes(mebibyte).copy(volume, 9 * mebibyte + 7);
  volume.write("the end", volume.length - 7);
  await writeFile(path, volume);
  const full = await backUp(engine, {
    repository,
    path,
    layout: { compression, level: levelDefault(compression), compressZeros: false, ...layoutSizes },
  });
  for (const at of [100, 9 * mebibyte, 60 * mebibyte]) volume.write("changed", at);
  const file = await open(path, "r+");
  for (const at of [100, 9 * mebibyte, 60 * mebibyte]) await file.write("changed", at);
  await file.close();
  const layout = { compression, level: levelDefault(compression), ...layoutSizes };
  const incremental = await backUp(engine, { repository, path, parent: full, layout });
  return { root, chain: [incremental, full], volume };
}

/** What one codec does here, they all do; `none` is read in another way. */
const codecs = isLong ? (["zlib", "none", "zstd", "bz2"] as const) : (["zlib", "none"] as const);

describe.each(codecs)("an object that is too large for memory, stored with %s", (compression) => {
  let folder: Awaited<ReturnType<typeof temporaryFolder>>;
  let made: Awaited<ReturnType<typeof makeChain>>;
  beforeAll(async () => {
    folder = await temporaryFolder();
    made = await makeChain(folder.path, compression);
  });
  afterAll(() => folder[Symbol.asyncDispose]());

  test("is restored piece by piece, exactly, below an incremental", async () => {
    const { chain, volume } = made;
    expect((await restoreToMemory(engine, chain)).equals(volume)).toBe(true);
    const chunks: Uint8Array[] = [];
    const sink = async (chunk: Uint8Array): Promise<void> => void chunks.push(chunk);
    await engine.restoreStream({ chain, sink }, freeContext());
    expect(Buffer.concat(chunks).equals(volume)).toBe(true);
  });

  test("is found damaged wherever the damage lies", async () => {
    const { root, chain } = made;
    const full = chain[1] as BackupReference;
    const path = join(root, full.container, `${full.prefix}-00001`);
    const whole = await readFile(path);
    const flipped = Buffer.from(whole);
    const middle = compression === "none" ? 9 * mebibyte + 50_000 : Math.floor(whole.length / 2);
    flipped[middle] = (flipped[middle] as number) ^ 1;
    // The last test of this chain: it stays damaged.
    for (const bytes of [flipped, whole.subarray(0, -1), Buffer.concat([whole, Buffer.from("x")]), Buffer.alloc(0)]) {
      await writeFile(path, bytes);
      const error = await restoreToMemory(engine, [full]).then(
        () => null,
        (caught: unknown) => caught,
      );
      expect(error).toBeInstanceOf(DamagedObjectError);
      expect((error as Error).message).toContain(`${full.prefix}-00001`);
    }
  });
});
