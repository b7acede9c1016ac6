import { randomBytes, randomUUID } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type BackupReference,
  type Compression,
  compressions,
  cutRanges,
  decodeExportRecord,
  type Engine,
  levelDefault,
  openEngine,
  openFileSource,
  type RangeReport,
  type Repository,
  recordOf,
  rescan,
} from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { unpackSwift } from "../../../scripts/swift-package.ts";
import {
  backUp,
  freeContext,
  layoutFor,
  referenceTo,
  restoreToMemory,
  small,
  temporaryFolder,
} from "../backup-fixture.ts";
import { type CinderRecord, type CinderStep, cinderEnvironment, completed, runCinder } from "./cinder.ts";
import { kinds } from "./kinds.ts";

let engine: Engine;
beforeAll(async () => {
  // The downloads are none of the tests' time.
  await cinderEnvironment();
  await unpackSwift((line) => process.stderr.write(`${line}\n`));
  engine = openEngine({ threads: 2 });
});
afterAll(() => engine[Symbol.asyncDispose]());

const volumeBytes = 7 * small.objectBytes + 2777;

/** Noise, zeros and text, so that one backup has several labels. */
function firstImage(): Buffer<ArrayBuffer> {
  const text = Buffer.alloc(130_000, "lines that repeat ");
  return Buffer.concat([randomBytes(150_000), Buffer.alloc(100_000), text, Buffer.alloc(volumeBytes - 380_000)]);
}

/** Edits inside a window, across two, into zeros, and in the short last block. */
function edit(image: Buffer): Buffer<ArrayBuffer> {
  const next = Buffer.from(image);
  randomBytes(5000).copy(next, 10_000);
  randomBytes(9000).copy(next, 2 * small.objectBytes - 4000);
  next.fill(0, 50_000, 70_000);
  randomBytes(100).copy(next, volumeBytes - 100);
  return next;
}

const recordFor = (reference: BackupReference, parentId: string | null, volumeId: string): CinderRecord => ({
  id: reference.backupId,
  volume_id: volumeId,
  parent_id: parentId,
  container: reference.container,
  service_metadata: reference.prefix,
  size: 1,
});

const newRecord = (volumeId: string, parentId: string | null): CinderRecord => {
  return {
    id: randomUUID(),
    volume_id: volumeId,
    parent_id: parentId,
    container: null,
    service_metadata: null,
    size: 1,
  };
};

/** A target for Cinder that is full of something else. */
async function writeTarget(path: string): Promise<string> {
  await writeFile(path, Buffer.alloc(volumeBytes, 0xee));
  return path;
}

/** Backs up in several ranges, which leaves gaps in the numbers of an incremental. */
async function backUpInRanges(input: {
  repository: Repository;
  path: string;
  parent: BackupReference | null;
  compression: Compression;
  volumeId: string;
}): Promise<BackupReference> {
  const { repository, path, parent, compression, volumeId } = input;
  await using source = await openFileSource(path);
  const level = levelDefault(compression);
  const layout = layoutFor(repository, volumeBytes, {
    parentId: parent?.backupId ?? null,
    compression,
    level,
    volumeId,
  });
  const operationId = randomUUID();
  const ranges = cutRanges({ volumeBytes, objectBytes: small.objectBytes, rangeBytes: 150_000, rangesMax: 100 });
  const reports: RangeReport[] = [];
  for (const [index, range] of ranges.entries()) {
    const staging = { operationId, name: `range-${index}` };
    reports.push(await engine.copyRange({ source, repository, layout, range, parent, staging }, freeContext()));
  }
  await engine.seal({ repository, layout, operationId, reports }, freeContext());
  await engine.removeStaging(repository, operationId);
  return referenceTo(repository, layout);
}

