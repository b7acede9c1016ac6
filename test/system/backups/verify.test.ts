import { readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { crashAt } from "../../kit/crash-at.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const base = `/v3/${project}`;
const MiB = 1024 * 1024;

const brisk = {
  config: {
    range_bytes: 1 * MiB,
    worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
  },
  repository: { object_bytes: 256 * 1024, compression: "off" },
};

interface Chain {
  volume: string;
  /** Oldest first. */
  backups: string[];
  sha256: string;
}

/** A volume of 9 MiB, backed up as often as asked; each incremental changes a little. */
async function makeChain(instance: Instance, user: Journey, length: number): Promise<Chain> {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 9 * MiB + 321, [{ offset: 0, data: randomBytesOf("disk", 8 * MiB) }]);
  const volume = await user.importVolume(image);
  const backups: string[] = [];
  for (let i = 0; i < length; i += 1) {
    const change = { offset: (i + 1) * MiB + 17, data: randomBytesOf(`change ${i}`, 100_000) };
    await writeIslands(user.volumeFile(volume), null, [change]);
    backups.push(await user.backUp(volume, { incremental: i > 0 }));
  }
  return { volume, backups, sha256: await sha256Of(user.volumeFile(volume)) };
}

const folderOf = (instance: Instance, id: string) => join(instance.repositoryDir, id.slice(0, 2), id.slice(2, 4), id);

const objectsOf = (instance: Instance, id: string) => readdirSync(folderOf(instance, id)).sort();

/** Flips one bit in the middle of an object; a second flip mends it. */
function flip(instance: Instance, id: string, object: string): void {
  const path = join(folderOf(instance, id), object);
  const bytes = readFileSync(path);
  const at = Math.floor(bytes.length / 2);
  bytes[at] = (bytes[at] as number) ^ 1;
  writeFileSync(path, bytes);
}

async function ended(instance: Instance, id: string, state = "succeeded") {
  const operation = await instance.waitFor(
    async () => {
      const { body } = await instance.request("GET", `/ops/operations/${id}`);
      return ["succeeded", "failed", "cancelled"].includes(body.operation.state) && body.operation;
    },
    { what: `operation ${id} has ended`, timeoutMs: 60_000 },
  );
  expect(operation.state, operation.fail_reason).toBe(state);
  return operation;
}

async function verify(instance: Instance, user: Journey, id: string, mode: "quick" | "deep" = "deep") {
  const { operation } = await user.accepted("POST", `/ops/backups/${id}/verify`, { mode });
  return (await ended(instance, operation.id)).result.verify;
}

const health = async (user: Journey, id: string) => (await user.get(`/ops/backups/${id}`)).backup;

const incremental = (instance: Instance, volume: string) =>
  instance.request("POST", `${base}/backups`, { backup: { volume_id: volume, incremental: true } });

