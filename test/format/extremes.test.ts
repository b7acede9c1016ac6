import { createHash, randomBytes } from "node:crypto";
import { open, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type BackupLayout,
  type BackupReference,
  cutRanges,
  type Engine,
  openEngine,
  openFileSource,
  openRepository,
  type RangeReport,
  type Repository,
  type RescannedBackup,
  rescan,
} from "@tephra/engine";
import { afterAll, beforeAll, expect, test } from "vitest";
import { isLong } from "../kit/long.ts";
import {
  backUp,
  freeContext,
  layoutFor,
  referenceTo,
  restoreToMemory,
  small,
  temporaryFolder,
} from "./backup-fixture.ts";

let engine: Engine;
beforeAll(() => {
  engine = openEngine({ threads: 2 });
});
afterAll(() => engine[Symbol.asyncDispose]());

async function setup(folder: string) {
  const root = join(folder, "repository");
  const repository = await openRepository(`posix:${root}`);
  await repository.initialize();
  return { root, repository, path: join(folder, "volume") };
}

const { blockBytes, objectBytes } = small;

test.each([
  0,
  1,
  511,
  blockBytes - 1,
  blockBytes,
  blockBytes + 1,
  objectBytes - 1,
  objectBytes,
  objectBytes + 1,
  200_001,
])("a volume of %i bytes and its incrementals, one of them empty, restore exactly and verify", async (bytes) => {
  await using folder = await temporaryFolder();
  const { repository, path } = await setup(folder.path);
  const image = randomBytes(bytes);
  await writeFile(path, image);
  const full = await backUp(engine, { repository, path });
  const empty = await backUp(engine, { repository, path, parent: full });
  if (bytes > 0) image[bytes - 1] = (image[bytes - 1] as number) ^ 1;
  await writeFile(path, image);
  const last = await backUp(engine, { repository, path, parent: empty });
  const chain = [last, empty, full];
  expect((await restoreToMemory(engine, chain)).equals(image)).toBe(true);
  const verified = await engine.verifyBackup({ chain, mode: "deep" }, freeContext());
  expect(verified).toMatchObject({ blocks: Math.ceil(bytes / blockBytes), damaged: [] });
  const chunks: Uint8Array[] = [];
  const sink = async (chunk: Uint8Array): Promise<void> => void chunks.push(chunk);
  await engine.restoreStream({ chain, sink }, freeContext());
  expect(Buffer.concat(chunks).equals(image)).toBe(true);
});

test("an incremental without changes has an empty list of objects, as a Cinder writes it", async () => {
  await using folder = await temporaryFolder();
  const { root, repository, path } = await setup(folder.path);
  await writeFile(path, randomBytes(100_000));
  const full = await backUp(engine, { repository, path });
  const { container, prefix } = await backUp(engine, { repository, path, parent: full });
  expect(await readFile(join(root, container, `${prefix}_metadata`), "utf8")).toContain('\n  "objects": [],\n');
});

test("a chain of 50 restores exactly at its end and in its middle", async () => {
  await using folder = await temporaryFolder();
  const { repository, path } = await setup(folder.path);
  const image = randomBytes(3 * objectBytes + 55);
  const chain: BackupReference[] = [];
  let middle = Buffer.alloc(0);
  for (let index = 0; index < 50; index++) {
    randomBytes(3000).copy(image, (index * 7919) % (image.length - 3000));
    await writeFile(path, image);
    const parent = chain[0];
    chain.unshift(await backUp(engine, { repository, path, ...(parent ? { parent } : {}) }));
    if (index === 24) middle = Buffer.from(image);
  }
  expect((await restoreToMemory(engine, chain)).equals(image)).toBe(true);
  expect((await restoreToMemory(engine, chain.slice(-25))).equals(middle)).toBe(true);
  expect((await engine.verifyBackup({ chain, mode: "deep" }, freeContext())).damaged).toEqual([]);
});

test("objects with numbers of six digits lie in order behind those of five", async () => {
  await using folder = await temporaryFolder();
  const { root, repository, path } = await setup(folder.path);
  // 1024 numbers per window: the 99th window begins behind number 100,352.
  const sizes = { objectBytes: 1024 * 1024, blockBytes: 512 };
  const volumeBytes = 100 * sizes.objectBytes;
  await writeFile(path, "");
  await truncate(path, volumeBytes);
  const full = await backUp(engine, { repository, path, layout: sizes });
  const file = await open(path, "r+");
  const places = [40, 97, 98, 99].map((window) => window * sizes.objectBytes + 5000);
  for (const place of places) await file.write(randomBytes(600), 0, 600, place);
  await file.close();
  await using source = await openFileSource(path);
  const layout = layoutFor(repository, volumeBytes, { ...sizes, parentId: full.backupId });
  const reports: RangeReport[] = [];
  for (const [index, range] of cutRanges({ volumeBytes, ...sizes, rangeBytes: 2 ** 21, rangesMax: 999 }).entries()) {
    const staging = { operationId: "numbers", name: `range-${index}` };
    reports.push(await engine.copyRange({ source, repository, layout, range, parent: full, staging }, freeContext()));
  }
  await engine.seal({ repository, layout, operationId: "numbers", reports }, freeContext());
  const { objects } = JSON.parse(await readFile(join(root, layout.container, `${layout.prefix}_metadata`), "utf8"));
  const numbers = objects.map((entry: object) => Object.keys(entry)[0]?.slice(layout.prefix.length));
  expect(numbers).toEqual(
    [40 * 1024 + 1, 96 * 1024 + 1, 98 * 1024 + 1, 98 * 1024 + 2].map((number) => `-${String(number).padStart(5, "0")}`),
  );
  const chain = [referenceTo(repository, layout), full];
  expect((await restoreToMemory(engine, chain)).equals(await readFile(path))).toBe(true);
});

