import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type Instance, startInstance } from "../harness/instance.ts";
import { type Journey, journeyOn, randomBytesOf, sha256Of, writeIslands } from "../harness/journey.ts";

const MiB = 1024 * 1024;

const brisk = {
  config: {
    range_bytes: 1 * MiB,
    worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 1_500, backoff_ms: 100 },
  },
  repository: { object_bytes: 512 * 1024 },
};

async function importImage(instance: Instance, user: Journey) {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 32 * MiB, [{ offset: 0, data: randomBytesOf("image", 30 * MiB) }]);
  return { volume: await user.importVolume(image), sha256: await sha256Of(image) };
}

const succeeded = async (instance: Instance) =>
  (await instance.sql("SELECT count(*)::int AS n FROM tasks WHERE kind = 'copy' AND state = 'succeeded'"))[0]
    .n as number;

describe("an API that is killed", () => {
  it("right after its 202 has lost nothing: the backup is made, without it", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { volume, sha256 } = await importImage(instance, user);
    await instance.workers[0]?.stop();
    const backup = await user.startBackup(volume);
    await instance.killApi("SIGKILL");
    await instance.startWorker();
    await instance.waitFor(
      async () => (await instance.sql("SELECT status FROM backups WHERE id = $1", [backup]))[0].status === "available",
      {
        what: "the backup is available with no API running",
        timeoutMs: 60_000,
      },
    );
    await instance.startApi();
    await user.expectExact(backup, sha256);
    await user.expectQuiet();
  });
});

describe("a Redis that is emptied", () => {
  it("again and again while jobs run loses nothing", async () => {
    await using instance = await startInstance({ workers: 2, ownRedis: true, ...brisk });
    const user = journeyOn(instance);
    const { volume, sha256 } = await importImage(instance, user);
    const backup = await user.startBackup(volume);
    for (const done of [2, 8, 14]) {
      await instance.waitFor(async () => (await succeeded(instance)) >= done, {
        what: `${done} ranges are done`,
        timeoutMs: 60_000,
        everyMs: 20,
      });
      await instance.redis.flushall();
    }
    await user.settled("backups", backup, "available");
    await user.expectExact(backup, sha256);
    await user.expectQuiet();
  });
});

describe("no worker that reaches what is needed", () => {
  it("ends the backup as Cinder does, and the volume is as it was", async () => {
    const config = { ...brisk.config, tasks: { ...brisk.config.tasks, unplaced_timeout_ms: 3_000 } };
    await using instance = await startInstance({ workers: 1, ...brisk, config });
    const user = journeyOn(instance);
    const { volume } = await importImage(instance, user);
    await instance.workers[0]?.stop();
    const backup = await user.startBackup(volume);
    const shown = await user.settled("backups", backup, "error");
    expect(shown).toMatchObject({ fail_reason: "Service not found for creating backup." });
    await user.settled("volumes", volume, "available");
  });
});
