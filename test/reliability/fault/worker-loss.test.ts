import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { crashAt } from "../../kit/crash-at.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { firstOf } from "../../kit/long.ts";
import { patience } from "../../kit/wait-for.ts";

const MiB = 1024 * 1024;

/** Short leases, so that a takeover is a matter of seconds; many ranges, so that a death falls between them. */
const brisk = {
  config: {
    range_bytes: 2 * MiB,
    worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400, drain_ms: 1_000 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
  },
  repository: { object_bytes: 512 * 1024 },
};

async function importImage(instance: Instance, user: Journey, dataBytes = 40 * MiB) {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, dataBytes + 8 * MiB + 4321, [{ offset: 4 * MiB, data: randomBytesOf("image", dataBytes) }]);
  return { volume: await user.importVolume(image), sha256: await sha256Of(image) };
}

const tasksOf = (instance: Instance, kind: string) =>
  instance.sql(
    "SELECT ordinal, state, claim, worker_id, bytes_twice::float AS twice FROM tasks WHERE kind = $1 ORDER BY ordinal",
    [kind],
  );

const countTasks = async (instance: Instance, kind: string, state: string) =>
  (await tasksOf(instance, kind)).filter((t) => t.state === state).length;

describe("a worker that is lost", () => {
  it("in the middle of a copy costs the ranges it held, and no finished one is copied again", async () => {
    // The lease of the other one may also run out because the machine is busy: not so soon.
    const worker = { ...brisk.config.worker, lease_ms: 6_000 };
    await using instance = await startInstance({ workers: 2, ...brisk, config: { ...brisk.config, worker } });
    const user = journeyOn(instance);
    const { volume, sha256 } = await importImage(instance, user);
    const backup = await user.startBackup(volume);
    await instance.waitFor(async () => (await countTasks(instance, "copy", "succeeded")) >= 3, {
      what: "three ranges are done",
      everyMs: 20,
    });
    const before = (await tasksOf(instance, "copy")).filter((t) => t.state === "succeeded");
    instance.workers[0]?.kill("SIGKILL");
    await user.settled("backups", backup, "available");
    const after = await tasksOf(instance, "copy");
    for (const task of before)
      expect(after.find((t) => t.ordinal === task.ordinal)).toMatchObject({
        claim: task.claim,
        worker_id: task.worker_id,
      });
    expect(after.filter((t) => t.claim > 1).length).toBeLessThanOrEqual(brisk.config.worker.slots);
    await user.expectExact(backup, sha256);
    await user.expectQuiet();
  });

  it.each(firstOf(1, [2, 1, 4]))(
    "in the seal, before its write %i, is followed by another that seals",
    async (write) => {
      await using instance = await startInstance({ workers: 0, ...brisk });
      const user = journeyOn(instance);
      const doomed = await instance.startWorker(crashAt(`seal:${write}`));
      const { volume, sha256 } = await importImage(instance, user, 6 * MiB);
      const backup = await user.startBackup(volume);
      await instance.waitFor(() => !doomed.running(), { what: "the worker died in the seal", timeoutMs: 30_000 });
      expect((await user.get(`/ops/operations?backup_id=${backup}`)).operations[0].state).toBe("running");
      await instance.startWorker();
      await user.settled("backups", backup, "available");
      expect((await tasksOf(instance, "seal"))[0]).toMatchObject({ claim: 2, state: "succeeded" });
      await user.expectExact(backup, sha256);
      await user.expectQuiet();
    },
  );

  it.each(firstOf(2, ["restore:3", "publish.claimed:1", "restore:1", "plan-restore:1"]))(
    "in a restore, at %s, is followed by another that restores exactly",
    async (point) => {
      await using instance = await startInstance({ workers: 1, ...brisk });
      const user = journeyOn(instance);
      const { volume, sha256 } = await importImage(instance, user, 12 * MiB);
      const backup = await user.backUp(volume);
      await instance.workers[0]?.stop();
      const doomed = await instance.startWorker(crashAt(point));
      const target = await user.startRestore(backup);
      await instance.waitFor(() => !doomed.running(), { what: `the worker died at ${point}`, timeoutMs: 30_000 });
      await instance.startWorker();
      await user.settled("volumes", target, "available");
      expect(await sha256Of(user.volumeFile(target))).toBe(sha256);
      await user.settled("backups", backup, "available");
      await user.expectQuiet();
    },
  );

  it("every time, ends the operation with a reason after a bounded number of claims, and harms nobody else", async () => {
    await using instance = await startInstance({ workers: 0, ...brisk });
    const user = journeyOn(instance);
    let doomed = await instance.startWorker();
    const { volume } = await importImage(instance, user, 6 * MiB);
    await doomed.stop();
    const backup = await user.startBackup(volume);
    for (let i = 0; i < 3; i += 1) {
      doomed = await instance.startWorker(crashAt("plan-backup.claimed:1"));
      await instance.waitFor(() => !doomed.running(), { what: "the worker died", timeoutMs: 30_000 });
    }
    const { fail_reason: reason } = (await user.settled("backups", backup, "error")) as unknown as {
      fail_reason: string;
    };
    expect(reason).toContain("Gave up after 3 workers were lost at task plan-backup");
    await user.settled("volumes", volume, "available");
    await instance.startWorker();
    await user.backUp(volume);
  });
});

