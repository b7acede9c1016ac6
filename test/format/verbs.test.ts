import { randomBytes } from "node:crypto";
import { readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type BackupReference,
  decodeExportRecord,
  type Engine,
  encodeExportRecord,
  encodeVolumeMeta,
  findRecord,
  InvalidRecordError,
  keepRecord,
  openEngine,
  openRepository,
  parseRecordText,
  RestoredWrongError,
  recordOf,
  rescan,
  serviceMatches,
  type VolumeSource,
} from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { backUp, freeContext, MemoryTarget, restoreToMemory, small, temporaryFolder } from "./backup-fixture.ts";
import { goldenCodecs, openGolden } from "./golden-repository.ts";

let engine: Engine;
beforeAll(() => {
  engine = openEngine({ threads: 2 });
});
afterAll(() => engine[Symbol.asyncDispose]());

const never = new AbortController().signal;

/** A full backup and an incremental of five windows, stored raw so that damage is easy to place. */
async function makeChain(folder: string) {
  const root = join(folder, "repository");
  const repository = await openRepository(`posix:${root}`);
  await repository.initialize();
  const path = join(folder, "volume");
  const image = randomBytes(5 * small.objectBytes - 1000);
  await writeFile(path, image);
  const layout = { compression: "none" as const };
  const full = await backUp(engine, { repository, path, layout });
  image.fill(0, 70_000, 90_000);
  image.write("changed", 200_000);
  await writeFile(path, image);
  const incremental = await backUp(engine, { repository, path, layout, parent: full });
  const file = (reference: BackupReference, suffix: string): string =>
    join(root, reference.container, `${reference.prefix}${suffix}`);
  return { root, repository, path, image, chain: [incremental, full] as const, file };
}

/** Reads what a target in memory holds. */
const readerOf = ({ bytes }: MemoryTarget): VolumeSource => ({
  sizeBytes: bytes.length,
  read: async (into, offset) => void bytes.copy(into, 0, offset),
  dataExtents: async function* (range) {
    yield range;
  },
  fingerprint: async () => "",
  [Symbol.asyncDispose]: async () => {},
});

async function streamed(
  chain: readonly BackupReference[],
  extent?: { offset: number; length: number | null },
): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  const sink = async (chunk: Uint8Array): Promise<void> => {
    chunks.push(chunk);
  };
  await engine.restoreStream({ chain, sink, ...(extent ? { extent } : {}) }, freeContext());
  return Buffer.concat(chunks);
}

