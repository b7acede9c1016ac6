import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { firstOf } from "../../kit/long.ts";
import { stallingCalls } from "../../kit/stalling-calls.ts";
import { patience } from "../../kit/wait-for.ts";

const MiB = 1024 * 1024;

const brisk = {
  config: {
    worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400, drain_ms: 1_000 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100, quiet_ms: 2_500 },
  },
};

async function makeImage(instance: Instance) {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 12 * MiB + 4321, [{ offset: 4 * MiB, data: randomBytesOf("image", 6 * MiB) }]);
  return { image, sha256: await sha256Of(image) };
}

const unreachableOf = async (instance: Instance, pid: number): Promise<Record<string, string>> =>
  (await instance.sql("SELECT unreachable FROM workers WHERE pid = $1", [pid]))[0]?.unreachable ?? {};

describe("a call that never returns", () => {
  it.each(
    firstOf(2, [
      { call: "link", path: "/repository/", place: "repository:main", during: "backup" },
      { call: "pwrite", path: "/volumes/", place: "backend:files", during: "restore" },
      { call: "pread", path: "/volumes/volume-", place: "backend:files", during: "backup" },
      { call: "open", path: "/repository/", place: "repository:main", during: "restore" },
    ] as const),
  )(
    "($call at $place) costs its task the worker that stands there, not the healthy one beside it",
    async ({ call, path, place, during }) => {
      await using instance = await startInstance({ workers: 0, ...brisk });
      const user = journeyOn(instance);
      const calls = await stallingCalls(instance.dataDir, { call, path });
      const hung = await instance.startWorker(calls.env);
      const { image, sha256 } = await makeImage(instance);
      const volume = await user.importVolume(image);
      const earlier = during === "restore" ? await user.backUp(volume) : null;
      calls.stall();
      const backup = earlier ?? (await user.startBackup(volume));
      const target = earlier && (await user.startRestore(earlier));
      await instance.waitFor(() => calls.stalled() > 0, { what: "a call stands still", everyMs: 20 });
      const healthy = await instance.startWorker();
      if (target) await user.settled("volumes", target, "available");
      else await user.settled("backups", backup, "available");
      const why = await instance.waitFor(async () => (await unreachableOf(instance, hung.pid))[place], {
        what: "the worker says that the place hangs",
      });
      expect(why).toMatch(/hangs|does not answer/);
      await expect.poll(() => unreachableOf(instance, healthy.pid)).toEqual({});
      const before = calls.stalled();
      await user.backUp(volume, { force: true });
      expect(calls.stalled(), "nothing more is begun there").toBeLessThanOrEqual(before + 1);
      calls.release();
      await instance.waitFor(async () => !((await unreachableOf(instance, hung.pid))[place] ?? "") && hung.running(), {
        what: "the worker takes the place back once its calls return and a probe answers",
        timeoutMs: 30_000,
      });
      if (target) expect(await sha256Of(user.volumeFile(target))).toBe(sha256);
      await user.expectExact(backup, sha256);
      await user.expectQuiet();
    },
  );

  it.each(
    firstOf(1, [
      { call: "open", path: "/repository/", place: "repository:main" },
      { call: "link", path: "/repository/", place: "repository:main" },
      { call: "open", path: "/volumes", place: "backend:files" },
    ] as const),
  )("($call at $place) does not keep a worker that starts meanwhile from its registration", async (stalled) => {
    await using instance = await startInstance({ workers: 0, ...brisk });
    const user = journeyOn(instance);
    const calls = await stallingCalls(instance.dataDir, stalled);
    const { image } = await makeImage(instance);
    calls.stall();
    const hung = await instance.startWorker(calls.env);
    if (calls.stalled() > 0) {
      const why = (await unreachableOf(instance, hung.pid))[stalled.place];
      expect(why, "the place is named from the start").toMatch(/does not answer/);
    }
    await instance.startWorker();
    const volume = await user.importVolume(image);
    await user.backUp(volume);
    calls.release();
    await instance.waitFor(async () => !((await unreachableOf(instance, hung.pid))[stalled.place] ?? ""), {
      what: "the worker takes the place once its calls return",
      timeoutMs: 30_000,
    });
    await user.expectQuiet();
  });

  it("ends its operation with a reason when no other worker is there, and does not keep the process from ending", async () => {
    await using instance = await startInstance({
      workers: 0,
      config: { ...brisk.config, tasks: { ...brisk.config.tasks, unplaced_timeout_ms: 2_000 } },
    });
    const user = journeyOn(instance);
    const calls = await stallingCalls(instance.dataDir, { call: "link", path: "/repository/" });
    const hung = await instance.startWorker(calls.env);
    const { image } = await makeImage(instance);
    const volume = await user.importVolume(image);
    calls.stall();
    const backup = await user.startBackup(volume);
    const failed = (await user.settled("backups", backup, "error")) as unknown as { fail_reason: string };
    expect(failed.fail_reason).toMatch(/repository:main.*did not answer/);
    const began = performance.now();
    await hung.stop({ signal: "SIGTERM" });
    expect(performance.now() - began, "gone in time, whatever hangs").toBeLessThan(10_000 * patience);
  });

  it("that was cancelled meanwhile is let go of, too", async () => {
    await using instance = await startInstance({ workers: 0, ...brisk });
    const user = journeyOn(instance);
    const calls = await stallingCalls(instance.dataDir, { call: "link", path: "/repository/" });
    await instance.startWorker(calls.env);
    const { image } = await makeImage(instance);
    const volume = await user.importVolume(image);
    calls.stall();
    const backup = await user.startBackup(volume);
    await instance.waitFor(() => calls.stalled() > 0, { what: "a call stands still", everyMs: 20 });
    const reset = await instance.request("POST", `/v3/00000000000000000000000000000001/backups/${backup}/action`, {
      "os-reset_status": { status: "error" },
    });
    expect(reset.status, reset.text).toBe(202);
    await instance.startWorker();
    await instance.waitFor(
      async () => (await instance.sql("SELECT 1 FROM tasks WHERE state = 'running'")).length === 0,
      { what: "nobody holds the task any more" },
    );
    calls.release();
    await user.expectQuiet();
  });
});
