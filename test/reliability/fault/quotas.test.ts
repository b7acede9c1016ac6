import { randomBytes } from "node:crypto";
import { expect, it } from "vitest";
import { type Instance, type Reply, startInstance } from "../../kit/instance.ts";
import { journeyOn, project } from "../../kit/journey.ts";
import { Random } from "../fuzz/random.ts";
import { pause } from "./model.ts";

const base = `/v3/${project}`;
const limits = { volumes: 9, snapshots: 4, gigabytes: 14, backups: 5, backup_gigabytes: 6 };
const config = {
  quotas: limits,
  worker: { slots: 2, lease_ms: 1_500, heartbeat_ms: 300, drain_ms: 500 },
  tasks: { reconcile_ms: 300, dispatch_timeout_ms: 2_000, backoff_ms: 100 },
};
/** Set TEPHRA_TEST_SEED to repeat a run. */
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? randomBytes(4).readUInt32LE());
const actors = 6;
const actionsEach = 25;
const kills = 6;

/** What the rows of a project add up to, in the resources that quotas count. What a volume grows by counts from the request on. */
const counted = `SELECT
  (SELECT count(*)::int FROM volumes) AS volumes,
  (SELECT count(*)::int FROM snapshots) AS snapshots,
  (SELECT coalesce(sum(size_gib), 0)::int FROM volumes) + (SELECT coalesce(sum(size_gib), 0)::int FROM snapshots)
    + (SELECT coalesce(sum((input ->> 'addedGib')::int), 0)::int FROM operations WHERE kind = 'volume-extend' AND state IN ('queued', 'running')) AS gigabytes,
  (SELECT count(*)::int FROM backups WHERE deleted_at IS NULL) AS backups,
  (SELECT coalesce(sum(size_gib), 0)::int FROM backups WHERE deleted_at IS NULL) AS backup_gigabytes,
  (SELECT count(*)::int FROM groups WHERE instance_id IS NULL) AS groups`;
const used = `SELECT volumes_used AS volumes, snapshots_used AS snapshots, gigabytes_used AS gigabytes, backups_used AS backups,
  backup_gigabytes_used AS backup_gigabytes, groups_used AS groups FROM quotas`;

const newest = { "openstack-api-version": "volume 3.71" };

/** In one statement, so that both are of the same moment. */
async function compareQuota(instance: Instance): Promise<void> {
  const [row] = await instance.sql(
    `SELECT to_jsonb(c) AS counted, to_jsonb(u) AS used FROM (${counted}) c, (${used}) u`,
  );
  if (row === undefined) return;
  expect(row.used, `seed ${seed}`).toEqual(row.counted);
  for (const [resource, limit] of Object.entries(limits)) {
    expect(row.used[resource], `${resource}, seed ${seed}`).toBeLessThanOrEqual(limit);
  }
}

const pick = <T>(random: Random, items: readonly T[]): T | undefined => items[random.below(items.length || 1)];

