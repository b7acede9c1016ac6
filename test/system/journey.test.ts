import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type Instance, startInstance } from "../harness/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../harness/journey.ts";

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
  it("goes from a file to a full, an incremental and two exact restores, copied by two workers", { timeout: 180_000 }, async () => {
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

    const tasks = await copyTasks(instance, full);
    expect(tasks.length).toBeGreaterThan(10);
    const share = new Map<string, number>();
    for (const t of tasks) share.set(t.worker_id, (share.get(t.worker_id) ?? 0) + t.bytes);
    expect(share.size).toBe(2);
    for (const [worker, bytes] of share) expect(bytes / size, `share of ${worker}`).toBeGreaterThan(0.3);

    await user.expectExact(full, first);
    await user.expectExact(incremental, second);
    await user.restore(full, volume);
    expect(await sha256Of(user.volumeFile(volume))).toBe(first);

    const shown = (await user.get(`/v3/${project}/backups/${full}`)).backup;
    expect(shown).toMatchObject({ status: "available", has_dependent_backups: true, is_incremental: false, size: 1, fail_reason: null });
    const refused = await instance.request("DELETE", `/v3/${project}/backups/${full}`);
    expect(refused.status).toBe(400);
    await user.deleteBackup(incremental);
    await user.deleteBackup(full);
    await user.expectQuiet();
    expect(await filesIn(instance.repositoryDir)).toEqual(untouched);
  });
});
