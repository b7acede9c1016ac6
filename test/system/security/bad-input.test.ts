import { mkdir, readdir, rename, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;

const small = {
  config: {
    range_bytes: 2 * MiB,
    worker: { lease_ms: 2_000, heartbeat_ms: 300 },
    tasks: { unplaced_timeout_ms: 3_000, reconcile_ms: 300, backoff_ms: 50 },
  },
  repository: { object_bytes: 512 * 1024, compression: "none" },
};

async function importImage(instance: Instance, user: Journey, seed = "image", bytes = 12 * MiB) {
  const image = join(instance.dataDir, `${seed}.img`);
  await writeIslands(image, bytes, [{ offset: 0, data: randomBytesOf(seed, bytes) }]);
  return { volume: await user.importVolume(image), image, sha256: await sha256Of(image) };
}

interface Failed {
  fail_reason: string;
}

const failedBackup = async (user: Journey, volume: string): Promise<string> => {
  const backup = await user.startBackup(volume);
  const { fail_reason: reason } = (await user.settled("backups", backup, "error")) as unknown as Failed;
  await user.settled("volumes", volume, "available");
  return reason;
};

/** Runs a worker that sees another file system, of its own, at the repository's place. Needs no rights: a user namespace. */
const inOwnMount = (options: string, after = "true"): readonly string[] => [
  "unshare",
  "-Urm",
  "sh",
  "-c",
  `cp -a "$R/." "$R.copy" && mount -t tmpfs -o ${options} tmpfs "$R" && cp -a "$R.copy/." "$R" && ${after} && exec "$@"`,
  "sh",
];

const backupFiles = async (instance: Instance, backup: string): Promise<string[]> =>
  (await readdir(instance.repositoryDir, { recursive: true, withFileTypes: true }))
    .filter((e) => e.isFile() && e.name.includes(backup))
    .map((e) => join(e.parentPath, e.name))
    .sort();

async function flipByte(path: string, at: number): Promise<void> {
  const { open } = await import("node:fs/promises");
  const file = await open(path, "r+");
  try {
    const byte = Buffer.alloc(1);
    await file.read(byte, 0, 1, at);
    byte[0] = (byte[0] ?? 0) ^ 1;
    await file.write(byte, 0, 1, at);
  } finally {
    await file.close();
  }
}

describe("a repository that cannot be used", () => {
  it("full in the middle: the backup says so, the volume is as it was, and there is room again after the delete", async () => {
    await using instance = await startInstance({ workers: 1, ...small });
    const user = journeyOn(instance);
    const { volume } = await importImage(instance, user);
    await instance.workers[0]?.stop();
    await instance.startWorker({ R: instance.repositoryDir }, inOwnMount("size=8m"));
    const backup = await user.startBackup(volume);
    const { fail_reason: reason } = (await user.settled("backups", backup, "error")) as unknown as Failed;
    expect(reason).toMatch(/full|space/i);
    await user.settled("volumes", volume, "available");
    await user.deleteBackup(backup);
    const few = await importImage(instance, user, "few", 3 * MiB);
    await user.expectExact(await user.backUp(few.volume), few.sha256);
  });

  it("unwritable, unmarked, missing: it is named, nothing is written, and it is used again once it is mended", async () => {
    await using instance = await startInstance({ workers: 1, ...small });
    const user = journeyOn(instance);
    const { volume, sha256 } = await importImage(instance, user, "image", 3 * MiB);
    await instance.workers[0]?.stop();
    const readOnly = await instance.startWorker(
      { R: instance.repositoryDir },
      inOwnMount("size=8m", 'mount -o remount,bind,ro "$R"'),
    );
    expect(await failedBackup(user, volume)).toMatch(/EROFS|read-only|written/i);
    await readOnly.stop();

    const aside = `${instance.repositoryDir}.aside`;
    await instance.startWorker();
    await rename(instance.repositoryDir, aside);
    expect(await failedBackup(user, volume)).toContain(instance.repositoryDir);
    await import("node:fs/promises").then((fs) => fs.mkdir(instance.repositoryDir));
    expect(await failedBackup(user, volume)).toMatch(/mark/i);
    expect(await readdir(instance.repositoryDir)).toEqual([]);
    await rm(instance.repositoryDir, { recursive: true });
    await rename(aside, instance.repositoryDir);
    await user.expectExact(await user.backUp(volume), sha256);
    await user.expectQuiet();
  });
});

describe("a source that is not what it was", () => {
  it("vanished or shrunk: the backup says so and the volume is as it was", async () => {
    await using instance = await startInstance({ workers: 1, ...small });
    const user = journeyOn(instance);
    const { volume } = await importImage(instance, user);
    await truncate(user.volumeFile(volume), 5 * MiB);
    expect(await failedBackup(user, volume)).toContain(String(12 * MiB));
    await rm(user.volumeFile(volume));
    expect(await failedBackup(user, volume)).toMatch(/cannot be opened/);
    await user.expectQuiet();
  });
});

describe("a damaged backup", () => {
  it("is never restored as if it were right: volume and backup say so, by name, and it is no parent any more", async () => {
    await using instance = await startInstance({ workers: 1, ...small });
    const user = journeyOn(instance);
    const { volume, sha256 } = await importImage(instance, user);
    const full = await user.backUp(volume);
    await writeIslands(user.volumeFile(volume), null, [{ offset: 100, data: randomBytesOf("change", 100) }]);
    const child = await user.backUp(volume, { incremental: true });
    const files = await backupFiles(instance, full);
    const object = files.find((f) => f.endsWith("-00007")) ?? "";
    await flipByte(object, 1000);

    const target = await user.startRestore(child);
    const shown = (await user.settled("backups", child, "error_restoring")) as unknown as Failed;
    expect(shown.fail_reason).toContain(full);
    expect(shown.fail_reason).toContain("-00007");
    await user.settled("volumes", target, "error_restoring");
    expect((await user.get(`/v3/${project}/backups/${full}`)).backup.status).toBe("available");

    const refused = await instance.request("POST", `/v3/${project}/backups`, {
      backup: { volume_id: volume, incremental: true },
    });
    expect([refused.status, refused.body.badRequest?.message]).toEqual([
      400,
      "Invalid backup: No backups available to do an incremental backup.",
    ]);
    await user.accepted("DELETE", `/v3/${project}/backups/${child}`);
    const fresh = await user.backUp(volume);
    await user.expectExact(fresh, await sha256Of(user.volumeFile(volume)));
    expect(sha256).not.toBe(await sha256Of(user.volumeFile(volume)));
    await user.expectQuiet();
  });
});

describe("a path", () => {
  it("outside the import roots, through a link, or to no regular file is refused, and nothing of it is read", async () => {
    await using instance = await startInstance({ workers: 1, ...small });
    const user = journeyOn(instance);
    const outside = await instance.request("POST", "/ops/volumes/import", {
      path: "/etc/passwd",
      name: "x",
      project_id: project,
    });
    expect(outside.status, outside.text).toBe(400);
    const own = { path: join(instance.volumesDir, "volume-of-others"), name: "x", project_id: project };
    expect((await instance.request("POST", "/ops/volumes/import", own)).status).toBe(400);
    const link = join(instance.dataDir, "link.img");
    await symlink("/etc/passwd", link);
    const folder = join(instance.dataDir, "folder");
    await mkdir(folder);
    for (const path of [link, folder]) {
      const { operation } = await user.accepted("POST", "/ops/volumes/import", {
        path,
        name: "x",
        project_id: project,
      });
      const ended = await instance.waitFor(
        async () => {
          const { operation: row } = await user.get(`/ops/operations/${operation.id}`);
          return row.state === "failed" && row;
        },
        { what: "the import has failed" },
      );
      expect(ended.fail_reason).not.toBe("");
      await user.settled("volumes", ended.volume_id, "error");
    }
    expect((await readdir(instance.volumesDir)).filter((n) => !n.startsWith("."))).toEqual([]);
    const image = join(instance.dataDir, "small.img");
    await writeFile(image, "x".repeat(1000));
    const volume = await user.importVolume(image);
    const out = join(instance.dataDir, "out.img");
    await user.accepted("POST", `/ops/volumes/${volume}/export`, { path: out });
    await user.settled("volumes", volume, "available");
    await user.expectQuiet();
    expect(await sha256Of(out)).toBe(await sha256Of(image));
  });
});