describe("verify", () => {
  test("finds a whole chain whole, quick and deep, and says how much it has looked at", async () => {
    await using folder = await temporaryFolder();
    const { chain } = await makeChain(folder.path);
    const quick = await engine.verifyBackup({ chain, mode: "quick" }, freeContext());
    expect(quick).toEqual({ mode: "quick", objects: 7, blocks: 0, damaged: [] });
    const deep = await engine.verifyBackup({ chain, mode: "deep" }, freeContext());
    expect(deep).toEqual({ mode: "deep", objects: 7, blocks: 80, damaged: [] });
  });

  test("quick names missing, cut and foreign objects of every member, each once", async () => {
    await using folder = await temporaryFolder();
    const { chain, file } = await makeChain(folder.path);
    const [incremental, full] = chain;
    await rm(file(full, "-00002"));
    await writeFile(file(full, "-00003"), (await readFile(file(full, "-00003"))).subarray(1));
    await writeFile(file(full, "-00099"), "x");
    await writeFile(file(incremental, ".journal"), "x");
    for (const mode of ["quick", "deep"] as const) {
      const { damaged } = await engine.verifyBackup({ chain, mode }, freeContext());
      expect(damaged.map(({ object }) => object).sort()).toEqual(
        [
          `${full.prefix}-00002`,
          `${full.prefix}-00003`,
          `${full.prefix}-00099`,
          `${incremental.prefix}.journal`,
        ].sort(),
      );
    }
  });

  test("deep finds one flipped bit that quick cannot see, names every damaged object, and goes on", async () => {
    await using folder = await temporaryFolder();
    const { chain, file } = await makeChain(folder.path);
    const [, full] = chain;
    for (const suffix of ["-00001", "-00005"]) {
      const bytes = await readFile(file(full, suffix));
      bytes[100] = (bytes[100] as number) ^ 1;
      await writeFile(file(full, suffix), bytes);
    }
    expect((await engine.verifyBackup({ chain, mode: "quick" }, freeContext())).damaged).toEqual([]);
    const { damaged, objects } = await engine.verifyBackup({ chain, mode: "deep" }, freeContext());
    expect(objects).toBe(7);
    expect(damaged).toEqual(
      ["-00001", "-00005"].map((suffix) => ({ object: full.prefix + suffix, reason: "the MD5 does not match" })),
    );
  });

  test("as a drill writes what it reads, and compares what the volume then holds", async () => {
    await using folder = await temporaryFolder();
    const { chain, image } = await makeChain(folder.path);
    const staging = { operationId: "drill", name: "plan" };
    const plan = { chain, mode: "deep", rangeBytes: 2 * small.objectBytes, rangesMax: 100, staging } as const;
    const { ranges, found } = await engine.planVerify(plan, freeContext());
    expect([found.damaged, ranges.length]).toEqual([[], 3]);
    const target = new MemoryTarget(image.length, { isNew: true });
    const verifyAll = (restored: VolumeSource) =>
      Promise.all(
        ranges.map((range) =>
          engine.verifyRange({ chain, range, staging, drill: { target, restored } }, freeContext()),
        ),
      );
    const results = await verifyAll(readerOf(target));
    expect(results.flatMap(({ damaged }) => damaged)).toEqual([]);
    expect(target.bytes.equals(image)).toBe(true);
    const wrong = new MemoryTarget(image.length);
    await expect(verifyAll(readerOf(wrong))).rejects.toBeInstanceOf(RestoredWrongError);
    const oneBitWrong = new MemoryTarget(image.length);
    image.copy(oneBitWrong.bytes);
    oneBitWrong.bytes[200_000] = (image[200_000] as number) ^ 1;
    const at = 200_000 - (200_000 % small.blockBytes);
    await expect(verifyAll(readerOf(oneBitWrong))).rejects.toThrow(`the block at byte ${at} is wrong`);
  });

  test("finds a hash list that disagrees, is missing or is nonsense, and metadata that is", async () => {
    await using folder = await temporaryFolder();
    const { chain, file } = await makeChain(folder.path);
    const [incremental, full] = chain;
    const list = file(incremental, "_sha256file");
    const whole = await readFile(list, "utf8");
    const damagedAfter = async (): Promise<{ object: string; reason: string }[]> =>
      (await engine.verifyBackup({ chain, mode: "deep" }, freeContext())).damaged;
    const object = `${incremental.prefix}_sha256file`;
    await writeFile(list, whole.replace(/"[0-9a-f]{64}"/, `"${"0".repeat(64)}"`));
    expect(await damagedAfter()).toEqual([{ object, reason: expect.stringContaining("does not match") }]);
    await writeFile(list, "nonsense");
    expect(await damagedAfter()).toEqual([{ object, reason: expect.stringContaining("JSON") }]);
    await expect(restoreToMemory(engine, chain)).rejects.toThrow(object);
    await rm(list);
    expect(await damagedAfter()).toEqual([{ object, reason: "it is missing" }]);
    await writeFile(list, whole);
    await writeFile(file(full, "_metadata"), "nonsense");
    expect(await damagedAfter()).toEqual([
      { object: `${full.prefix}_metadata`, reason: expect.stringContaining("JSON") },
    ]);
  });
});