describe("a verification", () => {
  it("of a sound chain finds nothing, in ranges that both workers take, and says when it was", async () => {
    await using instance = await startInstance({ workers: 2, ...brisk });
    const user = journeyOn(instance);
    const { backups } = await makeChain(instance, user, 2);
    const [full = "", newest = ""] = backups;
    const quick = await verify(instance, user, full, "quick");
    expect(quick).toMatchObject({ id: full, mode: "quick", blocks: 0, damaged: [], affected: [] });
    expect(await health(user, full)).toMatchObject({ verified_mode: "quick", damage: null, damaged_parents: [] });
    const deep = await verify(instance, user, newest);
    expect(deep).toMatchObject({ id: newest, mode: "deep", damaged: [], blocks: Math.ceil((9 * MiB + 321) / 32_768) });
    expect((await health(user, newest)).verified_at).toMatch(/^\d{4}-/);
    const ranges = () =>
      instance.sql(
        `SELECT t.worker_id, t.bytes_done::float AS bytes FROM tasks t JOIN operations o ON o.id = t.operation_id
         WHERE o.backup_id = $1 AND t.kind = 'verify'`,
        [newest],
      );
    const tasks = await ranges();
    expect(tasks.length).toBeGreaterThanOrEqual(8);
    expect(tasks.reduce((sum, task) => sum + task.bytes, 0)).toBe(9 * MiB + 321);
    // On a busy machine one of them may be asleep for the whole of a verification.
    const workers = async () => new Set((await ranges()).map((task) => task.worker_id)).size;
    for (let more = 0; more < 5 && (await workers()) < 2; more += 1) await verify(instance, user, newest);
    expect(await workers()).toBe(2);
    await user.expectQuiet();
    expect(readdirSync(join(instance.repositoryDir, ".tephra")).sort()).toEqual(["repository.json", "tmp"]);
  });

  it("finds every damaged object, marks its backup alone, flags what builds on it, and is heard of", async () => {
    await using instance = await startInstance({ workers: 2, ...brisk });
    const user = journeyOn(instance);
    const { volume, backups } = await makeChain(instance, user, 3);
    const [full = "", middle = "", newest = ""] = backups;
    const data = objectsOf(instance, full).filter((name) => /-\d{5}$/.test(name));
    // Those that no later backup has covered.
    const chosen = [data[0], data[18], data[28]].map(String);
    for (const object of chosen) flip(instance, full, object);
    expect((await verify(instance, user, newest, "quick")).damaged).toEqual([]);
    const found = await verify(instance, user, newest);
    expect(found.damaged.map((each: { object: string }) => each.object).sort()).toEqual(chosen);
    expect(found.affected.sort()).toEqual([middle, newest].sort());
    expect((await health(user, full)).damage).toContain(`${chosen[0]}: `);
    for (const id of [middle, newest]) {
      const { damage, damaged_parents } = await health(user, id);
      expect([damage, damaged_parents.map((parent: { id: string }) => parent.id)]).toEqual([null, [full]]);
    }
    const refused = await incremental(instance, volume);
    expect([refused.status, refused.body.badRequest.message]).toEqual([
      400,
      "Invalid backup: No backups available to do an incremental backup.",
    ]);
    const asked = await instance.request("GET", `${base}/messages?resource_uuid=${newest}`, undefined, {
      "openstack-api-version": "volume 3.5",
    });
    expect(asked.body.messages).toMatchObject([{ event_id: "VOLUME_VOLUME_BACKUP_900_900", message_level: "ERROR" }]);
    const told = await instance.sql(
      "SELECT payload FROM notifications WHERE event_type = 'backup.verify.end' ORDER BY sequence",
    );
    expect(told.at(-1).payload).toMatchObject({ backup_id: newest, mode: "deep", damaged: 3 });

    // A new full backup heals the volume: the next incremental builds on it.
    const healed = await user.backUp(volume);
    const { body } = await incremental(instance, volume);
    const [row] = await instance.sql("SELECT parent_id FROM backups WHERE id = $1", [body.backup.id]);
    expect(row.parent_id).toBe(healed);
    await user.settled("backups", body.backup.id, "available");

    // Mended objects: only a deep verification of the backup itself takes its mark off.
    for (const object of chosen) flip(instance, full, object);
    expect((await verify(instance, user, full, "quick")).damaged).toEqual([]);
    expect((await verify(instance, user, newest)).damaged).toEqual([]);
    expect((await health(user, full)).damage).not.toBeNull();
    expect((await verify(instance, user, full)).damaged).toEqual([]);
    expect((await health(user, newest)).damaged_parents).toEqual([]);
    await user.expectQuiet();
  });

  it("that found damage makes the next incremental build on an older sound backup", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { volume, backups } = await makeChain(instance, user, 1);
    const damaged = await user.backUp(volume);
    flip(instance, damaged, objectsOf(instance, damaged)[2] ?? "");
    expect((await verify(instance, user, damaged)).damaged).toHaveLength(1);
    const { status, body } = await incremental(instance, volume);
    expect(status, JSON.stringify(body)).toBe(202);
    const [row] = await instance.sql("SELECT parent_id FROM backups WHERE id = $1", [body.backup.id]);
    expect(row.parent_id).toBe(backups[0]);
    await user.settled("backups", body.backup.id, "available");
  });

  it("finds damage of every class of object, and names it", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { backups } = await makeChain(instance, user, 2);
    const [full = "", newest = ""] = backups;
    const metadata = objectsOf(instance, full).find((name) => name.endsWith("_metadata")) ?? "";
    const prefix = metadata.slice(0, -"_metadata".length);
    const newestPrefix = prefix.replace(full, newest).replace(/_\d{14}_/, "_");
    const hashes = objectsOf(instance, newest).find((name) => name.endsWith("_sha256file")) ?? "";
    expect(hashes.replace(/_\d{14}_/, "_")).toBe(`${newestPrefix}_sha256file`);
    for (const [owner, object] of [
      [full, metadata],
      [newest, hashes],
      [newest, objectsOf(instance, newest)[0] ?? ""],
    ] as const) {
      flip(instance, owner, object);
      const { damaged } = await verify(instance, user, newest);
      expect(damaged.map((each: { object: string }) => each.object)).toContain(object);
      expect((await health(user, owner)).damage).toContain(object);
      flip(instance, owner, object);
      expect((await verify(instance, user, full)).damaged).toEqual([]);
      expect((await verify(instance, user, newest)).damaged).toEqual([]);
    }
    const missing = join(folderOf(instance, full), `${prefix}-00002`);
    renameSync(missing, join(instance.dataDir, "aside"));
    for (const mode of ["quick", "deep"] as const) {
      const { damaged } = await verify(instance, user, newest, mode);
      expect(damaged).toEqual([{ object: `${prefix}-00002`, reason: "it is missing" }]);
    }
    renameSync(join(instance.dataDir, "aside"), missing);
    expect((await verify(instance, user, full)).damaged).toEqual([]);
  });

  it("makes a backup that a restore found damaged available again once it is mended", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { backups, sha256 } = await makeChain(instance, user, 1);
    const [full = ""] = backups;
    const object = objectsOf(instance, full)[3] ?? "";
    flip(instance, full, object);
    const target = await user.startRestore(full);
    await user.settled("volumes", target, "error_restoring");
    await user.settled("backups", full, "error_restoring");
    expect((await verify(instance, user, full)).damaged).toHaveLength(1);
    await user.settled("backups", full, "error_restoring");
    flip(instance, full, object);
    expect((await verify(instance, user, full)).damaged).toEqual([]);
    await user.settled("backups", full, "available");
    await user.expectExact(full, sha256);
  });

  it("outlives the workers that it loses", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { backups } = await makeChain(instance, user, 1);
    const [full = ""] = backups;
    const damagedObject = objectsOf(instance, full)[5] ?? "";
    flip(instance, full, damagedObject);
    await instance.workers[0]?.stop();
    const { operation } = await user.accepted("POST", `/ops/backups/${full}/verify`, { mode: "deep" });
    for (const point of ["plan-verify:1", "verify.claimed:2", "conclude-verify.claimed:1"]) {
      const doomed = await instance.startWorker(crashAt(point));
      await instance.waitFor(() => !doomed.running(), { what: `the worker died at ${point}`, timeoutMs: 30_000 });
    }
    await instance.startWorker();
    const { result } = await ended(instance, operation.id);
    expect(result.verify.damaged.map((each: { object: string }) => each.object)).toEqual([damagedObject]);
    await user.expectQuiet();
  });

  it("ends when its backup is deleted, and marks nothing", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { backups } = await makeChain(instance, user, 1);
    const [full = ""] = backups;
    await instance.workers[0]?.stop();
    const { operation } = await user.accepted("POST", `/ops/backups/${full}/verify`, { mode: "deep" });
    const doomed = await instance.startWorker(crashAt("verify.claimed:2"));
    await instance.waitFor(() => !doomed.running(), { what: "the worker died" });
    await user.accepted("DELETE", `${base}/backups/${full}`);
    await instance.startWorker();
    expect((await ended(instance, operation.id, "cancelled")).fail_reason).toBe("The backup was deleted.");
    await user.expectQuiet();
    const [row] = await instance.sql("SELECT status, damage FROM backups WHERE id = $1", [full]);
    expect(row).toEqual({ status: "deleted", damage: null });
    expect(readdirSync(join(instance.repositoryDir, ".tephra")).sort()).toEqual(["repository.json", "tmp"]);
  });

  it.each(["quick", "drill"])(
    "is begun by the schedule for a sample, the longest unverified first: %s",
    async (mode) => {
      const interval = 3 / 3600;
      const verification = { interval_hours: interval, sample_percent: 34, mode };
      await using instance = await startInstance({
        workers: 1,
        ...brisk,
        config: { ...brisk.config, verify: verification },
      });
      const user = journeyOn(instance);
      const { backups } = await makeChain(instance, user, 4);
      await instance.waitFor(
        async () => {
          const [row] = await instance.sql("SELECT count(*)::int AS n FROM backups WHERE verified_mode = $1", [mode]);
          return row.n === 4;
        },
        { what: "every backup was verified", timeoutMs: 60_000 },
      );
      const runs = await instance.sql(
        `SELECT date_trunc('milliseconds', created_at) AS at, count(*)::int AS n, min(user_id) AS "user" FROM operations
       WHERE kind = 'backup-verify' GROUP BY 1 ORDER BY 1`,
      );
      expect(Math.max(...runs.map((run) => run.n))).toBe(Math.ceil(backups.length * 0.34));
      expect(runs[0].user).toBe("system");
    },
  );
});