/** One thing that a user might do, with whatever is there. Returns the status, or null when the service was taken away meanwhile. */
async function act(instance: Instance, random: Random): Promise<number | null> {
  const ids = async (table: "volumes" | "snapshots" | "backups" | "groups" | "group_snapshots") =>
    (await instance.sql(`SELECT id FROM ${table}`)).map((row) => row.id as string);
  const volume = pick(random, await ids("volumes"));
  const backup = pick(random, await ids("backups"));
  const snapshot = pick(random, await ids("snapshots"));
  const group = pick(random, await ids("groups"));
  const taken = pick(random, await ids("group_snapshots"));
  const reset = { "os-reset_status": { status: pick(random, ["available", "error"]) } };
  const requests: readonly [string, string, unknown?][] = [
    ["POST", "/volumes", { volume: { size: 1 + random.below(3) } }],
    ["POST", "/volumes", { volume: { size: 1 } }],
    ["POST", "/volumes", { volume: { size: 1 } }],
    ["POST", "/backups", { backup: { volume_id: volume, force: true } }],
    ["POST", "/snapshots", { snapshot: { volume_id: volume, force: true } }],
    ["POST", "/backups", { backup: { volume_id: volume, force: true } }],
    ["POST", "/backups", { backup: { volume_id: volume, incremental: true } }],
    ["POST", `/backups/${backup}/restore`, { restore: {} }],
    ["POST", `/volumes/${volume}/action`, { "os-extend": { new_size: 2 + random.below(2) } }],
    ["DELETE", `/volumes/${volume}`],
    ["DELETE", `/volumes/${volume}?cascade=true`],
    ["DELETE", `/snapshots/${snapshot}`],
    ["DELETE", `/backups/${backup}`],
    ["POST", `/backups/${backup}/action`, { "os-force_delete": null }],
    ["POST", `/volumes/${volume}/action`, { "os-force_delete": null }],
    ["POST", `/snapshots/${snapshot}/action`, { "os-force_delete": null }],
    ["POST", `/backups/${backup}/action`, reset],
    ["POST", `/volumes/${volume}/action`, reset],
    ["POST", `/snapshots/${snapshot}/action`, reset],
    ["POST", "/groups", { group: { group_type: "several", volume_types: ["__DEFAULT__"] } }],
    ["PUT", `/groups/${group}`, { group: { add_volumes: volume } }],
    ["POST", "/group_snapshots", { group_snapshot: { group_id: group } }],
    ["POST", "/groups/action", { "create-from-src": { group_snapshot_id: taken } }],
    ["DELETE", `/group_snapshots/${taken}`],
    ["POST", `/group_snapshots/${taken}/action`, { reset_status: { status: "error" } }],
    ["POST", `/groups/${group}/action`, { delete: {} }],
  ];
  const [method, path, body] = pick(random, requests) ?? ["GET", "/limits"];
  const reply: Reply | null = await instance.request(method, base + path, body, newest).catch(() => null);
  return reply?.status ?? null;
}

it(`counts exactly what there is while many ask at once and processes are killed (seed ${seed})`, {
  timeout: 240_000,
}, async () => {
  await using instance = await startInstance({ workers: 2, config });
  const type = { group_type: { name: "several" } };
  expect((await instance.request("POST", `${base}/group_types`, type, newest)).status).toBe(202);
  const statuses = new Map<number, number>();
  let answered = 0;
  let broken = 0;
  const actor = async (index: number): Promise<void> => {
    const random = new Random(Math.imul(seed + index, 2654435761));
    for (let left = actionsEach; left > 0; ) {
      const status = await act(instance, random);
      await compareQuota(instance);
      if (status === null) {
        broken += 1;
        // The API is being replaced: asking again at once would only burn the processor it starts on.
        await pause(100);
        continue;
      }
      left -= 1;
      answered += 1;
      statuses.set(status, (statuses.get(status) ?? 0) + 1);
    }
  };
  /** Takes the API and a worker away, in turn, while requests are under way, and starts another. */
  const killer = async (): Promise<void> => {
    for (let kill = 1; kill <= kills; kill += 1) {
      const turn = (actors * actionsEach * kill) / (kills + 1);
      await instance.waitFor(() => answered >= turn, { what: `${turn} answers`, everyMs: 5, timeoutMs: 120_000 });
      if (kill % 2 === 1) {
        await instance.killApi();
        await instance.startApi();
      } else {
        instance.workers.find((worker) => worker.running())?.kill("SIGKILL");
        await instance.startWorker();
      }
    }
  };
  await Promise.all([...Array.from({ length: actors }, (_, i) => actor(i)), killer()]);
  const summary = [...statuses].sort(([x], [y]) => x - y).map(([status, times]) => `${times} × ${status}`);
  process.stdout.write(`quotas, seed ${seed}: ${summary.join(", ")}, ${broken} without an answer\n`);
  expect(statuses.get(202) ?? 0, "accepted").toBeGreaterThan(10);
  expect(Math.max(...statuses.keys()), "the highest status").toBeLessThan(500);
  await journeyOn(instance).expectQuiet();
  await compareQuota(instance);

  // Whether chance came to a limit or not: what is left can be used up, and no more.
  const [left] = await instance.sql(
    `SELECT least(${limits.volumes} - volumes_used, ${limits.gigabytes} - gigabytes_used)::int AS volumes FROM quotas`,
  );
  for (let more = left?.volumes; more >= 0; more -= 1) {
    const { status } = await instance.request("POST", `${base}/volumes`, { volume: { size: 1 } }, newest);
    expect(status, `with room for ${more} more, seed ${seed}`).toBe(more > 0 ? 202 : 413);
  }
  await journeyOn(instance).expectQuiet();
  await compareQuota(instance);
});