describe("a chain that is less than a Cinder writes", () => {
  test("without its list of hashes is restored by lengths and MD5, says so, and is still checked", async () => {
    await using folder = await temporaryFolder();
    const { chain, file, image } = await makeChain(folder.path);
    for (const reference of chain) await rm(file(reference, "_sha256file"));
    const target = new MemoryTarget(image.length);
    const { warnings } = await engine.restoreWhole({ chain, target }, freeContext());
    expect(target.bytes.equals(image)).toBe(true);
    expect(warnings).toEqual([expect.stringContaining(`${chain[0].prefix}_sha256file is missing`)]);
    const staging = { operationId: "restore-1", name: "plan" };
    const plan = await engine.planRestore({ chain, rangeBytes: 100_000, rangesMax: 9, staging }, freeContext());
    expect(plan).toMatchObject({ volumeBytes: image.length, warnings });
    const bytes = await readFile(file(chain[1], "-00001"));
    bytes[0] = (bytes[0] as number) ^ 1;
    await writeFile(file(chain[1], "-00001"), bytes);
    await expect(restoreToMemory(engine, chain)).rejects.toThrow("the MD5 does not match");
  });

  test.each(goldenCodecs)(
    "with metadata of names, offsets and labels alone (%s) is restored exactly",
    async (codec) => {
      await using folder = await temporaryFolder();
      const golden = await openGolden(codec, { copyTo: join(folder.path, "repo") });
      const chain = golden.chainOf("inc3");
      for (const { container, prefix } of chain) {
        const path = join(golden.path, container, `${prefix}_metadata`);
        const { objects, version, parent_id } = JSON.parse(await readFile(path, "utf8"));
        const bare = objects.map((entry: Record<string, { offset: number; compression: string }>) => {
          const [[name, { offset, compression }]] = Object.entries(entry) as [
            [string, { offset: number; compression: string }],
          ];
          return { [name]: { compression: compression.toUpperCase(), offset } };
        });
        await writeFile(path, JSON.stringify({ version, objects: bare, parent_id }));
      }
      expect(await restoreToMemory(engine, chain)).toEqual(await golden.image("inc3"));
      const verified = await engine.verifyBackup({ chain, mode: "deep" }, freeContext());
      expect(verified.damaged).toEqual([]);
    },
  );

  test("with a hash list in another layout is restored, and an incremental is taken on top of it", async () => {
    await using folder = await temporaryFolder();
    const { repository, path, chain, file, image } = await makeChain(folder.path);
    const list = file(chain[0], "_sha256file");
    const { sha256s, ...rest } = JSON.parse(await readFile(list, "utf8"));
    await writeFile(list, JSON.stringify({ sha256s, ...rest }));
    expect((await restoreToMemory(engine, chain)).equals(image)).toBe(true);
    image.write("again", 5);
    await writeFile(path, image);
    const next = await backUp(engine, { repository, path, parent: chain[0] });
    expect((await restoreToMemory(engine, [next, ...chain])).equals(image)).toBe(true);
    expect((await readdir(join(folder.path, "repository", next.container))).length).toBe(3);
  });
});

describe("restoring", () => {
  test("zeroed blocks of an incremental are zeros on a new target, where a Cinder leaves old data", async () => {
    await using folder = await temporaryFolder();
    const repository = await openRepository(`posix:${join(folder.path, "repository")}`);
    await repository.initialize();
    const path = join(folder.path, "volume");
    const layout = { objectBytes: 4 * 1024 * 1024, blockBytes: 32_768 };
    const image = randomBytes(6 * 1024 * 1024);
    await writeFile(path, image);
    const full = await backUp(engine, { repository, path, layout });
    // Whole windows of 1 MiB, which are what Cinder leaves out.
    image.fill(0, 0, 2 * 1024 * 1024);
    await writeFile(path, image);
    const chain = [await backUp(engine, { repository, path, layout, parent: full }), full];
    const target = new MemoryTarget(image.length, { isNew: true });
    await engine.restoreWhole({ chain, target }, freeContext());
    expect(target.bytes.equals(image)).toBe(true);
    expect((await restoreToMemory(engine, chain)).equals(image)).toBe(true);
  });

  test("onto a larger target leaves what lies behind", async () => {
    await using folder = await temporaryFolder();
    const { chain, image } = await makeChain(folder.path);
    const target = new MemoryTarget(image.length + 100_000);
    await engine.restoreWhole({ chain, target }, freeContext());
    expect(target.bytes.subarray(0, image.length).equals(image)).toBe(true);
    expect(target.bytes.subarray(image.length).every((byte) => byte === 0xee)).toBe(true);
    const tooSmall = new MemoryTarget(image.length - 1);
    await expect(engine.restoreWhole({ chain, target: tooSmall }, freeContext())).rejects.toThrow();
  });

  test("to a pipe gives the bytes in order, whole or in part", async () => {
    await using folder = await temporaryFolder();
    const { chain, image } = await makeChain(folder.path);
    expect((await streamed(chain)).equals(image)).toBe(true);
    for (const [offset, length] of [
      [0, 1],
      [65_535, 2],
      [70_001, 123_456],
      [image.length - 1, 1],
      [image.length, 0],
    ] as const) {
      expect((await streamed(chain, { offset, length })).equals(image.subarray(offset, offset + length))).toBe(true);
    }
    expect((await streamed(chain, { offset: 99_999, length: null })).equals(image.subarray(99_999))).toBe(true);
    await expect(streamed(chain, { offset: 5, length: image.length })).rejects.toThrow("does not lie within");
  });
});

