import { randomBytes, randomUUID } from "node:crypto";
import { lstat, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type BackupLayout,
  type BackupReference,
  compressions,
  cutRanges,
  type Engine,
  InvalidObjectNameError,
  levelDefault,
  openEngine,
  openRepository,
  type RangeReport,
  type Repository,
  rescan,
} from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { times } from "../kit/long.ts";
import { randomFrom } from "../kit/random.ts";
import { type SwiftServer, startSwift } from "../kit/swift.ts";
import {
  backUp,
  freeContext,
  layoutFor,
  referenceTo,
  restoreToMemory,
  small,
  temporaryFolder,
  writeKeyFile,
} from "./backup-fixture.ts";

/** Printed with every failure; set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(3).readUIntLE(0, 3));
const never = new AbortController().signal;

let server: SwiftServer;
let engine: Engine;
beforeAll(async () => {
  server = await startSwift();
  // Less than two windows: whoever waits for memory while holding some would wait for ever.
  engine = openEngine({ threads: 2, memoryBytes: 100_000 });
});
afterAll(async () => {
  await engine[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

const drivers = ["posix", "s3", "swift"] as const;
type Driver = (typeof drivers)[number];

async function openNew(
  driver: Driver,
  folder: string,
  options: NonNullable<Parameters<typeof openRepository>[1]> = {},
): Promise<Repository> {
  const place = `b-${randomUUID()}`;
  const keys = { accessKey: server.user, secretKey: server.key };
  const auth = `auth=v1&auth_url=${server.url}/auth/v1.0&user=${server.user}&key=${server.key}`;
  const urls = {
    posix: `posix:${join(folder, place)}`,
    s3: `s3://${place}?endpoint=${server.url}`,
    swift: `swift:${place}?${auth}`,
  };
  const repository = await openRepository(urls[driver], { ...(driver === "s3" ? keys : {}), ...options });
  await repository.initialize();
  return repository;
}

const volumeBytes = 9 * small.objectBytes - 1234;

interface Chain {
  references: BackupReference[];
  images: Buffer[];
  volumeId: string;
}

/** A full backup of nine windows and four incrementals, newest first, that change the second, third and last window. */
async function makeChain(repository: Repository, folder: string, layout: Partial<BackupLayout> = {}): Promise<Chain> {
  const path = join(folder, "volume");
  const volumeId = randomUUID();
  const text = Buffer.alloc(130_000, "lines that repeat ");
  const image = Buffer.concat([text, randomBytes(150_000), Buffer.alloc(volumeBytes - 280_000)]);
  const made: Chain = { references: [], images: [], volumeId };
  for (const step of [0, 1, 2, 3, 4]) {
    if (step > 0) {
      randomBytes(5000).copy(image, small.objectBytes + step * 9000);
      image.fill(0, 2 * small.objectBytes + step * 3000, 2 * small.objectBytes + step * 3000 + 6000);
      randomBytes(100).copy(image, volumeBytes - 100);
    }
    await writeFile(path, image);
    const [parent] = made.references;
    made.references.unshift(
      await backUp(engine, { repository, path, layout: { volumeId, ...layout }, ...(parent ? { parent } : {}) }),
    );
    made.images.unshift(Buffer.from(image));
  }
  return made;
}

/** The layout of a squash of a chain, as a service or the command line plans it. */
async function planned(
  chain: readonly BackupReference[],
  repository: Repository,
  layout: Partial<BackupLayout> = {},
): Promise<BackupLayout> {
  const [former] = chain as [BackupReference];
  const shape = await engine.planSquash({ chain, objectBytes: 4 * small.objectBytes }, never);
  const { header, objectBytes, blockBytes } = shape;
  const at = new Date(Date.now() + 60_000);
  return layoutFor(repository, shape.volumeBytes, {
    backupId: former.backupId,
    volumeId: header.volumeId ?? "",
    container: former.container,
    prefix: repository.defaultPrefix({ volumeId: header.volumeId ?? "", backupId: former.backupId, at }),
    createdAt: header.createdAt ?? "",
    name: header.name,
    description: header.description,
    volumeMeta: header.volumeMeta,
    objectBytes,
    blockBytes,
    ...layout,
  });
}

