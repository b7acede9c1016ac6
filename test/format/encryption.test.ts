import { randomBytes, randomUUID } from "node:crypto";
import { cp, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type BackupReference,
  cutRanges,
  DamagedObjectError,
  describeBackup,
  EncryptionKeyMissingError,
  EncryptionKeyWrongError,
  type Engine,
  findBackups,
  InvalidBackupError,
  ObjectConflictError,
  openEngine,
  openFileSource,
  openRepository,
  type RangeReport,
  type Repository,
  recordOf,
  rescan,
  rewrap,
  stagingContainer,
} from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type SwiftServer, startSwift } from "../kit/swift.ts";
import {
  backUp,
  freeContext,
  layoutFor,
  MemoryTarget,
  referenceTo,
  restoreToMemory,
  small,
  temporaryFolder,
  writeKeyFile,
} from "./backup-fixture.ts";

let engine: Engine;
beforeAll(() => {
  engine = openEngine({ threads: 2 });
});
afterAll(() => engine[Symbol.asyncDispose]());

const encrypted = { compression: "none", encrypted: true } as const;
const { signal } = freeContext();

/** A full backup and two incrementals, newest first, of text, zeros and noise, each made as `layouts` says. */
async function makeChain(
  folder: string,
  repositories: readonly Repository[],
  layouts: readonly { compression: "none" | "zlib"; encrypted: boolean }[] = [encrypted, encrypted, encrypted],
): Promise<{ chain: BackupReference[]; images: Buffer[] }> {
  const path = join(folder, "volume");
  const volume = Buffer.concat([Buffer.alloc(90_123, "text "), randomBytes(100_000), Buffer.alloc(140_000)]);
  const chain: BackupReference[] = [];
  const images: Buffer[] = [];
  for (const [step, layout] of layouts.entries()) {
    Buffer.alloc(9000, `secret ${step} `).copy(volume, 20_000 + step * 110_000);
    await writeFile(path, volume);
    const [parent] = chain;
    const repository = repositories[step] ?? (repositories[0] as Repository);
    chain.unshift(await backUp(engine, { repository, path, layout, ...(parent ? { parent } : {}) }));
    images.unshift(Buffer.from(volume));
  }
  return { chain, images };
}

async function storedBytes(repository: Repository, container: string): Promise<Buffer> {
  const { stored } = repository.encryption as NonNullable<Repository["encryption"]>;
  const objects: Buffer[] = [];
  for await (const { name } of stored.list(container, "")) {
    objects.push(...(await Array.fromAsync(stored.get({ container, name }), (chunk) => Buffer.from(chunk))));
  }
  return Buffer.concat(objects);
}

const namesIn = async (repository: Repository, container: string): Promise<string[]> =>
  (await Array.fromAsync(repository.list(container, ""))).map(({ name }) => name).sort();

