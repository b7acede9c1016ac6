import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const base = `/v3/${project}`;

/** Many ranges and a slow codec, so that there is time to change one's mind. */
const slow = {
  config: { range_bytes: 4 * MiB, worker: { slots: 2 } },
  repository: { object_bytes: MiB, compression: "bz2" },
};

/** "Within seconds" of Cinder's promise: a heartbeat, a pass of the reconciler, the removal itself. */
const promptMs = 20_000;

const filesIn = async (folder: string): Promise<string[]> =>
  (await readdir(folder, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));

async function importImage(instance: Instance, user: Journey): Promise<string> {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 160 * MiB, [{ offset: 0, data: randomBytesOf("image", 160 * MiB) }]);
  return user.importVolume(image);
}

/** Waits until ranges of `kind` are done and others are not. */
async function underWay(instance: Instance, kind: "copy" | "restore"): Promise<void> {
  const count =
    "SELECT count(*) FILTER (WHERE state = 'succeeded')::int AS done, count(*)::int AS total FROM tasks WHERE kind = $1";
  await instance.waitFor(
    async () => {
      const [{ done, total }] = await instance.sql(count, [kind]);
      if (total > 0 && done === total) throw new Error("it was over before it could be cancelled");
      return done >= 2;
    },
    { what: `ranges of ${kind} are done`, everyMs: 20 },
  );
}

const act = (user: Journey, backup: string, body: unknown) =>
  user.accepted("POST", `${base}/backups/${backup}/action`, body);

describe("an administrator who changes his mind", () => {
  it("deletes a backup that is being made: within seconds it is gone, with all that was written, and its volume is free", async () => {
    await using instance = await startInstance({ workers: 2, ...slow });
    const user = journeyOn(instance);
    const volume = await importImage(instance, user);
    const untouched = await filesIn(instance.repositoryDir);
    const backup = await user.startBackup(volume);
    await underWay(instance, "copy");
    await act(user, backup, { "os-force_delete": {} });
    const freed = (await user.get(`${base}/volumes/${volume}`)).volume;
    expect(freed.status).toBe("available");
    const gone = async () => (await instance.request("GET", `${base}/backups/${backup}`)).status === 404;
    await instance.waitFor(gone, { what: "the backup is gone", timeoutMs: promptMs });
    await user.expectQuiet();
    expect(await filesIn(instance.repositoryDir)).toEqual(untouched);
    const [quota] = await instance.sql("SELECT backups_used, backup_gigabytes_used FROM quotas");
    expect(quota).toEqual({ backups_used: 0, backup_gigabytes_used: 0 });
    const [{ state }] = await instance.sql("SELECT state FROM operations WHERE kind = 'backup-create'");
    expect(state).toBe("cancelled");
  });

  it("cancels the operation that makes a backup: its volume is free, and what was written goes with the backup", async () => {
    await using instance = await startInstance({ workers: 2, ...slow });
    const user = journeyOn(instance);
    const volume = await importImage(instance, user);
    const untouched = await filesIn(instance.repositoryDir);
    const backup = await user.startBackup(volume);
    await underWay(instance, "copy");
    const [{ id }] = await instance.sql("SELECT id FROM operations WHERE kind = 'backup-create'");
    expect((await user.get(`/ops/operations/${id}`)).operation.actions).toEqual([
      { name: "cancel", allowed: true, why: null },
      { name: "retry", allowed: false, why: "It has not failed: its state is running." },
    ]);
    await user.accepted("POST", `/ops/operations/${id}/cancel`, {});
    expect((await user.get(`${base}/volumes/${volume}`)).volume.status).toBe("available");
    expect((await user.get(`${base}/backups/${backup}`)).backup.status).toBe("error");
    await user.expectQuiet();
    await user.deleteBackup(backup);
    expect(await filesIn(instance.repositoryDir)).toEqual(untouched);
  });

  it("resets a backup that is being made to error, and can delete it then", async () => {
    await using instance = await startInstance({ workers: 1, ...slow });
    const user = journeyOn(instance);
    const volume = await importImage(instance, user);
    const untouched = await filesIn(instance.repositoryDir);
    const backup = await user.startBackup(volume);
    await underWay(instance, "copy");
    await act(user, backup, { "os-reset_status": { status: "error" } });
    expect((await user.get(`${base}/backups/${backup}`)).backup.status).toBe("error");
    expect((await user.get(`${base}/volumes/${volume}`)).volume.status).toBe("available");
    await user.expectQuiet();
    await user.deleteBackup(backup);
    expect(await filesIn(instance.repositoryDir)).toEqual(untouched);
  });

  it("resets a backup that is being restored: the target is in error, and the backup as good as before", async () => {
    await using instance = await startInstance({ workers: 1, ...slow });
    const user = journeyOn(instance);
    const volume = await importImage(instance, user);
    const backup = await user.backUp(volume, {}, 120_000);
    const files = await filesIn(instance.volumesDir);
    const target = await user.startRestore(backup);
    await underWay(instance, "restore");
    await act(user, backup, { "os-reset_status": { status: "error" } });
    expect((await user.get(`${base}/volumes/${target}`)).volume.status).toBe("error");
    expect((await user.get(`${base}/backups/${backup}`)).backup.status).toBe("available");
    await user.expectQuiet();
    expect(await filesIn(instance.volumesDir)).toEqual(files);
    await user.expectExact(backup, await sha256Of(user.volumeFile(volume)));
  });
});
