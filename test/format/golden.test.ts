import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  type BackupReference,
  type Compression,
  type Engine,
  encodeExportRecord,
  levelDefault,
  openEngine,
  openFileSource,
  openRepository,
  type Repository,
} from "@tephra/engine";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { freeContext, layoutFor, MemoryTarget, restoreToMemory, temporaryFolder } from "./backup-fixture.ts";
import { type GoldenBackup, goldenCodecs, openGolden } from "./golden-repository.ts";

let engine: Engine;
beforeAll(() => {
  engine = openEngine({ threads: 2 });
});
afterAll(() => engine[Symbol.asyncDispose]());

const names = ["full", "inc1", "inc2-nochange", "inc3"];

describe.each(goldenCodecs)("a repository that a real Cinder wrote with %s", (codec) => {
  test.each(names)("restores %s exactly, zeros included", async (name) => {
    const golden = await openGolden(codec);
    expect(await restoreToMemory(engine, golden.chainOf(name))).toEqual(await golden.image(name));
  });

  test("restores range by range, each byte once", async () => {
    await using folder = await temporaryFolder();
    const golden = await openGolden(codec, { copyTo: join(folder.path, "repo") });
    const chain = golden.chainOf("inc3");
    const staging = { operationId: "operation-1", name: "plan-1" };
    const plan = await engine.planRestore({ chain, rangeBytes: 65536, rangesMax: 100, staging }, freeContext());
    expect(plan.ranges.length).toBe(5);
    const target = new MemoryTarget(plan.volumeBytes, { isNew: true });
    for (const range of plan.ranges.toReversed()) {
      await engine.restoreRange({ chain, range, staging, target }, freeContext());
    }
    expect(target.bytes).toEqual(await golden.image("inc3"));
    await engine.removeStaging(golden.repository, staging.operationId);
    expect(await readdir(join(golden.path, ".tephra"))).toEqual(["tmp"]);
  });

  test("tells the exact length of the volume from the objects alone", async () => {
    const golden = await openGolden(codec);
    for (const name of ["full", "inc1"]) {
      const [newest] = golden.chainOf(name);
      const bytes = await engine.volumeBytesOf(newest as BackupReference, new AbortController().signal);
      expect(bytes).toBe((await golden.image(name)).length);
    }
  });
});

describe.each(goldenCodecs)("writing the images of the %s repository again", (codec) => {
  test.each(names)("gives the same bytes for %s", async (name) => {
    await using folder = await temporaryFolder();
    const golden = await openGolden(codec);
    const repository = await openRepository(`posix:${join(folder.path, "ours")}`);
    await repository.initialize();
    const backup = golden.backups.find((each) => each.name === name) as GoldenBackup;
    const imagePath = join(folder.path, "image");
    await writeFile(imagePath, await golden.image(name));
    await rewrite({ repository, golden, backup, imagePath, compression: codec });
    const theirs = await readObjects(join(golden.path, backup.container));
    const ours = await readObjects(join(folder.path, "ours", backup.container));
    expect([...ours.keys()].sort()).toEqual([...theirs.keys()].sort());
    for (const [object, bytes] of theirs) {
      const isData = /-\d{5}$/.test(object);
      if (isData && codec !== "none") continue;
      expect({ object, bytes: ours.get(object)?.toString("latin1") }).toEqual({
        object,
        bytes: bytes.toString("latin1"),
      });
    }
  });
});

type Entry = Record<"compression" | "length" | "md5" | "offset", string | number>;
const entriesOf = z.object({ objects: z.array(z.record(z.string(), z.custom<Entry>())) });