describe.each(["posix", "s3", "swift"] as const)("encrypted backups in %s", (driver) => {
  let server: SwiftServer | null = null;
  beforeAll(async () => {
    if (driver !== "posix") server = await startSwift();
  });
  afterAll(() => server?.[Symbol.asyncDispose]());

  /** A new place, and what opens it with master keys of these versions. */
  function newPlace(folder: string) {
    const bucket = `b-${randomUUID()}`;
    const { url, user, key } = server ?? { url: "", user: "", key: "" };
    const urls = {
      posix: `posix:${join(folder, bucket)}`,
      s3: `s3://${bucket}?endpoint=${url}&access_key=${user}&secret_key=${key}&list_page=3`,
      swift: `swift:${bucket}?auth=v1&auth_url=${url}/auth/v1.0&user=${user}&key=${key}&list_page=3`,
    };
    return async (...versions: string[]): Promise<Repository> => {
      const encryption = versions.length === 0 ? undefined : { keyFile: await writeKeyFile(folder, versions) };
      const repository = await openRepository(urls[driver], { encryption });
      await repository.initialize();
      return repository;
    };
  }

  test("a chain restores exactly at every link, is whole, tells nothing, and goes without a trace and without a key", async () => {
    await using folder = await temporaryFolder();
    const open = newPlace(folder.path);
    await using repository = await open("1");
    const { chain, images } = await makeChain(folder.path, [repository]);
    for (const [index, image] of images.entries()) {
      expect((await restoreToMemory(engine, chain.slice(index))).equals(image)).toBe(true);
    }
    for (const mode of ["quick", "deep"] as const) {
      expect((await engine.verifyBackup({ chain, mode }, freeContext())).damaged).toEqual([]);
    }
    for (const reference of chain) {
      expect(await describeBackup(reference, signal)).toMatchObject({ problem: null, blockBytes: 4096 });
      const stored = await storedBytes(repository, reference.container);
      // Each long enough not to be found by chance in megabytes of noise.
      for (const told of ["text text", "secret ", "n\\u00e4me", '"md5"', '"sha256s"', "tephra_bytes"]) {
        expect(stored.includes(told), told).toBe(false);
      }
    }
    await using blind = await open();
    for (const { container, prefix } of chain) {
      await engine.removeBackup({ repository: blind, container, prefix }, freeContext());
      expect(await Array.fromAsync(blind.list(container, prefix))).toEqual([]);
    }
  });

  test("ranges of several workers, copied twice, give one backup, and what they stage is encrypted", async () => {
    await using folder = await temporaryFolder();
    const open = newPlace(folder.path);
    const workers = [await open("1"), await open("0", "1")];
    const [repository] = workers as [Repository, Repository];
    const volumeBytes = 4 * small.objectBytes + 777;
    const path = join(folder.path, "volume");
    const image = randomBytes(volumeBytes);
    await writeFile(path, image);
    const layout = layoutFor(repository, volumeBytes, encrypted);
    await engine.beginBackup({ repository, layout }, freeContext());
    await using source = await openFileSource(path);
    const ranges = cutRanges({ volumeBytes, objectBytes: small.objectBytes, rangeBytes: 140_000, rangesMax: 100 });
    const operationId = "backup-1";
    const reports: RangeReport[] = [];
    for (const [claim, worker] of workers.entries()) {
      for (const [index, range] of ranges.entries()) {
        const staging = { operationId, name: `task${index}-${claim}` };
        const input = { source, repository: worker, layout, range, parent: null, staging };
        reports[index] = await engine.copyRange(input, freeContext());
        if (claim > 0) expect(reports[index]?.bytesAdopted).toBe(reports[index]?.bytesStored);
      }
    }
    const staged = await storedBytes(repository, stagingContainer(operationId));
    expect(staged.length).toBeGreaterThan(0);
    for (const told of ['"md5"', '    "']) expect(staged.includes(told)).toBe(false);
    const seal = () => engine.seal({ repository, layout, operationId, reports }, freeContext());
    expect(await seal()).toEqual(await seal());
    const chain = [referenceTo(repository, layout)];
    const staging = { operationId: "restore-1", name: "plan" };
    const plan = await engine.planRestore({ chain, rangeBytes: 140_000, rangesMax: 10, staging }, freeContext());
    expect((await storedBytes(repository, stagingContainer("restore-1"))).includes("none")).toBe(false);
    const target = new MemoryTarget(volumeBytes, { isNew: true });
    for (const range of plan.ranges) {
      await engine.restoreRange({ chain, range, staging, target }, freeContext());
    }
    expect(target.bytes.equals(image)).toBe(true);
    for (const operation of [operationId, "restore-1"]) {
      await engine.removeStaging(repository, operation);
      expect(await namesIn(repository, stagingContainer(operation))).toEqual([]);
    }
    await engine.removeBackup({ repository, container: layout.container, prefix: layout.prefix }, freeContext());
    for (const worker of workers) await worker[Symbol.asyncDispose]();
  });

  test("after a rewrap the new master key alone opens everything, and no other object was touched", async () => {
    await using folder = await temporaryFolder();
    const open = newPlace(folder.path);
    await using old = await open("1");
    const { chain, images } = await makeChain(folder.path, [old]);
    const [{ container }] = chain as [BackupReference];
    const dataBefore = await namesIn(old, container);
    await using both = await open("1", "2");
    const later = chain.map((reference) => ({ ...reference, repository: both }));
    expect((await restoreToMemory(engine, later)).equals(images[0] as Buffer)).toBe(true);
    const first = await rewrap({ repository: both, backupId: chain[0]?.backupId as string }, freeContext());
    expect(first).toEqual({ rewrapped: [chain[0]?.backupId], current: 0, failed: [] });
    // Who has read the old key object goes on; who looks now finds the new one.
    expect((await restoreToMemory(engine, chain)).equals(images[0] as Buffer)).toBe(true);
    const rest = await rewrap({ repository: both, backupId: null }, freeContext());
    expect(rest).toMatchObject({ current: 1, failed: [] });
    expect(rest.rewrapped.sort()).toEqual(
      chain
        .slice(1)
        .map(({ backupId }) => backupId)
        .sort(),
    );
    expect(await rewrap({ repository: both, backupId: null }, freeContext())).toMatchObject({
      rewrapped: [],
      current: 3,
    });
    const renamed = dataBefore.map((name) => name.replace(/_key_1$/, "_key_2")).sort();
    expect(await namesIn(both, container)).toEqual(renamed);
    await using young = await open("2");
    const references = chain.map((reference) => ({ ...reference, repository: young }));
    expect((await restoreToMemory(engine, references)).equals(images[0] as Buffer)).toBe(true);
    await using retired = await open("1");
    const error = await describeBackup({ ...(chain[0] as BackupReference), repository: retired }, signal);
    expect(error.problem).toContain("is encrypted with master key 2");
  });
});

