import { randomUUID } from "node:crypto";
import { copyFile, open, readFile, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { unpackSwift } from "../../../scripts/swift-package.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";
import { small, temporaryFolder } from "../backup-fixture.ts";
import { type CinderStep, cinderEnvironment, completed, runCinder } from "./cinder.ts";
import { kinds } from "./kinds.ts";

beforeAll(async () => {
  await cinderEnvironment();
  await unpackSwift((line) => process.stderr.write(`${line}\n`));
});

const base = `/v3/${project}`;
const volumeBytes = 9 * small.objectBytes + 1234;
const generations = 4;

interface BackupRecord {
  backup_service: string;
  backup_url: string;
}

/** Edits that touch several objects, one of them with zeros. */
async function edit(path: string, generation: number): Promise<void> {
  const island = (at: number, length: number) => ({ offset: at, data: randomBytesOf(`${generation} ${at}`, length) });
  const zeros = { offset: 3 * small.objectBytes, data: Buffer.alloc(5000 * generation) };
  await writeIslands(path, null, [island(generation * 7777, 4000), zeros, island(volumeBytes - 90, 90)]);
}

async function firstImage(path: string): Promise<string> {
  await writeIslands(path, volumeBytes, [{ offset: 0, data: randomBytesOf(path, 5 * small.objectBytes) }]);
  return path;
}

const startService = (configured: object): Promise<Instance> =>
  startInstance({
    config: {
      repositories: [
        { name: "main", default: true, object_bytes: small.objectBytes, block_bytes: small.blockBytes, ...configured },
      ],
      range_bytes: 3 * small.objectBytes,
    },
  });

async function exported(instance: Instance, id: string): Promise<BackupRecord> {
  const reply = await instance.request("GET", `${base}/backups/${id}/export_record`);
  expect(reply.status, reply.text).toBe(200);
  return reply.body["backup-record"];
}

const decoded = ({ backup_url: url }: { backup_url: string }) => JSON.parse(Buffer.from(url, "base64").toString());

/** What an importing service sets itself, and what the other's clock says. */
function lasting(record: Record<string, unknown>): Record<string, unknown> {
  const own = ["user_id", "project_id", "host", "availability_zone", "updated_at", "restore_volume_id"];
  return Object.fromEntries(Object.entries(record).filter(([key]) => !own.includes(key)));
}

/** Whether a restored volume begins with the image and has nothing behind it. */
async function expectRestored(path: string, image: Buffer): Promise<void> {
  const { size } = await stat(path);
  const file = await open(path);
  try {
    const { buffer } = await file.read(Buffer.alloc(image.length), 0, image.length, 0);
    expect(buffer.equals(image)).toBe(true);
    const rest = await file.read(Buffer.alloc(Math.min(size - image.length, 2 ** 20)), { position: image.length });
    expect(rest.buffer.subarray(0, rest.bytesRead).every((byte) => byte === 0)).toBe(true);
  } finally {
    await file.close();
  }
}

describe.each(kinds)("records between this service and a real Cinder on $name", ({ open: openPlace }) => {
  test("what GET export_record answers is imported by Cinder, which restores every member of the chain", async () => {
    await using folder = await temporaryFolder();
    await using place = await openPlace(folder.path);
    await using instance = await startService(place.configured);
    const user = journeyOn(instance);
    const volume = await user.importVolume(await firstImage(join(instance.dataDir, "disk.img")), "näme");
    const steps: CinderStep[] = [];
    const images: Buffer[] = [];
    const records: BackupRecord[] = [];
    for (let generation = 0; generation < generations; generation += 1) {
      if (generation > 0) await edit(user.volumeFile(volume), generation);
      const id = await user.backUp(volume, { name: `n${generation}`, incremental: generation > 0 });
      images.push(await readFile(user.volumeFile(volume)));
      records.push(await exported(instance, id));
    }
    for (const [index, record] of records.entries()) {
      const target = join(folder.path, `target-${index}`);
      await writeFile(target, Buffer.alloc(volumeBytes, 0xee));
      steps.push({ do: "import", url: record.backup_url }, { do: "restore", id: decoded(record).id, target });
    }
    const answers = await runCinder(place.cinder, { known: [], steps });
    for (const [index, record] of records.entries()) {
      expect(record.backup_service).toBe(place.cinder.driver);
      const theirs = decoded(completed.parse(answers[2 * index]));
      expect(Object.keys(theirs)).toEqual(Object.keys(decoded(record)));
      expect(lasting(theirs)).toEqual(lasting(decoded(record)));
      expect((await readFile(join(folder.path, `target-${index}`))).equals(images[index] as Buffer)).toBe(true);
    }
  });

  test("what Cinder exports is taken by POST import_record and restored, and goes back to Cinder as it was", async () => {
    await using folder = await temporaryFolder();
    await using place = await openPlace(folder.path);
    const volumeId = randomUUID();
    const path = await firstImage(join(folder.path, "volume"));
    const steps: CinderStep[] = [];
    const images: Buffer[] = [];
    let parentId: string | null = null;
    for (let generation = 0; generation < generations; generation += 1) {
      if (generation > 0) await edit(path, generation);
      images.push(await readFile(path));
      const volume = join(folder.path, `volume-${generation}`);
      await copyFile(path, volume);
      const id = randomUUID();
      const compression = ["zlib", "bz2", "zstd", "none"][generation] ?? "zlib";
      const backup = { id, volume_id: volumeId, parent_id: parentId, container: null, service_metadata: null, size: 1 };
      steps.push({ do: "backup", volume, compression, backup });
      parentId = id;
    }
    const written = (await runCinder(place.cinder, { known: [], steps })).map((answer) => completed.parse(answer));

    await using instance = await startService(place.configured);
    const user = journeyOn(instance);
    for (const { id, backup_url } of written) {
      const record = { backup_service: place.cinder.driver, backup_url };
      const reply = await instance.request("POST", `${base}/backups/import_record`, { "backup-record": record });
      expect(reply.status, reply.text).toBe(201);
      expect(reply.body.backup.id).toBe(id);
      await user.settled("backups", id, "available");
    }
    const back: CinderStep[] = [];
    for (const [index, { id, backup_url }] of written.entries()) {
      await expectRestored(user.volumeFile(await user.restore(id)), images[index] as Buffer);
      const again = await exported(instance, id);
      const [theirs, ours] = [decoded({ backup_url }), decoded(again)];
      expect(Object.keys(ours)).toEqual(Object.keys(theirs));
      // Dependents are counted here, not carried along.
      const counted = { num_dependent_backups: index < generations - 1 ? 1 : 0 };
      expect(lasting(ours)).toEqual({ ...lasting(theirs), ...counted });
      const target = join(folder.path, `target-${index}`);
      await writeFile(target, Buffer.alloc(volumeBytes, 0xee));
      back.push({ do: "import", url: again.backup_url }, { do: "restore", id, target });
    }
    await runCinder(place.cinder, { known: [], steps: back });
    for (const [index, image] of images.entries()) {
      expect((await readFile(join(folder.path, `target-${index}`))).equals(image)).toBe(true);
    }
  });
});