describe("a worker that is paused past its lease", () => {
  it.each(["copy", "restore"])("and goes on in the middle of a %s changes nothing any more", async (kind) => {
    await using instance = await startInstance({ workers: 2, ...brisk });
    const user = journeyOn(instance);
    const { volume, sha256 } = await importImage(instance, user);
    const backup = kind === "copy" ? await user.startBackup(volume) : await user.backUp(volume);
    const target = kind === "restore" ? await user.startRestore(backup) : null;
    const [paused] = instance.workers;
    if (!paused) throw new Error("no worker");
    const holds = async () => {
      const rows = await instance.sql(
        "SELECT id FROM tasks WHERE kind = $1 AND state = 'running' AND worker_id LIKE $2",
        [kind, `%:${paused.pid}:%`],
      );
      return rows.length > 0 && rows;
    };
    const held = await instance.waitFor(holds, { what: "the worker to be paused holds a task", everyMs: 5 });
    paused.kill("SIGSTOP");
    if (target) await user.settled("volumes", target, "available");
    else await user.settled("backups", backup, "available");
    const before = await tasksOf(instance, kind);
    paused.kill("SIGCONT");
    // Its lease's clock says so, or the database when it wants to report that the restored file is gone: whichever comes first.
    const noticed = /no longer safe to work on|no longer claimed by this worker/;
    await instance.waitFor(() => noticed.test(paused.tail()), {
      what: "the late worker has noticed",
      timeoutMs: 10_000,
    });
    expect(await tasksOf(instance, kind)).toEqual(before);
    expect(held.length).toBeGreaterThan(0);
    if (target) expect(await sha256Of(user.volumeFile(target))).toBe(sha256);
    await user.expectExact(backup, sha256);
    expect(paused.running(), "the late worker goes on with other work").toBe(true);
    await user.expectQuiet();
  });
});

describe("a worker that is asked to stop", () => {
  it("hands back what it holds at no cost and is gone within ten seconds", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { volume, sha256 } = await importImage(instance, user);
    const backup = await user.startBackup(volume);
    await instance.waitFor(async () => (await countTasks(instance, "copy", "succeeded")) >= 2, {
      what: "two ranges are done",
      everyMs: 20,
    });
    const began = performance.now();
    await instance.workers[0]?.stop({ signal: "SIGTERM" });
    expect(performance.now() - began).toBeLessThan(10_000 * patience);
    expect(await countTasks(instance, "copy", "running")).toBe(0);
    await instance.startWorker();
    await user.settled("backups", backup, "available");
    await user.expectExact(backup, sha256);
  });
});
