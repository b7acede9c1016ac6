import { existsSync } from "node:fs";
import { open, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;
const base = `/v3/${project}`;

/** A volume of 2 MiB and an odd end, with known bytes. */
async function oddVolume(instance: Instance) {
  const journey = journeyOn(instance);
  const image = join(instance.dataDir, "image.raw");
  const bytes = randomBytesOf("volume sources", 2 * MiB + 513);
  await writeIslands(image, bytes.length, [{ offset: 0, data: bytes }]);
  return { journey, bytes, id: await journey.importVolume(image, "odd") };
}

async function expectBytes(path: string, bytes: Buffer, sizeBytes = bytes.length): Promise<void> {
  expect((await stat(path)).size).toBe(sizeBytes);
  const { bytesRead, buffer } = await readStart(path, bytes.length + 4096);
  expect(buffer.subarray(0, bytes.length).equals(bytes)).toBe(true);
  expect(buffer.subarray(bytes.length, bytesRead).every((byte) => byte === 0)).toBe(true);
}

async function readStart(path: string, length: number): Promise<{ bytesRead: number; buffer: Buffer }> {
  const file = await open(path);
  try {
    return await file.read(Buffer.alloc(length), 0, length, 0);
  } finally {
    await file.close();
  }
}

it("makes volumes of volumes, snapshots and backups, exactly as long or as large as asked", async () => {
  await using instance = await startInstance();
  const { journey, bytes, id } = await oddVolume(instance);
  const create = async (volume: object): Promise<string> => {
    const headers = { "openstack-api-version": "volume 3.47" };
    const reply = await instance.request("POST", `${base}/volumes`, { volume }, headers);
    expect(reply.status, reply.text).toBe(202);
    expect(reply.body.volume.status).toBe("creating");
    return reply.body.volume.id;
  };
  const settled = async (volume: string) => {
    await journey.settled("volumes", volume, "available");
    return journey.volumeFile(volume);
  };
  await expectBytes(await settled(await create({ source_volid: id })), bytes);
  await expectBytes(await settled(await create({ source_volid: id, size: 2 })), bytes, 2 * GiB);

  const { snapshot } = await journey.accepted("POST", `${base}/snapshots`, { snapshot: { volume_id: id } });
  await journey.settled("snapshots", snapshot.id, "available");
  await expectBytes(await settled(await create({ snapshot_id: snapshot.id })), bytes);

  const backup = await journey.backUp(id);
  const restored = await create({ backup_id: backup, name: "again", metadata: { own: "yes" } });
  await expectBytes(await settled(restored), bytes);
  const { volume } = await journey.get(`${base}/volumes/${restored}`);
  expect(volume).toMatchObject({ name: "again", metadata: { src_backup_id: backup } });
  await journey.settled("backups", backup, "available");
  await expectBytes(await settled(await create({ backup_id: backup, size: 2 })), bytes, 2 * GiB);
  await journey.expectQuiet();
});

it("makes a volume longer with zeros, and backs it up as long as it is then", async () => {
  await using instance = await startInstance();
  const { journey, bytes, id } = await oddVolume(instance);
  await journey.accepted("POST", `${base}/volumes/${id}/action`, { "os-extend": { new_size: 2 } });
  await journey.settled("volumes", id, "available");
  await expectBytes(journey.volumeFile(id), bytes, 2 * GiB);
  const { volume } = await journey.get(`${base}/volumes/${id}`);
  expect(volume.size).toBe(2);
  const backup = await journey.backUp(id);
  expect((await journey.get(`${base}/backups/${backup}`)).backup.size).toBe(2);
  const { quota_set: quota } = await journey.get(`${base}/os-quota-sets/${project}?usage=true`);
  expect(quota.gigabytes.in_use).toBe(2);
});

it("removes a volume with its snapshots, and one that is still being made, and leaves nothing behind", async () => {
  await using instance = await startInstance({ workers: 0 });
  const journey = journeyOn(instance);
  const { volume: early } = await journey.accepted("POST", `${base}/volumes`, { volume: { size: 1 } });
  await journey.accepted("POST", `${base}/volumes/${early.id}/action`, { "os-force_delete": {} });
  await instance.startWorker();
  const gone = (id: string) =>
    instance.waitFor(async () => (await instance.request("GET", `${base}/volumes/${id}`)).status === 404, {
      what: `volume ${id} is gone`,
    });
  await gone(early.id);

  const id = await journey.createVolume(1);
  const { snapshot } = await journey.accepted("POST", `${base}/snapshots`, { snapshot: { volume_id: id } });
  await journey.settled("snapshots", snapshot.id, "available");
  await journey.accepted("DELETE", `${base}/volumes/${id}?cascade=True`);
  await gone(id);
  expect((await instance.request("GET", `${base}/snapshots/${snapshot.id}`)).status).toBe(404);
  for (const file of [`volume-${early.id}`, `volume-${id}`, `snapshot-${snapshot.id}`]) {
    expect(existsSync(join(instance.volumesDir, file)), file).toBe(false);
  }
  const { quota_set: quota } = await journey.get(`${base}/os-quota-sets/${project}?usage=true`);
  expect([quota.volumes.in_use, quota.snapshots.in_use, quota.gigabytes.in_use]).toEqual([0, 0, 0]);
  await journey.expectQuiet();
});

it("gives up a restore whose target is deleted by force, and the backup is whole afterwards", async () => {
  await using instance = await startInstance();
  const { journey, bytes, id } = await oddVolume(instance);
  const backup = await journey.backUp(id);
  const volume = { volume: { backup_id: backup } };
  const headers = { "openstack-api-version": "volume 3.47" };
  const target = (await instance.request("POST", `${base}/volumes`, volume, headers)).body.volume.id as string;
  await journey.accepted("POST", `${base}/volumes/${target}/action`, { "os-force_delete": null });
  await instance.waitFor(async () => (await instance.request("GET", `${base}/volumes/${target}`)).status === 404, {
    what: "the target is gone",
  });
  await journey.settled("backups", backup, "available");
  await journey.expectQuiet();
  expect(existsSync(journey.volumeFile(target))).toBe(false);
  const again = await journey.restore(backup);
  expect((await readFile(journey.volumeFile(again))).equals(bytes)).toBe(true);
});