test("with zeros compressed, as is the default, nothing but the label of zero windows differs from a Cinder's", async () => {
  await using folder = await temporaryFolder();
  const golden = await openGolden("none");
  const repository = await openRepository(`posix:${join(folder.path, "ours")}`);
  await repository.initialize();
  const backup = golden.backups.find(({ name }) => name === "full") as GoldenBackup;
  const image = await golden.image("full");
  const imagePath = join(folder.path, "image");
  await writeFile(imagePath, image);
  await rewrite({ repository, golden, backup, imagePath, compression: "none", compressZeros: true });
  const read = async (root: string) => {
    const text = await readFile(join(root, backup.container, `${backup.service_metadata}_metadata`), "utf8");
    const { objects, ...rest } = entriesOf.loose().parse(JSON.parse(text));
    return { rest, entries: objects.flatMap((entry) => Object.entries(entry)) };
  };
  const [ours, theirs] = [await read(join(folder.path, "ours")), await read(golden.path)];
  expect(ours.rest).toEqual(theirs.rest);
  expect(ours.entries.length).toBe(theirs.entries.length);
  for (const [index, [name, entry]] of ours.entries.entries()) {
    const [theirName, theirEntry] = theirs.entries[index] as [string, Entry];
    const start = Number(entry.offset);
    const isZero = image.subarray(start, start + Number(entry.length)).every((byte) => byte === 0);
    expect(name).toBe(theirName);
    expect(entry).toEqual({ ...theirEntry, compression: isZero ? "zlib" : "none" });
  }
});

const theirMetadata = z.object({
  created_at: z.string(),
  volume_id: z.string(),
  volume_meta: z.string(),
  backup_name: z.string().nullable(),
  backup_description: z.string().nullable(),
});

/** Backs the image of a golden backup up under the same ids, dates and names, on top of Cinder's own parent. */
async function rewrite(input: {
  repository: Repository;
  golden: Awaited<ReturnType<typeof openGolden>>;
  backup: GoldenBackup;
  imagePath: string;
  compression: Compression;
  compressZeros?: boolean;
}): Promise<void> {
  const { repository, golden, backup, imagePath, compression, compressZeros = false } = input;
  const file = join(golden.path, backup.container, `${backup.service_metadata}_metadata`);
  const theirs = theirMetadata.parse(JSON.parse(await readFile(file, "utf8")));
  await using source = await openFileSource(imagePath);
  const layout = layoutFor(repository, source.sizeBytes, {
    backupId: backup.id,
    volumeId: theirs.volume_id,
    container: backup.container,
    prefix: backup.service_metadata,
    compression,
    level: levelDefault(compression),
    objectBytes: golden.objectBytes,
    blockBytes: golden.blockBytes,
    createdAt: theirs.created_at,
    name: theirs.backup_name,
    description: theirs.backup_description,
    volumeMeta: theirs.volume_meta,
    parentId: backup.parent_id,
    compressZeros,
  });
  const parent = golden.chainOf(backup.name)[1] ?? null;
  await engine.backupWhole({ source, repository, layout, parent }, freeContext());
}

async function readObjects(folder: string): Promise<Map<string, Buffer>> {
  const objects = new Map<string, Buffer>();
  for (const name of await readdir(folder)) objects.set(name, await readFile(join(folder, name)));
  return objects;
}

test("an export record is the one that Cinder writes, byte for byte", async () => {
  const golden = await openGolden("zlib");
  const backup = golden.backups[0] as GoldenBackup;
  const theirs = JSON.parse(Buffer.from(backup.backup_url, "base64").toString("utf8"));
  const ours = encodeExportRecord({
    id: theirs.id,
    userId: theirs.user_id,
    projectId: theirs.project_id,
    volumeId: theirs.volume_id,
    container: theirs.container,
    prefix: theirs.service_metadata,
    parentId: theirs.parent_id,
    sizeGib: theirs.size,
    name: theirs.display_name,
    description: theirs.display_description,
    service: theirs.service,
    objects: theirs.object_count,
    dependents: theirs.num_dependent_backups,
    snapshotId: theirs.snapshot_id,
    dataAt: new Date(theirs.data_timestamp),
    createdAt: new Date(theirs.created_at),
    updatedAt: new Date(theirs.updated_at),
    host: theirs.host,
    availabilityZone: theirs.availability_zone,
    metadata: theirs.metadata,
  });
  expect(ours).toBe(backup.backup_url);
});