describe.each(kinds)("beside a real Cinder on $name", ({ open }) => {
  test("what we wrote, with every codec, in one range and in several, is restored by Cinder", async () => {
    await using folder = await temporaryFolder();
    await using place = await open(folder.path);
    const { repository, cinder } = place;
    const known: CinderRecord[] = [];
    const steps: (CinderStep & { do: "restore" })[] = [];
    const images: Buffer[] = [];
    for (const compression of compressions) {
      for (const ranges of ["one", "several"]) {
        const volumeId = randomUUID();
        const path = join(folder.path, "volume");
        let image = firstImage();
        let parent: BackupReference | null = null;
        for (let index = 0; index < 3; index++, image = edit(image)) {
          await writeFile(path, image);
          const layout = { compression, level: levelDefault(compression), volumeId };
          const reference: BackupReference =
            ranges === "one"
              ? await backUp(engine, { repository, path, layout, ...(parent ? { parent } : {}) })
              : await backUpInRanges({ repository, path, parent, compression, volumeId });
          known.push(recordFor(reference, parent?.backupId ?? null, volumeId));
          parent = reference;
          images.push(Buffer.from(image));
          const target = await writeTarget(join(folder.path, `target-${images.length}`));
          steps.push({ do: "restore", id: reference.backupId, target });
        }
      }
    }
    await runCinder(cinder, { known, steps });
    for (const [index, { target }] of steps.entries()) {
      expect((await readFile(target)).equals(images[index] as Buffer)).toBe(true);
    }
  });

  test("what ISA-L compressed for us is restored by Cinder", async () => {
    await using folder = await temporaryFolder();
    const { repository, cinder } = await open(folder.path);
    const path = join(folder.path, "volume");
    await writeFile(path, firstImage());
    const layout = { compression: "zlib", level: levelDefault("zlib", "isal"), zlibEncoder: "isal" } as const;
    const reference = await backUp(engine, { repository, path, layout });
    const known = [recordFor(reference, null, randomUUID())];
    const target = await writeTarget(join(folder.path, "target"));
    await runCinder(cinder, { known, steps: [{ do: "restore", id: reference.backupId, target }] });
    expect((await readFile(target)).equals(await readFile(path))).toBe(true);
  });

  test("what Cinder wrote, with every codec, is restored and verified by us, and its records are read", async () => {
    await using folder = await temporaryFolder();
    await using place = await open(folder.path);
    const { repository, cinder } = place;
    const steps: CinderStep[] = [];
    const images: Buffer[] = [];
    await mkdir(join(folder.path, "volumes"));
    for (const compression of compressions) {
      const volumeId = randomUUID();
      let parentId: string | null = null;
      let image = firstImage();
      for (let index = 0; index < 3; index++, image = edit(image)) {
        const volume = join(folder.path, "volumes", String(images.length));
        await writeFile(volume, image);
        images.push(Buffer.from(image));
        const backup: CinderRecord = newRecord(volumeId, parentId);
        steps.push({ do: "backup", volume, compression, backup });
        parentId = backup.id;
      }
    }
    const records = (await runCinder(cinder, { known: [], steps })).map((answer) => completed.parse(answer));
    const references = records
      .map((record) => decodeExportRecord(record.backup_url))
      .map((record) => {
        const container = record.container ?? repository.defaultContainer(record.id);
        return { backupId: record.id, repository, container, prefix: record.prefix };
      });
    for (const [index, image] of images.entries()) {
      const chain = references.slice(index - (index % 3), index + 1).reverse();
      expect((await restoreToMemory(engine, chain)).equals(image)).toBe(true);
      const verified = await engine.verifyBackup({ chain, mode: "deep" }, freeContext());
      expect(verified).toMatchObject({ blocks: Math.ceil(volumeBytes / small.blockBytes), damaged: [] });
    }
    const rescanned = await rescan(repository, new AbortController().signal);
    const state = rescanned.map(({ chain, problem }) => ({ length: chain.length, problem }));
    const lengths = [1, 2, 3].flatMap((length) => compressions.map(() => ({ length, problem: null })));
    expect(state).toEqual(lengths);
  });

  test("a chain that both have written by turns, from its middle on of a restored volume, is exact for both at every member", async () => {
    await using folder = await temporaryFolder();
    await using place = await open(folder.path);
    const { repository, cinder } = place;
    const [original, restored] = [randomUUID(), randomUUID()];
    const path = join(folder.path, "volume");
    const known: CinderRecord[] = [];
    const chain: BackupReference[] = [];
    const images: Buffer[] = [];
    let image = firstImage();
    for (const [index, compression] of (["zstd", "zlib", "bz2", "none", "gzip", "zstd"] as const).entries()) {
      await writeFile(path, image);
      images.push(image);
      const volumeId = index < 2 ? original : restored;
      const parentId = known.at(-1)?.id ?? null;
      if (index % 2 === 0) {
        const layout = { compression, level: levelDefault(compression), volumeId };
        const parent = chain[0];
        chain.unshift(await backUp(engine, { repository, path, layout, ...(parent ? { parent } : {}) }));
        known.push(recordFor(chain[0] as BackupReference, parentId, volumeId));
      } else {
        const step = { do: "backup" as const, volume: path, compression, backup: newRecord(volumeId, parentId) };
        const [answer] = await runCinder(cinder, { known, steps: [step] });
        const { object_count: objects, backup_url: _, ...record } = completed.parse(answer);
        expect(objects).toBeGreaterThan(0);
        known.push(record);
        const { id: backupId, container, service_metadata: prefix } = record;
        chain.unshift({ backupId, repository, container, prefix });
      }
      image = edit(image);
    }
    const steps: (CinderStep & { do: "restore" })[] = [];
    for (const { id } of known) {
      steps.push({ do: "restore", id, target: await writeTarget(join(folder.path, `target-${id}`)) });
    }
    await runCinder(cinder, { known, steps });
    for (const [index, expected] of images.entries()) {
      expect((await restoreToMemory(engine, chain.slice(-1 - index))).equals(expected)).toBe(true);
      expect((await readFile(steps[index]?.target as string)).equals(expected)).toBe(true);
    }
  });

  test("a chain of both, squashed by us, is restored by Cinder, also when it has deleted what was merged", async () => {
    await using folder = await temporaryFolder();
    await using place = await open(folder.path);
    const { repository, cinder } = place;
    const volumeId = randomUUID();
    const path = join(folder.path, "volume");
    const known: CinderRecord[] = [];
    const chain: BackupReference[] = [];
    const images: Buffer[] = [];
    let image = firstImage();
    for (const compression of ["zlib", "zstd", "bz2", "none"] as const) {
      await writeFile(path, image);
      images.unshift(image);
      const step = {
        do: "backup" as const,
        volume: path,
        compression,
        backup: newRecord(volumeId, known[0]?.id ?? null),
      };
      const [answer] = await runCinder(cinder, { known, steps: [step] });
      const { object_count: _, backup_url: __, ...record } = completed.parse(answer);
      known.unshift(record);
      chain.unshift({
        backupId: record.id,
        repository,
        container: record.container ?? "",
        prefix: record.service_metadata ?? "",
      });
      image = edit(image);
    }
    const [newest, ...merged] = chain as [BackupReference, ...BackupReference[]];
    const [former] = merged as [BackupReference];
    const signal = new AbortController().signal;
    const shape = await engine.planSquash({ chain: merged, objectBytes: small.objectBytes }, signal);
    const layout = layoutFor(repository, shape.volumeBytes, {
      backupId: former.backupId,
      volumeId,
      container: former.container,
      prefix: repository.defaultPrefix({ volumeId, backupId: former.backupId, at: new Date(Date.now() + 60_000) }),
      createdAt: shape.header.createdAt ?? "",
      volumeMeta: shape.header.volumeMeta,
    });
    const { takenBytes } = await engine.squashWhole({ chain: merged, repository, layout }, freeContext());
    expect(takenBytes).toBeGreaterThan(0);
    const deletions = merged.map(({ backupId }) => ({ do: "delete" as const, id: backupId }));
    await runCinder(cinder, { known, steps: deletions });
    const now = [known[0] as CinderRecord, recordFor(referenceTo(repository, layout), null, volumeId)];
    const steps: (CinderStep & { do: "restore" })[] = [];
    for (const { id } of now)
      steps.push({ do: "restore", id, target: await writeTarget(join(folder.path, `target-${id}`)) });
    await runCinder(cinder, { known: now, steps });
    for (const [index, { target }] of steps.entries()) {
      expect((await readFile(target)).equals(images[index] as Buffer)).toBe(true);
    }
    const ours = [newest, referenceTo(repository, layout)];
    expect((await restoreToMemory(engine, ours)).equals(images[0] as Buffer)).toBe(true);
    expect((await rescan(repository, signal)).map(({ problem }) => problem)).toEqual([null, null]);
  });

  test("a record that we export says to Cinder what we mean", async () => {
    await using folder = await temporaryFolder();
    await using place = await open(folder.path);
    const { repository, cinder } = place;
    const path = join(folder.path, "volume");
    await writeFile(path, firstImage());
    const reference = await backUp(engine, { repository, path });
    const [rescanned] = await rescan(repository, new AbortController().signal);
    const record = rescanned === undefined ? null : recordOf(repository, rescanned);
    const [answer] = await runCinder(cinder, { known: [], steps: [{ do: "import", url: record?.backup_url ?? "" }] });
    expect(answer).toMatchObject({
      id: reference.backupId,
      volume_id: rescanned?.backup.volumeId,
      parent_id: null,
      container: reference.container,
      service_metadata: reference.prefix,
      size: 1,
      object_count: 8,
      service: repository.service,
    });
  });
});