const recordInput = {
  id: "106b30de-63b9-4246-aa20-96a6e83a9414",
  userId: null,
  projectId: null,
  volumeId: "d3d5c51a-1656-4716-883f-07d77b790767",
  container: "10/6b/106b30de-63b9-4246-aa20-96a6e83a9414",
  prefix: "volume_d3d5c51a-1656-4716-883f-07d77b790767_20261120172141_backup_106b30de-63b9-4246-aa20-96a6e83a9414",
  parentId: null,
  sizeGib: 1,
  name: "näme",
  description: null,
  service: "cinder.backup.drivers.posix.PosixBackupDriver",
  objects: 5,
  dependents: 0,
  snapshotId: null,
  dataAt: null,
  createdAt: new Date(0),
  updatedAt: null,
  host: null,
  availabilityZone: null,
  metadata: { key: "value" },
  encryptionKeyId: "c6f1cb8e-7c30-4f58-9bd8-4b8c3a2b9a11",
};

describe("an export record", () => {
  test("is read back as it was written, the id of the encryption key too", () => {
    const { id, volumeId, container, prefix, sizeGib, objects, name, encryptionKeyId, metadata } = recordInput;
    const decoded = decodeExportRecord(encodeExportRecord(recordInput));
    expect(decoded).toMatchObject({
      id,
      volumeId,
      container,
      prefix,
      sizeGib,
      objects,
      name,
      encryptionKeyId,
      metadata,
    });
    const meta = encodeVolumeMeta({ volumeId, volumeBytes: 1, name, description: null, encryptionKeyId });
    expect(JSON.parse(meta)["volume-base-metadata"].encryption_key_id).toBe(encryptionKeyId);
  });

  test.each(goldenCodecs)("of a real Cinder (%s) names its backup", async (codec) => {
    const golden = await openGolden(codec);
    for (const backup of golden.backups) {
      const { container, service_metadata: prefix, object_count: objects, id } = backup;
      expect(decodeExportRecord(backup.backup_url)).toMatchObject({ id, container, prefix, objects });
    }
  });

  const document = (): Record<string, unknown> =>
    JSON.parse(Buffer.from(encodeExportRecord(recordInput), "base64").toString("utf8"));
  const withValue = (key: string, value: unknown): string =>
    Buffer.from(JSON.stringify({ ...document(), [key]: value })).toString("base64");
  const hostile: Record<string, string> = {
    "no base64": "!!!",
    empty: "",
    "no JSON": Buffer.from("nonsense").toString("base64"),
    "no UTF-8": Buffer.from([0xff, 0xfe, 0x7b]).toString("base64"),
    "an array": Buffer.from("[]").toString("base64"),
    "with a container that leads out": withValue("container", "../../etc"),
    "with an absolute container": withValue("container", "/etc"),
    "with the reserved container": withValue("container", ".tephra/x"),
    "with half a prefix": withValue("service_metadata", "volume_"),
    "with a prefix that leads out": withValue("service_metadata", `${recordInput.prefix}/../../x`),
    "with a negative size": withValue("size", -1),
    "with an id that is a path": withValue("id", "../x"),
    "that is huge": Buffer.alloc(3_000_000, "A").toString(),
  };
  test.each(Object.keys(hostile))("%s is refused", (name) => {
    expect(() => decodeExportRecord(hostile[name] as string)).toThrow(InvalidRecordError);
  });

  test("without a required key is refused in Cinder's words", () => {
    const incomplete = withValue("object_count", undefined);
    expect(() => decodeExportRecord(incomplete)).toThrow(/there are missing fields \(object_count\)\.$/);
  });

  test("is found in all the texts that carry one", () => {
    const record = { backup_service: "cinder.backup.drivers.posix", backup_url: encodeExportRecord(recordInput) };
    const texts = [
      record,
      { "backup-record": record },
      { export_record: record },
      { backup: { export_record: record } },
    ];
    for (const text of texts) {
      expect(parseRecordText(JSON.stringify(text))).toEqual({ service: record.backup_service, url: record.backup_url });
    }
    expect(parseRecordText(`${record.backup_url}\n`)).toEqual({ service: null, url: record.backup_url });
    expect(() => parseRecordText("{}")).toThrow(InvalidRecordError);
  });

  test("matches a driver whose class path starts with what it states", () => {
    const posix = "cinder.backup.drivers.posix.PosixBackupDriver";
    const gcs = "cinder.backup.drivers.gcs.GoogleBackupDriver";
    expect(serviceMatches(posix, posix)).toBe(true);
    expect(serviceMatches("cinder.backup.drivers.posix", posix)).toBe(true);
    expect(serviceMatches("cinder.backup.drivers.google.GoogleBackupDriver", gcs)).toBe(true);
    expect(serviceMatches("cinder.backup.drivers.google", gcs)).toBe(true);
    expect(serviceMatches("cinder.backup.drivers.nfs.NFSBackupDriver", posix)).toBe(false);
    expect(serviceMatches(`${posix}2`, posix)).toBe(false);
    expect(serviceMatches("", posix)).toBe(false);
  });

  test("that is kept makes its backup known by the record's id", async () => {
    await using folder = await temporaryFolder();
    const golden = await openGolden("zlib", { copyTo: join(folder.path, "repo") });
    const twin = "11111111-2222-3333-4444-555555555555";
    const theirs = JSON.parse(Buffer.from(golden.backups[0]?.backup_url ?? "", "base64").toString("utf8"));
    const url = Buffer.from(JSON.stringify({ ...theirs, id: twin })).toString("base64");
    await golden.repository.initialize();
    for (let times = 0; times < 2; times++) await keepRecord(golden.repository, url, freeContext());
    const found = await findRecord(golden.repository, twin, never);
    expect(await restoreToMemory(engine, [found?.reference as BackupReference])).toEqual(await golden.image("full"));
    expect(await findRecord(golden.repository, "99999999-2222-3333-4444-555555555555", never)).toBeNull();
    expect(await findRecord(golden.repository, "../../x", never)).toBeNull();
  });
});

