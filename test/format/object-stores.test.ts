import { createHash, randomBytes, randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type BackupReference,
  cutRanges,
  DamagedObjectError,
  describeBackup,
  type Engine,
  findBackups,
  ObjectConflictError,
  ObjectMissingError,
  openEngine,
  openFileSource,
  openRepository,
  type RangeReport,
  RangesIncompleteError,
  type Repository,
  StrayObjectsError,
} from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
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

const MiB = 1024 * 1024;

let server: SwiftServer;
let engine: Engine;
beforeAll(async () => {
  server = await startSwift();
  engine = openEngine({ threads: 2 });
});
afterAll(async () => {
  await engine[Symbol.asyncDispose]();
  await server[Symbol.asyncDispose]();
});

/** Small pages, so that every listing has several. */
const open = {
  s3: (place: string, options: Parameters<typeof openRepository>[1] = {}) =>
    openRepository(`s3://${place}?endpoint=${server.url}&list_page=3&zone=az1`, {
      accessKey: server.user,
      secretKey: server.key,
      ...options,
    }),
  swift: (place: string, options: Parameters<typeof openRepository>[1] = {}) =>
    openRepository(
      `swift:${place}?auth=v1&auth_url=${server.url}/auth/v1.0&user=${server.user}&key=${server.key}&list_page=3&zone=az1`,
      options,
    ),
};

async function namesIn(repository: Repository, container: string): Promise<string[]> {
  return (await Array.fromAsync(repository.list(container, ""))).map(({ name }) => name).sort();
}