/** Sizes that keep the documents of 15 TiB small. */
const huge = { objectBytes: 256 * 1024 * 1024, blockBytes: 64 * 1024 * 1024, level: 1 };
const hugeBytes = 15 * 2 ** 40 + 777;
const edges = [2 ** 31, 2 ** 32, 2 ** 40, 2 ** 43, hugeBytes - 5];
const mark = (edge: number): string => `<${edge}>`.slice(0, 10);

const zeroHash = (length: number): string => createHash("sha256").update(new Uint8Array(length)).digest("hex");

/** The lines of the list of hashes of the volume when it is all zero. */
function zeroLines(): string[] {
  const lines = new Array<string>(Math.floor(hugeBytes / huge.blockBytes)).fill(`    "${zeroHash(huge.blockBytes)}"`);
  return [...lines, `    "${zeroHash(hugeBytes % huge.blockBytes)}"`];
}

/** Writes the two documents of a backup by hand. */
async function writeDocuments(
  repository: Repository,
  layout: BackupLayout,
  documents: { lines: readonly string[]; entries: string },
): Promise<BackupReference> {
  const { container, prefix, backupId, blockBytes, parentId } = layout;
  const put = (suffix: string, text: string): Promise<unknown> =>
    repository.putIfAbsent({ container, name: prefix + suffix }, Buffer.from(text), freeContext());
  await repository.ensureContainer(container);
  const head = `{\n  "chunk_size": ${blockBytes},\n  "sha256s": [\n`;
  await put("_sha256file", `${head}${documents.lines.join(",\n")}\n  ],\n  "version": "1.0.0"\n}`);
  const ids = `"backup_id": "${backupId}", "parent_id": ${JSON.stringify(parentId)}, "version": "1.0.0"`;
  await put("_metadata", `{"objects": [${documents.entries}], ${ids}}`);
  return referenceTo(repository, layout);
}

/** A full backup of zeros of which only the documents exist: nothing of it is read where an incremental lies above. */
function writeZeroParent(repository: Repository): Promise<BackupReference> {
  const layout = layoutFor(repository, hugeBytes, huge);
  const objectBytes = 64 * huge.objectBytes;
  const entries = Array.from({ length: Math.ceil(hugeBytes / objectBytes) }, (_, index) => {
    const offset = index * objectBytes;
    const length = Math.min(objectBytes, hugeBytes - offset);
    const name = `${layout.prefix}-${String(index + 1).padStart(5, "0")}`;
    return JSON.stringify({ [name]: { compression: "zlib", length, offset } });
  });
  return writeDocuments(repository, layout, { lines: zeroLines(), entries: entries.join(",") });
}

/** A sparse file with a mark across each edge. tmpfs takes this length; many disks' file systems end below. */
async function makeHuge() {
  const shared = (await stat("/dev/shm").catch(() => null)) === null ? undefined : "/dev/shm";
  const folder = await temporaryFolder(shared);
  const { root, repository, path } = await setup(folder.path);
  await writeFile(path, "");
  await truncate(path, hugeBytes);
  const file = await open(path, "r+");
  for (const edge of edges) await file.write(mark(edge), edge - 5);
  await file.close();
  await truncate(path, hugeBytes);
  return { folder, root, repository, path, parent: await writeZeroParent(repository) };
}

async function expectMarks(chain: readonly BackupReference[]): Promise<void> {
  for (const edge of edges) {
    const chunks: Uint8Array[] = [];
    const sink = async (chunk: Uint8Array): Promise<void> => void chunks.push(chunk);
    await engine.restoreStream({ chain, sink, extent: { offset: edge - 5, length: 10 } }, freeContext());
    expect(Buffer.concat(chunks).toString()).toBe(mark(edge));
  }
}

test("ranges of a volume of 15 TiB are exact around 2^31, 2^32, 2^40, 2^43 and at its end", async () => {
  const { folder, root, repository, path, parent } = await makeHuge();
  await using _ = folder;
  await using source = await openFileSource(path);
  const layout = layoutFor(repository, hugeBytes, { ...huge, parentId: parent.backupId });
  const lines = zeroLines();
  const entries: string[] = [];
  for (const [index, edge] of edges.entries()) {
    const offset = Math.floor((edge - 5) / huge.objectBytes) * huge.objectBytes;
    const range = { offset, length: Math.min(2 * huge.objectBytes, hugeBytes - offset) };
    const staging = { operationId: "huge", name: `range-${index}` };
    await engine.copyRange({ source, repository, layout, range, parent, staging }, freeContext());
    const staged = (suffix: string): Promise<string> =>
      readFile(join(root, ".tephra/huge", `range-${index}.${suffix}`), "utf8");
    const hashes = (await staged("hashes")).split(",\n");
    lines.splice(offset / huge.blockBytes, hashes.length, ...hashes);
    entries.push(await staged("entries"));
  }
  await expectMarks([await writeDocuments(repository, layout, { lines, entries: entries.join(",") }), parent]);
}, 240_000);

/** Two minutes: set TEPHRA_TEST_LONG to run it. */
test.runIf(isLong)(
  "a whole volume of 15 TiB is backed up, found and restored",
  async () => {
    const { folder, repository, path, parent } = await makeHuge();
    await using _ = folder;
    const newest = await backUp(engine, { repository, path, parent, layout: huge });
    await expectMarks([newest, parent]);
    const { backup } = (await rescan(repository, new AbortController().signal)).at(-1) as RescannedBackup;
    expect(backup).toMatchObject({
      reference: { prefix: newest.prefix },
      volumeBytes: hugeBytes,
      sizeGib: 15361,
      problem: null,
    });
  },
  600_000,
);