describe("an encrypted backup", () => {
  async function newChain(folder: string, versions: readonly string[] = ["1"]) {
    const root = join(folder, "repository");
    const open = async (...given: string[]): Promise<Repository> => {
      const encryption = given.length === 0 ? undefined : { keyFile: await writeKeyFile(folder, given) };
      return openRepository(`posix:${root}`, { encryption });
    };
    const repository = await open(...versions);
    await repository.initialize();
    const { chain, images } = await makeChain(folder, [repository]);
    const pathOf = (index: number, ending: string): string => {
      const { container, prefix } = chain[index] as BackupReference;
      return join(root, container, prefix + ending);
    };
    const as = (other: Repository): BackupReference[] => chain.map((each) => ({ ...each, repository: other }));
    return { root, open, repository, chain, images, pathOf, as };
  }

  test("is refused by a Cinder: its metadata is JSON of a version that no driver knows", async () => {
    await using folder = await temporaryFolder();
    const { chain, pathOf } = await newChain(folder.path);
    const document = JSON.parse(await readFile(pathOf(0, "_metadata"), "utf8"));
    // DRIVER_VERSION_MAPPING of cinder/backup/chunkeddriver.py has this one alone.
    expect(["1.0.0"]).not.toContain(document.version);
    expect(document).toEqual({
      backup_id: chain[0]?.backupId,
      created_at: "2026-11-20 17:21:41+00:00",
      encrypted: [expect.stringMatching(/^[A-Za-z0-9+/]+=*$/)],
      object_count: 1,
      parent_id: chain[1]?.backupId,
      version: "tephra-encrypted-1",
      volume_bytes: 330_123,
      volume_id: expect.stringMatching(/^[0-9a-f-]{36}$/),
    });
  });

  test("without a key is listed and exported, and not read", async () => {
    await using folder = await temporaryFolder();
    const { open, chain, as, images, repository } = await newChain(folder.path);
    for (const blind of [await open(), await open("2")]) {
      const found = await rescan(blind, signal);
      expect(found.map(({ backup }) => backup.reference.backupId)).toEqual(
        chain.map(({ backupId }) => backupId).reverse(),
      );
      for (const [index, rescanned] of found.entries()) {
        const { backup } = rescanned;
        expect(backup).toMatchObject({ volumeBytes: 330_123, parentId: chain[3 - index]?.backupId ?? null });
        expect(backup.problem).toMatch(/is encrypted/);
        expect(recordOf(blind, rescanned)?.backup_url).toMatch(/^[A-Za-z0-9+/]+=*$/);
      }
      const references = as(blind);
      const refused: Promise<unknown>[] = [
        restoreToMemory(engine, references),
        engine.verifyBackup({ chain: references, mode: "deep" }, freeContext()),
        engine.verifyBackup({ chain: references, mode: "quick" }, freeContext()),
        engine.volumeBytesOf(references[0] as BackupReference, signal),
        backUp(engine, {
          repository: blind,
          path: join(folder.path, "volume"),
          parent: references[0] as BackupReference,
        }),
      ];
      for (const outcome of await Promise.allSettled(refused)) {
        expect(outcome).toMatchObject({ reason: expect.any(EncryptionKeyMissingError) });
      }
    }
    expect((await restoreToMemory(engine, as(repository))).equals(images[0] as Buffer)).toBe(true);
  });

  test("under another key of the same version, or with another's key object, is refused as such", async () => {
    await using folder = await temporaryFolder();
    const { root, as, pathOf, repository } = await newChain(folder.path);
    const keyFile = join(folder.path, "other");
    await writeFile(keyFile, `1:${randomBytes(32).toString("base64")}\n`, { mode: 0o600 });
    const other = await openRepository(`posix:${root}`, { encryption: { keyFile } });
    await expect(restoreToMemory(engine, as(other))).rejects.toBeInstanceOf(EncryptionKeyWrongError);
    await rename(pathOf(0, "_key_1"), pathOf(0, "_key_1.aside"));
    await cp(pathOf(1, "_key_1"), pathOf(0, "_key_1"));
    const again = await openRepository(`posix:${root}`, {
      encryption: { keyFile: await writeKeyFile(folder.path, ["1"]) },
    });
    await expect(restoreToMemory(engine, as(again))).rejects.toBeInstanceOf(EncryptionKeyWrongError);
    await rm(pathOf(0, "_key_1"));
    await expect(restoreToMemory(engine, as(again))).rejects.toBeInstanceOf(EncryptionKeyMissingError);
    await rename(pathOf(0, "_key_1.aside"), pathOf(0, "_key_1"));
    await restoreToMemory(engine, as(repository));
  });

  test("takes no object of another backup, and none that is not encrypted", async () => {
    await using folder = await temporaryFolder();
    const { chain, pathOf, images } = await newChain(folder.path);
    const { chain: others, pathOf: otherPath } = await newChain(folder.path);
    for (const ending of ["-00001", "_sha256file", "_metadata"]) {
      const kept = await readFile(pathOf(2, ending));
      const plain = await Array.fromAsync(
        (chain[2] as BackupReference).repository.get({
          container: chain[2]?.container as string,
          name: chain[2]?.prefix + ending,
        }),
      );
      for (const foreign of [await readFile(otherPath(2, ending)), Buffer.concat(plain)]) {
        await writeFile(pathOf(2, ending), foreign);
        await expect(restoreToMemory(engine, chain.slice(2)), ending).rejects.toBeInstanceOf(DamagedObjectError);
      }
      await writeFile(pathOf(2, ending), kept);
    }
    expect((await restoreToMemory(engine, chain)).equals(images[0] as Buffer)).toBe(true);
    expect(others).toHaveLength(3);
  });

  test("is begun only with a key, and goes on only with its own", async () => {
    await using folder = await temporaryFolder();
    const { open, repository } = await newChain(folder.path);
    const path = join(folder.path, "volume");
    const blind = await open();
    const layout = layoutFor(blind, 330_123, encrypted);
    await using source = await openFileSource(path);
    const input = { source, layout, parent: null };
    await expect(engine.backupWhole({ ...input, repository: blind }, freeContext())).rejects.toBeInstanceOf(
      EncryptionKeyMissingError,
    );
    const staging = { operationId: "one", name: "a" };
    const copy = (to: Repository) =>
      engine.copyRange({ ...input, repository: to, range: { offset: 0, length: 330_123 }, staging }, freeContext());
    await expect(copy(repository)).rejects.toBeInstanceOf(InvalidBackupError);
    await engine.beginBackup({ repository, layout }, freeContext());
    await expect(copy(blind)).rejects.toBeInstanceOf(EncryptionKeyMissingError);
    await expect(copy(await open("2"))).rejects.toBeInstanceOf(EncryptionKeyMissingError);
    expect(await namesIn(blind, layout.container)).toEqual([`${layout.prefix}_key_1`]);
    await copy(repository);
  });

  test("a name that is taken by other contents is a conflict, and the first ones stay", async () => {
    await using folder = await temporaryFolder();
    const { chain, repository, images } = await newChain(folder.path);
    const { container, prefix } = chain[2] as BackupReference;
    const key = { container, name: `${prefix}-00002` };
    const text = Buffer.concat(await Array.fromAsync(repository.get(key)));
    expect(await repository.putIfAbsent(key, text, freeContext())).toBe("exists");
    const changed = Buffer.from(text);
    changed[5] = (changed[5] ?? 0) ^ 1;
    await expect(repository.putIfAbsent(key, changed, freeContext())).rejects.toBeInstanceOf(ObjectConflictError);
    expect((await restoreToMemory(engine, chain)).equals(images[0] as Buffer)).toBe(true);
  });

  test("stands in one chain with plain ones, in any order", async () => {
    await using folder = await temporaryFolder();
    const keyFile = await writeKeyFile(folder.path, ["1"]);
    const repository = await openRepository(`posix:${join(folder.path, "r")}`, { encryption: { keyFile } });
    await repository.initialize();
    const plain = { compression: "zlib", encrypted: false } as const;
    for (const layouts of [
      [plain, encrypted, encrypted],
      [encrypted, plain, encrypted],
      [encrypted, encrypted, plain],
    ]) {
      const { chain, images } = await makeChain(folder.path, [repository], layouts);
      for (const [index, image] of images.entries()) {
        expect((await restoreToMemory(engine, chain.slice(index))).equals(image)).toBe(true);
      }
      expect((await engine.verifyBackup({ chain, mode: "quick" }, freeContext())).damaged).toEqual([]);
      const staging = { operationId: randomUUID(), name: "plan" };
      await engine.planRestore({ chain, rangeBytes: 140_000, rangesMax: 10, staging }, freeContext());
    }
  });

  test("a rewrap that dies at any step leaves every backup readable, and is ended by another", async () => {
    await using folder = await temporaryFolder();
    const { root, open, images, as } = await newChain(folder.path);
    const whole = join(folder.path, "whole");
    await cp(root, whole, { recursive: true });
    class Died extends Error {}
    let steps = 0;
    for (let last = false; !last; steps++) {
      await rm(root, { recursive: true });
      await cp(whole, root, { recursive: true });
      let left = steps;
      const fence = (): void => {
        left -= 1;
        if (left < 0) throw new Died();
      };
      const begun = rewrap({ repository: await open("1", "2"), backupId: null }, freeContext({ fence }));
      last = await begun.then(
        () => true,
        (error) => {
          if (!(error instanceof Died)) throw error;
          return false;
        },
      );
      expect((await restoreToMemory(engine, as(await open("1", "2")))).equals(images[0] as Buffer)).toBe(true);
      await rewrap({ repository: await open("1", "2"), backupId: null }, freeContext());
      expect((await restoreToMemory(engine, as(await open("2")))).equals(images[0] as Buffer)).toBe(true);
      const names = await readdir(root, { recursive: true });
      expect(names.filter((name) => /_key_/.test(name)).map((name) => name.slice(-6))).toEqual(Array(3).fill("_key_2"));
    }
    // Three backups: writing, publishing and removing, each.
    expect(steps).toBeGreaterThanOrEqual(9);
  });

  test("a rewrap names what it cannot open, and does the rest", async () => {
    await using folder = await temporaryFolder();
    const { open, chain, pathOf } = await newChain(folder.path);
    await writeFile(pathOf(1, "_key_1"), "{}");
    const result = await rewrap({ repository: await open("1", "2"), backupId: null }, freeContext());
    expect(result.failed).toEqual([{ backupId: chain[1]?.backupId, reason: expect.stringContaining("does not open") }]);
    expect(result.rewrapped).toHaveLength(2);
    await expect(rewrap({ repository: await open(), backupId: null }, freeContext())).rejects.toBeInstanceOf(
      EncryptionKeyMissingError,
    );
  });

  test("new master keys are taken up without opening the repository again", async () => {
    await using folder = await temporaryFolder();
    const { root, images } = await newChain(folder.path);
    const keyFile = await writeKeyFile(folder.path, ["1"]);
    const repository = await openRepository(`posix:${root}`, { encryption: { keyFile } });
    expect(await repository.encryption?.keyVersions()).toEqual(["1"]);
    await writeFile(keyFile, await readFile(await writeKeyFile(folder.path, ["1", "2"])));
    expect(await repository.encryption?.keyVersions()).toEqual(["2", "1"]);
    const path = join(folder.path, "volume");
    const made = await backUp(engine, { repository, path, layout: encrypted });
    expect(await namesIn(repository, made.container)).toContain(`${made.prefix}_key_2`);
    expect((await restoreToMemory(engine, [made])).equals(images[0] as Buffer)).toBe(true);
    expect((await Array.fromAsync(findBackups(repository, signal))).length).toBe(4);
  });
});