describe.each(["s3", "swift"] as const)("backups in %s", (driver) => {
  async function newRepository() {
    const place = `b-${randomUUID()}`;
    const repository = await open[driver](place);
    await repository.initialize();
    return { repository, place };
  }

  /** A full backup and two incrementals with zeros, text and noise. */
  async function makeChain(repository: Repository, folder: string, compression: "zlib" | "none") {
    const path = join(folder, "volume");
    const volume = Buffer.concat([randomBytes(300_000), Buffer.alloc(140_000), Buffer.alloc(90_123, "text ")]);
    const chain: BackupReference[] = [];
    const images: Buffer[] = [];
    for (const step of [0, 1, 2]) {
      randomBytes(9000).copy(volume, 20_000 + step * 130_000);
      await writeFile(path, volume);
      const parent = chain[0];
      chain.unshift(await backUp(engine, { repository, path, layout: { compression }, ...(parent ? { parent } : {}) }));
      images.unshift(Buffer.from(volume));
    }
    return { chain, images };
  }

  test.each(["zlib", "none"] as const)(
    "threads tell the MD5 of what is sent (%s), which the store checks",
    async (compression) => {
      await using folder = await temporaryFolder();
      const { repository } = await newRepository();
      await using _ = repository;
      const puts: { name: string; told: string | undefined; sent: string }[] = [];
      const putIfAbsent: Repository["putIfAbsent"] = async (key, body, ctx) => {
        const bytes = Buffer.concat(body instanceof Uint8Array ? [body] : await Array.fromAsync(body));
        puts.push({ name: key.name, told: ctx.bodyMd5, sent: createHash("md5").update(bytes).digest("hex") });
        return repository.putIfAbsent(key, bytes, ctx);
      };
      const watched = new Proxy(repository, {
        get(target, name) {
          if (name === "putIfAbsent") return putIfAbsent;
          const value: unknown = Reflect.get(target, name, target);
          return typeof value === "function" ? value.bind(target) : value;
        },
      });
      const path = join(folder.path, "volume");
      await writeFile(path, Buffer.concat([randomBytes(200_000), Buffer.alloc(200_000, "text ")]));
      const parent = await backUp(engine, { repository: watched, path, layout: { compression } });
      await writeFile(path, Buffer.concat([randomBytes(100_000), Buffer.alloc(300_000, "texts ")]));
      await backUp(engine, { repository: watched, path, parent, layout: { compression } });
      const data = puts.filter(({ name }) => /-\d{5}$/.test(name));
      expect(data.length).toBeGreaterThan(10);
      for (const { name, told, sent } of data) expect(told, name).toBe(sent);
      const key = { container: repository.defaultContainer(randomUUID()), name: "object" };
      const wrong = { ...freeContext(), bodyMd5: createHash("md5").update("others").digest("hex") };
      await expect(repository.putIfAbsent(key, Buffer.from("bytes"), wrong)).rejects.toThrow();
      await expect(repository.stat(key)).rejects.toThrow(ObjectMissingError);
    },
  );

  test.each(["zlib", "none"] as const)(
    "a chain (%s) restores exactly at every link, is found, and goes without a trace",
    async (compression) => {
      await using folder = await temporaryFolder();
      const { repository, place } = await newRepository();
      await using _ = repository;
      const { chain, images } = await makeChain(repository, folder.path, compression);
      for (const [index, image] of images.entries()) {
        expect((await restoreToMemory(engine, chain.slice(index))).equals(image)).toBe(true);
      }
      const prefix = /^volume_[0-9a-f-]{36}\/\d{14}\/az_az1_backup_[0-9a-f-]{36}(?:-\d{5}|_metadata|_sha256file)$/;
      for (const name of await namesIn(repository, place)) expect(name).toMatch(prefix);
      const mine = (reference: BackupReference): boolean => reference.container === place;
      const found = (await Array.fromAsync(findBackups(repository, freeContext().signal))).filter(mine);
      expect(found.map(({ backupId }) => backupId).sort()).toEqual(chain.map(({ backupId }) => backupId).sort());
      for (const reference of found) {
        expect(await describeBackup(reference, freeContext().signal)).toMatchObject({
          problem: null,
          blockBytes: 4096,
        });
      }
      for (const { container, prefix } of chain) {
        await engine.removeBackup({ repository, container, prefix }, freeContext());
      }
      expect(await namesIn(repository, place)).toEqual([]);
    },
  );

  test("ranges copied out of order and twice give one backup; a lost or stray object is seen before it is sealed", async () => {
    await using folder = await temporaryFolder();
    const { repository, place } = await newRepository();
    await using _ = repository;
    const volumeBytes = 6 * small.objectBytes + 777;
    const path = join(folder.path, "volume");
    const image = randomBytes(volumeBytes);
    await writeFile(path, image);
    const layout = layoutFor(repository, volumeBytes);
    const ranges = cutRanges({ volumeBytes, objectBytes: small.objectBytes, rangeBytes: 140_000, rangesMax: 100 });
    await using source = await openFileSource(path);
    const operationId = "backup-1";
    const reports: RangeReport[] = [];
    for (const claim of [1, 2]) {
      for (const [index, range] of [...ranges.entries()].toReversed()) {
        const staging = { operationId, name: `task${index}-${claim}` };
        const input = { source, repository, layout, range, parent: null, staging };
        reports[index] = await engine.copyRange(input, freeContext());
        if (claim === 2) expect(reports[index]?.bytesAdopted).toBe(reports[index]?.bytesStored);
      }
    }
    const seal = () => engine.seal({ repository, layout, operationId, reports }, freeContext());
    const key = { container: place, name: `${layout.prefix}-00002` };
    const kept = Buffer.concat(await Array.fromAsync(repository.get(key)));
    await repository.remove(key);
    await expect(seal()).rejects.toBeInstanceOf(RangesIncompleteError);
    await repository.putIfAbsent(key, kept, freeContext());
    const stray = { container: place, name: `${layout.prefix}.journal` };
    await repository.putIfAbsent(stray, Buffer.from("x"), freeContext());
    await expect(seal()).rejects.toBeInstanceOf(StrayObjectsError);
    await repository.remove(stray);
    expect((await seal()).objects).toBe(7);
    await engine.removeStaging(repository, operationId);
    expect((await restoreToMemory(engine, [referenceTo(repository, layout)])).equals(image)).toBe(true);
    expect((await namesIn(repository, place)).length).toBe(9);
  });

  test.each(["zlib", "none", "encrypted"] as const)(
    "an object that holds other bytes of the same length before the seal (%s) is no backup, and is named",
    async (kind) => {
      await using folder = await temporaryFolder();
      const encryption = kind === "encrypted" ? { keyFile: await writeKeyFile(folder.path, ["1"]) } : undefined;
      const place = `b-${randomUUID()}`;
      await using repository = await open[driver](place, { encryption });
      await repository.initialize();
      const volumeBytes = 4 * small.objectBytes + 777;
      const path = join(folder.path, "volume");
      await writeFile(path, Buffer.concat([randomBytes(150_000), Buffer.alloc(volumeBytes - 150_000, "text ")]));
      const compression = kind === "encrypted" ? "zlib" : kind;
      const layout = layoutFor(repository, volumeBytes, { compression, encrypted: kind === "encrypted" });
      if (kind === "encrypted") await engine.beginBackup({ repository, layout }, freeContext());
      await using source = await openFileSource(path);
      const ranges = cutRanges({ volumeBytes, objectBytes: small.objectBytes, rangeBytes: 140_000, rangesMax: 100 });
      const operationId = randomUUID();
      const copy = (index: number, claim: number) => {
        const staging = { operationId, name: `task${index}-${claim}` };
        const range = ranges[index] as { offset: number; length: number };
        return engine.copyRange({ source, repository, layout, range, parent: null, staging }, freeContext());
      };
      const reports: RangeReport[] = [];
      for (const index of ranges.keys()) reports[index] = await copy(index, 1);
      const seal = () => engine.seal({ repository, layout, operationId, reports }, freeContext());

      const stored = repository.encryption?.stored ?? repository;
      const key = { container: place, name: `${layout.prefix}-00004` };
      const kept = Buffer.concat(await Array.fromAsync(stored.get(key)));
      const flipped = Buffer.from(kept);
      flipped[kept.length >> 1] = (flipped[kept.length >> 1] as number) ^ 1;
      await stored.remove(key);
      await stored.putIfAbsent(key, flipped, freeContext());
      const error: unknown = await seal().catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(RangesIncompleteError);
      expect((error as RangesIncompleteError).ranges).toEqual([1]);
      const names = await namesIn(repository, place);
      expect(names.filter((name) => /_(?:metadata|sha256file)$/.test(name))).toEqual([]);
      const again: unknown = await copy(1, 2).catch((thrown: unknown) => thrown);
      expect(again).toBeInstanceOf(ObjectConflictError);
      expect(String(again)).toContain(key.name);

      await stored.remove(key);
      reports[1] = await copy(1, 3);
      expect((await seal()).objects).toBe(5);
    },
  );

  test("objects in parts, which no store has an MD5 of, are sealed by their sizes", async () => {
    await using folder = await temporaryFolder();
    const place = `b-${randomUUID()}`;
    const partBytes = driver === "s3" ? 5 * MiB : MiB;
    const objectBytes = 2 * partBytes;
    const key = `&user=${server.user}&key=${server.key}`;
    const url = {
      s3: `s3://${place}?endpoint=${server.url}&access_key=${server.user}&secret_key=${server.key}&part_bytes=${partBytes}`,
      swift: `swift:${place}?auth=v1&auth_url=${server.url}/auth/v1.0${key}&part_bytes=${partBytes}`,
    }[driver];
    await using repository = await openRepository(url);
    await repository.initialize();
    const path = join(folder.path, "volume");
    const image = randomBytes(objectBytes + 4096);
    await writeFile(path, image);
    const reference = await backUp(engine, { repository, path, layout: { compression: "none", objectBytes } });
    const listed = await Array.fromAsync(repository.list(place, `${reference.prefix}-`));
    expect(new Map(listed.map(({ name, md5 }) => [name.slice(-5), md5]))).toEqual(
      new Map([
        ["00001", undefined],
        ["00002", createHash("md5").update(image.subarray(objectBytes)).digest("hex")],
      ]),
    );
    expect((await restoreToMemory(engine, [reference])).equals(image)).toBe(true);
  });

  test("a flipped bit, a cut, an exchange and a loss are named, in data and in both lists", async () => {
    await using folder = await temporaryFolder();
    const { repository, place } = await newRepository();
    await using _ = repository;
    const { chain } = await makeChain(repository, folder.path, "zlib");
    const full = chain[2] as BackupReference;
    for (const ending of ["-00001", "_sha256file", "_metadata"]) {
      const key = { container: place, name: full.prefix + ending };
      const bytes = Buffer.concat(await Array.fromAsync(repository.get(key)));
      const flipped = Buffer.from(bytes);
      // In metadata most bytes do not matter to a restore; an MD5 does.
      const at = ending === "_metadata" ? bytes.indexOf('"md5"') + 10 : Math.floor(bytes.length * 0.6);
      flipped[at] = (flipped[at] as number) ^ 1;
      for (const damaged of [flipped, bytes.subarray(0, -1), randomBytes(bytes.length), null]) {
        await repository.remove(key);
        if (damaged !== null) await repository.putIfAbsent(key, damaged, freeContext());
        const restored = restoreToMemory(engine, [full]);
        // A full backup without its list of hashes restores with MD5 and lengths alone.
        if (damaged === null && ending === "_sha256file") await restored;
        else await expect(restored, `${ending} ${damaged?.length}`).rejects.toBeInstanceOf(DamagedObjectError);
      }
      await repository.remove(key);
      await repository.putIfAbsent(key, bytes, freeContext());
    }
    await restoreToMemory(engine, chain);
  });
});
