import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { crashAt } from "../../kit/crash-at.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, writeIslands } from "../../kit/journey.ts";

const base = `/v3/${project}`;
const MiB = 1024 * 1024;
const sizeBytes = 5 * MiB + 321;

const brisk = {
  config: {
    range_bytes: 1 * MiB,
    worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
    reaper: { interval_hours: null, grace_minutes: 0 },
  },
  repository: { object_bytes: 256 * 1024, compression: "off" },
};

/** A chain of a full backup and an incremental one; the id of the newest, and of its parent. */
async function makeChain(instance: Instance, user: Journey) {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, sizeBytes, [
    { offset: 0, data: randomBytesOf("disk", 2 * MiB) },
    { offset: 3 * MiB, data: randomBytesOf("more", 2 * MiB) },
  ]);
  const volume = await user.importVolume(image);
  const full = await user.backUp(volume);
  await writeIslands(user.volumeFile(volume), null, [{ offset: MiB, data: randomBytesOf("change", 100_000) }]);
  return { full, newest: await user.backUp(volume, { incremental: true }) };
}

async function startDrill(user: Journey, id: string): Promise<string> {
  const { operation } = await user.accepted("POST", `/ops/backups/${id}/verify`, { mode: "drill" });
  return operation.id as string;
}

async function ended(instance: Instance, id: string) {
  return instance.waitFor(
    async () => {
      const { body } = await instance.request("GET", `/ops/operations/${id}`);
      return ["succeeded", "failed", "cancelled"].includes(body.operation.state) && body.operation;
    },
    { what: `operation ${id} has ended`, timeoutMs: 90_000 },
  );
}

/** Every file beside the volumes. */
const strangers = (instance: Instance): string[] =>
  readdirSync(instance.volumesDir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !entry.name.startsWith("volume-"))
    .map((entry) => entry.name);

const seenByProject = async (user: Journey) => ({
  volumes: (await user.get(`${base}/volumes`)).volumes.length,
  limits: (await user.get(`${base}/limits`)).limits.absolute,
});

/** Leaves a drill half done: a worker that died as it had begun to write. */
async function breakOff(instance: Instance, user: Journey, id: string): Promise<string> {
  for (const worker of instance.workers) await worker.stop();
  const operation = await startDrill(user, id);
  const doomed = await instance.startWorker(crashAt("verify:4"));
  await instance.waitFor(() => !doomed.running(), { what: "the worker died in the drill", timeoutMs: 60_000 });
  expect(strangers(instance)).toEqual([`.restore-${operation}-1`]);
  return operation;
}

describe("a drill", () => {
  it("outlives a worker killed in the middle, restores every block, and neither shows nor counts nor leaves anything", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { newest } = await makeChain(instance, user);
    const before = await seenByProject(user);
    const operation = await breakOff(instance, user, newest);
    expect(await seenByProject(user)).toEqual(before);
    await instance.startWorker();
    const { state, result } = await ended(instance, operation);
    expect([state, result.verify]).toEqual([
      "succeeded",
      expect.objectContaining({ id: newest, mode: "drill", damaged: [], blocks: Math.ceil(sizeBytes / 32_768) }),
    ]);
    expect((await user.get(`/ops/backups/${newest}`)).backup).toMatchObject({ verified_mode: "drill", damage: null });
    const [{ stored }] = await instance.sql(
      "SELECT count(*)::int AS stored FROM tasks WHERE kind = 'verify' AND state = 'succeeded'",
    );
    expect(stored).toBeGreaterThanOrEqual(5);
    await user.expectQuiet();
    expect(strangers(instance)).toEqual([]);
    expect(readdirSync(join(instance.repositoryDir, ".tephra")).sort()).toEqual(["repository.json", "tmp"]);
    expect(await seenByProject(user)).toEqual(before);
  });

  it("names what is damaged, marks whose it is, and leaves nothing", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { full, newest } = await makeChain(instance, user);
    const folder = join(instance.repositoryDir, full.slice(0, 2), full.slice(2, 4), full);
    const object = readdirSync(folder).find((name) => name.endsWith("-00002")) ?? "";
    const bytes = readFileSync(join(folder, object));
    bytes[100] = (bytes[100] as number) ^ 1;
    writeFileSync(join(folder, object), bytes);
    const { state, result } = await ended(instance, await startDrill(user, newest));
    expect(state).toBe("succeeded");
    expect(result.verify.damaged).toEqual([{ object, reason: "the MD5 does not match" }]);
    expect((await user.get(`/ops/backups/${full}`)).backup.damage).toContain(object);
    await user.expectQuiet();
    expect(strangers(instance)).toEqual([]);
  });

  it("that is broken off by the deletion of its backup leaves nothing", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { newest } = await makeChain(instance, user);
    const operation = await breakOff(instance, user, newest);
    await user.accepted("DELETE", `${base}/backups/${newest}`);
    await instance.startWorker();
    expect((await ended(instance, operation)).state).toBe("cancelled");
    await user.expectQuiet();
    expect(strangers(instance)).toEqual([]);
  });

  it("that nothing knows of any more is removed by the reaper", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { newest } = await makeChain(instance, user);
    const operation = await breakOff(instance, user, newest);
    await instance.sql("DELETE FROM operations WHERE id = $1", [operation]);
    await instance.startWorker();
    const { operation: reap } = await user.accepted("POST", "/ops/repositories/main/reap", { dry_run: false });
    expect((await ended(instance, reap.id)).result.removed).toMatchObject({ private: 1 });
    expect(strangers(instance)).toEqual([]);
  });
});