describe("rescan", () => {
  test.each(goldenCodecs)("rebuilds the catalogue of a real Cinder's repository (%s), parents first", async (codec) => {
    const golden = await openGolden(codec);
    const found = await rescan(golden.repository, never);
    expect(found.map(({ backup }) => backup.reference.backupId)).toEqual(golden.backups.map(({ id }) => id));
    expect(found.map(({ chain }) => chain.length)).toEqual([1, 2, 3, 4]);
    expect(found.map(({ problem }) => problem)).toEqual([null, null, null, null]);
    for (const [index, rescanned] of found.entries()) {
      const theirs = decodeExportRecord(golden.backups[index]?.backup_url ?? "");
      const ours = decodeExportRecord(recordOf(golden.repository, rescanned)?.backup_url ?? "");
      const { id, volumeId, parentId, container, prefix, sizeGib, objects, name, service } = theirs;
      expect(ours).toMatchObject({ id, volumeId, parentId, container, prefix, sizeGib, objects, name, service });
    }
  });

  test("tells of parents that are missing, damaged or in a circle", async () => {
    await using folder = await temporaryFolder();
    const { repository, chain, file } = await makeChain(folder.path);
    const [incremental, full] = chain;
    const problems = async (): Promise<Record<string, string | null>> => {
      const found = await rescan(repository, never);
      return Object.fromEntries(found.map(({ backup, problem }) => [backup.reference.backupId, problem]));
    };
    const metadata = file(full, "_metadata");
    const text = await readFile(metadata, "utf8");
    await rename(metadata, join(folder.path, "aside"));
    expect(await problems()).toEqual({ [incremental.backupId]: expect.stringContaining("is not there") });
    await writeFile(metadata, "nonsense");
    expect((await problems())[incremental.backupId]).toContain(`backup ${full.backupId}, on which it builds`);
    await writeFile(metadata, text.replace('"parent_id": null', `"parent_id": "${incremental.backupId}"`));
    expect((await problems())[incremental.backupId]).toBe("its parents form a circle");
  });
});