async function removeAll(references: readonly BackupReference[]): Promise<void> {
  for (const { repository, container, prefix } of references) {
    await engine.removeBackup({ repository, container, prefix }, freeContext());
  }
}

const textOf = async ({ repository, container, prefix }: BackupReference, suffix: string): Promise<string> =>
  Buffer.concat(await Array.fromAsync(repository.get({ container, name: `${prefix}${suffix}` }))).toString();

test("a squash has the store copy all windows that it takes at once", async () => {
  await using folder = await temporaryFolder();
  await using opened = await openNew("posix", folder.path);
  const { references, images } = await makeChain(opened, folder.path);
  const taken = 6;
  const { promise: all, resolve: go } = Promise.withResolvers<void>();
  let waiting = 0;
  const copyIfAbsent: Repository["copyIfAbsent"] = async (...args) => {
    waiting += 1;
    if (waiting === taken) go();
    await all;
    return opened.copyIfAbsent(...args);
  };
  const repository = new Proxy(opened, {
    get: (target, name) => {
      const value: unknown = name === "copyIfAbsent" ? copyIfAbsent : Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  const chain = references.map((reference) => ({ ...reference, repository }));
  const layout = await planned(chain, repository);
  const { takenBytes } = await engine.squashWhole({ chain, repository, layout }, freeContext());
  expect(takenBytes).toBe(taken * small.objectBytes);
  expect((await restoreToMemory(engine, [referenceTo(opened, layout)])).equals(images[0] as Buffer)).toBe(true);
});

describe.each(drivers)("a squash in %s", (driver) => {
  test("makes a full backup of an incremental, on which the newer ones restore exactly when the rest is gone", async () => {
    await using folder = await temporaryFolder();
    await using repository = await openNew(driver, folder.path);
    const { references, images } = await makeChain(repository, folder.path);
    // The newest stays an incremental on what is squashed.
    const [newest, ...chain] = references as [BackupReference, ...BackupReference[]];
    const layout = await planned(chain, repository);
    expect(layout.objectBytes).toBe(small.objectBytes);
    const before = await textOf(chain[0] as BackupReference, "_sha256file");
    const squashed = await engine.squashWhole({ chain, repository, layout }, freeContext());
    const full = referenceTo(repository, layout);
    // Windows 2 and 3 and the last one have changed; all others were taken as they are.
    expect(squashed).toMatchObject({ objects: 9, takenBytes: 6 * small.objectBytes });
    expect(squashed.mergedBytes).toBe(volumeBytes - 6 * small.objectBytes);
    expect(await textOf(full, "_sha256file")).toBe(before);
    expect(JSON.parse(await textOf(full, "_metadata"))).toMatchObject({ backup_id: full.backupId, parent_id: null });
    expect((await restoreToMemory(engine, chain)).equals(images[1] as Buffer)).toBe(true);
    await removeAll(chain);
    expect((await restoreToMemory(engine, [full])).equals(images[1] as Buffer)).toBe(true);
    expect((await restoreToMemory(engine, [newest, full])).equals(images[0] as Buffer)).toBe(true);
    const { damaged } = await engine.verifyBackup({ chain: [newest, full], mode: "deep" }, freeContext());
    expect(damaged).toEqual([]);
  });

  test("is cut into ranges, of which each may be done twice, and by several at once", async () => {
    await using folder = await temporaryFolder();
    await using repository = await openNew(driver, folder.path);
    const { references: chain, images } = await makeChain(repository, folder.path, { compression: "none" });
    const layout = await planned(chain, repository, { compression: "none" });
    const ranges = cutRanges({ ...layout, rangeBytes: 2 * small.objectBytes, rangesMax: 100 });
    expect(ranges).toHaveLength(5);
    const operationId = randomUUID();
    const copy = async (index: number, attempt: number): Promise<RangeReport> => {
      const range = ranges[index] ?? { offset: 0, length: 0 };
      const staging = { operationId, name: `range-${index}-${attempt}` };
      return (await engine.squashRange({ chain, repository, layout, range, staging }, freeContext())).report;
    };
    const [once, twice] = await Promise.all(
      [1, 2].map((attempt) => Promise.all(ranges.map((_, index) => copy(index, attempt)))),
    );
    const reports = ranges.map((_, index) => (index % 2 === 0 ? once : twice)?.[index] as RangeReport);
    await engine.seal({ repository, layout, operationId, reports }, freeContext());
    await removeAll(chain);
    expect((await restoreToMemory(engine, [referenceTo(repository, layout)])).equals(images[0] as Buffer)).toBe(true);
  });

  test("of an encrypted chain has a data key of its own and is encrypted anew", async () => {
    await using folder = await temporaryFolder();
    const encryption = { keyFile: await writeKeyFile(folder.path, ["1"]) };
    await using repository = await openNew(driver, folder.path, { encryption });
    const { references: chain, images } = await makeChain(repository, folder.path, { encrypted: true });
    const layout = await planned(chain, repository, { encrypted: true });
    const [newest, bottom] = [chain[0], chain.at(-1)] as [BackupReference, BackupReference];
    await expect(
      repository.copyIfAbsent(
        { container: bottom.container, name: `${bottom.prefix}-00001` },
        { container: newest.container, name: `${layout.prefix}-00001` },
        freeContext(),
      ),
    ).rejects.toBeInstanceOf(InvalidObjectNameError);
    expect(await engine.squashWhole({ chain, repository, layout }, freeContext())).toMatchObject({ takenBytes: 0 });
    await removeAll(chain);
    const full = referenceTo(repository, layout);
    expect(await repository.encryption?.isEncrypted(full)).toBe(true);
    expect((await restoreToMemory(engine, [full])).equals(images[0] as Buffer)).toBe(true);
  });

  test("is seen by a rescan as the one backup of its id, also while the former objects are there", async () => {
    await using folder = await temporaryFolder();
    await using repository = await openNew(driver, folder.path);
    const { references, volumeId } = await makeChain(repository, folder.path);
    const [newest, ...chain] = references as [BackupReference, ...BackupReference[]];
    const layout = await planned(chain, repository);
    // Other tests have their containers on the same server.
    const seen = async () =>
      (await rescan(repository, never))
        .filter(({ backup }) => backup.volumeId === volumeId)
        .map(({ backup, chain: ids, problem }) => [backup.reference.prefix, ids, problem]);
    const bottomUp = references.toReversed();
    const idsOf = (some: readonly BackupReference[]) => some.map(({ backupId }) => backupId);
    await engine.beginBackup({ repository, layout }, freeContext());
    const range = { offset: 0, length: layout.volumeBytes };
    const staging = { operationId: randomUUID(), name: "all" };
    const { report } = await engine.squashRange({ chain, repository, layout, range, staging }, freeContext());
    const former = bottomUp.map(({ prefix }, index) => [prefix, idsOf(references.slice(4 - index)), null]);
    // Without its metadata it does not exist yet.
    expect(await seen()).toEqual(former);
    await engine.seal({ repository, layout, ...staging, reports: [report] }, freeContext());
    const full = referenceTo(repository, layout);
    const now = [
      ...former.slice(0, 3),
      [full.prefix, [full.backupId], null],
      [newest.prefix, [newest.backupId, full.backupId], null],
    ];
    expect((await seen()).sort()).toEqual(now.sort());
  });
});

test("posix: objects that are taken are further names of the same files, and a removed one takes no other along", async () => {
  await using folder = await temporaryFolder();
  await using repository = await openNew("posix", folder.path);
  const { references: chain } = await makeChain(repository, folder.path);
  const layout = await planned(chain, repository);
  await engine.squashWhole({ chain, repository, layout }, freeContext());
  const key = { container: layout.container, name: `${layout.prefix}-00001` };
  const path = (await repository.filePath?.(key)) ?? "";
  expect((await lstat(path)).nlink).toBe(2);
  const bytes = await readFile(path);
  await removeAll(chain);
  expect((await lstat(path)).nlink).toBe(1);
  expect(await readFile(path)).toEqual(bytes);
});

test("a damaged object that is merged fails the squash and names the backup that it belongs to", async () => {
  await using folder = await temporaryFolder();
  await using repository = await openNew("posix", folder.path);
  const { references: chain } = await makeChain(repository, folder.path);
  const full = chain.at(-1) as BackupReference;
  const second = (await repository.filePath?.({ container: full.container, name: `${full.prefix}-00002` })) ?? "";
  const stored = await readFile(second);
  stored[9] = (stored[9] ?? 0) ^ 1;
  await writeFile(second, stored);
  const layout = await planned(chain, repository);
  const squash = () => engine.squashWhole({ chain, repository, layout }, freeContext());
  await expect(squash()).rejects.toMatchObject({ code: "damaged_object", backupId: full.backupId });
  // And one that would be taken, if its size shows it.
  const first = (await repository.filePath?.({ container: full.container, name: `${full.prefix}-00004` })) ?? "";
  stored[9] = (stored[9] ?? 0) ^ 1;
  await writeFile(second, stored);
  await truncate(first, small.objectBytes + 1);
  await expect(squash()).rejects.toMatchObject({ code: "damaged_object", object: `${full.prefix}-00004` });
});

test("a full backup has nothing to squash", async () => {
  await using folder = await temporaryFolder();
  await using repository = await openNew("posix", folder.path);
  const { references } = await makeChain(repository, folder.path);
  const planning = engine.planSquash({ chain: references.slice(-1), objectBytes: small.objectBytes }, never);
  await expect(planning).rejects.toMatchObject({ code: "invalid_backup" });
});

const seeds = Array.from({ length: times({ usual: 3, long: 150 }) }, (_, n) => seed + n);

test.each(seeds)("random chains of any windows and codecs are squashed exactly (seed %i)", async (each) => {
  const random = randomFrom(each);
  await using folder = await temporaryFolder();
  await using repository = await openNew("posix", folder.path);
  const path = join(folder.path, "volume");
  let image = Buffer.alloc(random(700_000));
  const volumeId = randomUUID();
  const chain: BackupReference[] = [];
  const images: Buffer[] = [];
  const members = 2 + random(5);
  for (let member = 0; member < members; member += 1) {
    if (member > 0 && random(4) === 0) image = image.subarray(0, Math.max(0, image.length - random(90_000)));
    for (let edits = random(5); edits > 0 && image.length > 0; edits -= 1) {
      const start = random(image.length);
      const part = image.subarray(start, start + 1 + random(150_000));
      if (random(3) === 0) part.fill(0);
      else if (random(2) === 0) part.fill(`text ${member} `);
      else randomBytes(part.length).copy(part);
    }
    await writeFile(path, image);
    const compression = compressions[random(compressions.length)] as BackupLayout["compression"];
    const objectBytes = small.blockBytes * (1 + random(20));
    const layout = { volumeId, compression, level: levelDefault(compression), objectBytes };
    const [parent] = chain;
    chain.unshift(await backUp(engine, { repository, path, layout, ...(parent ? { parent } : {}) }));
    images.unshift(Buffer.from(image));
  }
  const from = random(members - 1);
  const merged = chain.slice(from);
  const layout = await planned(merged, repository);
  await engine.squashWhole({ chain: merged, repository, layout }, freeContext());
  await removeAll(merged);
  const now = [...chain.slice(0, from), referenceTo(repository, layout)];
  for (const [index] of now.entries()) {
    expect((await restoreToMemory(engine, now.slice(index))).equals(images[index] as Buffer), `member ${index}`).toBe(
      true,
    );
  }
});
