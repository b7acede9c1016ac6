import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;

/** Small windows and ranges, so that a volume of a few MiB has many of each. */
const small = { config: { range_bytes: 2 * MiB, worker: { slots: 2 } }, repository: { object_bytes: 512 * 1024 } };

const copyTasks = (instance: Instance, backupId: string) =>
  instance.sql(
    `SELECT t.ordinal, t.claim, t.worker_id, t.bytes_done::float AS bytes, t.bytes_twice::float AS twice, t.state FROM tasks t
     JOIN operations o ON o.id = t.operation_id WHERE o.backup_id = $1 AND t.kind = 'copy' ORDER BY t.ordinal`,
    [backupId],
  );

const filesIn = async (folder: string): Promise<string[]> =>
  (await readdir(folder, { recursive: true, withFileTypes: true })).filter((e) => e.isFile()).map((e) => e.name);

describe("the life of a backup", () => {
  it("goes from a file to a full, an incremental and two exact restores, copied by two workers", {
    timeout: 180_000,
  }, async () => {
    await using instance = await startInstance({ workers: 2, ...small });
    const user = journeyOn(instance);
    const image = join(instance.dataDir, "disk.img");
    const size = 48 * MiB + 12_345;
    await writeIslands(image, size, [
      { offset: 0, data: randomBytesOf("a", 20 * MiB) },
      { offset: 30 * MiB + 777, data: randomBytesOf("b", 9 * MiB) },
      { offset: size - 5000, data: randomBytesOf("tail", 5000) },
    ]);
    const volume = await user.importVolume(image);
    expect(await sha256Of(user.volumeFile(volume))).toBe(await sha256Of(image));
    expect((await user.get(`/ops/volumes/${volume}`)).volume).toMatchObject({ size: 1, bytes: size });

    const untouched = await filesIn(instance.repositoryDir);
    const full = await user.backUp(volume, { name: "full" });
    const first = await sha256Of(image);
    const changes = [
      { offset: 3 * MiB + 100, data: randomBytesOf("c", 70_000) },
      { offset: 31 * MiB, data: Buffer.alloc(2 * MiB) },
      { offset: size - 100, data: randomBytesOf("d", 100) },
    ];
    await writeIslands(user.volumeFile(volume), null, changes);
    const second = await sha256Of(user.volumeFile(volume));
    const incremental = await user.backUp(volume, { name: "incremental", incremental: true });

    const sharesOf = async (backup: string): Promise<number[]> => {
      const tasks = await copyTasks(instance, backup);
      expect(tasks.length).toBeGreaterThan(10);
      const bytes = new Map<string, number>();
      for (const t of tasks) bytes.set(t.worker_id, (bytes.get(t.worker_id) ?? 0) + t.bytes);
      return [...bytes.values()].map((sum) => sum / size);
    };
    const isShared = (shares: readonly number[]): boolean =>
      shares.length === 2 && shares.every((share) => share > 0.1);
    // A busy machine may run one of them more than the other, or for the whole of a backup one alone.
    let shares = await sharesOf(full);
    for (let more = 0; more < 5 && !isShared(shares); more += 1) {
      const again = await user.backUp(volume);
      shares = await sharesOf(again);
      await user.deleteBackup(again);
    }
    expect(isShared(shares), `shares ${shares}`).toBe(true);

    await user.expectExact(full, first);
    await user.expectExact(incremental, second);
    await user.restore(full, volume);
    expect(await sha256Of(user.volumeFile(volume))).toBe(first);

    const shown = (await user.get(`/v3/${project}/backups/${full}`)).backup;
    expect(shown).toMatchObject({
      status: "available",
      has_dependent_backups: true,
      is_incremental: false,
      size: 1,
      fail_reason: null,
    });
    const refused = await instance.request("DELETE", `/v3/${project}/backups/${full}`);
    expect(refused.status).toBe(400);
    await user.deleteBackup(incremental);
    await user.deleteBackup(full);
    await user.expectQuiet();
    expect(await filesIn(instance.repositoryDir)).toEqual(untouched);
  });

  it("backs up a volume in use by a temporary snapshot, which goes away, and a snapshot of the user's, which stays", async () => {
    await using instance = await startInstance({ workers: 1, ...small });
    const user = journeyOn(instance);
    const image = join(instance.dataDir, "disk.img");
    await writeIslands(image, 7 * MiB + 99, [{ offset: MiB, data: randomBytesOf("e", 5 * MiB) }]);
    const before = await sha256Of(image);
    const volume = await user.importVolume(image);
    const snapshot = (
      await user.accepted("POST", `/v3/${project}/snapshots`, { snapshot: { volume_id: volume, name: "s" } })
    ).snapshot.id;
    await user.settled("snapshots", snapshot, "available");
    await user.accepted("POST", `/v3/${project}/volumes/${volume}/action`, {
      "os-attach": { instance_uuid: project, mountpoint: "/dev/vdb" },
    });
    await user.settled("volumes", volume, "in-use");
    await writeIslands(user.volumeFile(volume), null, [{ offset: 2 * MiB, data: randomBytesOf("f", 9000) }]);
    const after = await sha256Of(user.volumeFile(volume));

    const refused = await instance.request("POST", `/v3/${project}/backups`, { backup: { volume_id: volume } });
    expect(refused.body.badRequest.message).toBe(
      "Invalid volume: Backing up an in-use volume must use the force flag.",
    );
    const ofSnapshot = await user.backUp(volume, { snapshot_id: snapshot });
    const forced = await user.backUp(volume, { force: true });
    await user.settled("volumes", volume, "in-use");
    await user.settled("snapshots", snapshot, "available");
    await user.expectQuiet();
    expect((await filesIn(instance.volumesDir)).sort()).toEqual([`snapshot-${snapshot}`, `volume-${volume}`].sort());
    await user.expectExact(ofSnapshot, before);
    await user.expectExact(forced, after);

    await user.accepted("POST", `/v3/${project}/volumes/${volume}/action`, { "os-detach": {} });
    await user.settled("volumes", volume, "available");
    const kept = await instance.request("DELETE", `/v3/${project}/volumes/${volume}`);
    expect(kept.status, "a volume with snapshots stays").toBe(400);
    await user.accepted("DELETE", `/v3/${project}/snapshots/${snapshot}`);
    await instance.waitFor(
      async () => (await instance.request("GET", `/v3/${project}/snapshots/${snapshot}`)).status === 404,
      {
        what: "the snapshot is gone",
      },
    );
    await user.accepted("DELETE", `/v3/${project}/volumes/${volume}`);
    await instance.waitFor(async () => (await filesIn(instance.volumesDir)).length === 0, {
      what: "the volume's file is gone",
    });
    await user.expectExact(forced, after);
  });

  it("restores onto a larger volume: the backup's length is written, what lies beyond is left, and a smaller one is refused", async () => {
    await using instance = await startInstance({ workers: 2, ...small });
    const user = journeyOn(instance);
    const image = join(instance.dataDir, "disk.img");
    await writeIslands(image, 6 * MiB + 4097, [{ offset: MiB, data: randomBytesOf("g", MiB) }]);
    const volume = await user.importVolume(image);
    const backup = await user.backUp(volume);
    const large = join(instance.dataDir, "large.img");
    const old = randomBytesOf("old", 20 * MiB);
    await writeIslands(large, 20 * MiB, [{ offset: 0, data: old }]);
    const target = await user.importVolume(large);
    await user.restore(backup, target);
    await writeIslands(large, null, [{ offset: 0, data: await readFile(image) }]);
    expect(await sha256Of(user.volumeFile(target))).toBe(await sha256Of(large));
    expect((await user.get(`/v3/${project}/volumes/${target}`)).volume.metadata).toEqual({ src_backup_id: backup });

    await writeIslands(image, MiB, []);
    const tiny = await user.importVolume(image);
    const refused = await instance.request("POST", `/v3/${project}/backups/${backup}/restore`, {
      restore: { volume_id: tiny },
    });
    expect([refused.status, refused.body.badRequest?.message]).toEqual([
      400,
      `Invalid volume: volume of ${MiB} bytes is too small to restore backup of ${6 * MiB + 4097} bytes.`,
    ]);
    await user.settled("volumes", tiny, "available");
    await user.expectQuiet();
  });
});
