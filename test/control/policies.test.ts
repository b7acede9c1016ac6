import { createHash, randomUUID } from "node:crypto";
import {
  assignPolicy,
  type Config,
  createPolicy,
  type Database,
  getRun,
  listRuns,
  type PolicyRow,
  runPolicy,
  setQuota,
  updatePolicy,
} from "@tephra/control";
import { beginTerm, openLog, openMetrics, reconcile } from "@tephra/control/process";
import { publishWorker, withdrawWorker } from "@tephra/control/work";
import pg from "pg";
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { openControl } from "../kit/control-database.ts";
import { waitFor } from "../kit/wait-for.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;
beforeAll(async () => {
  const opened = await openControl(stack);
  database = opened.database;
  // A worker that has been published stays one, however long a test takes.
  config = { ...opened.config, worker: { ...opened.config.worker, down_ms: 3_600_000 } };
});
afterAll(() => stack.disposeAsync());

const principal = { userId: "u", projectId: "p", roles: ["admin"] as const, isAdmin: true, requestId: "req-test" };
const log = openLog({ log_level: "silent", hostName: "test" }, "test");
const worker = { id: "w", host: "h", pid: 1, slots: 1, unreachable: {}, reaches: ["backend:files", "repository:main"] };

beforeEach(async () => {
  await database.policy.deleteMany();
  await database.operation.deleteMany();
  await database.backup.deleteMany();
  await database.volume.deleteMany();
  await database.counter.deleteMany();
  await database.notification.deleteMany();
  await database.quota.deleteMany();
  await setQuota(database, config, "p", { backups: -1, backup_gigabytes: -1 });
  await publishWorker(database, worker);
});

const pass = (more: { afterOutage?: boolean } = {}) =>
  reconcile({ database, config, log, afterOutage: false, term: beginTerm(), ...more });

async function addVolume(more: object = {}): Promise<string> {
  const id = randomUUID();
  const owner = { projectId: "p", userId: "u", sizeGib: 1, sizeBytes: 4096n, backend: "files" };
  await database.volume.create({ data: { ...owner, id, status: "available", availabilityZone: "nova", ...more } });
  return id;
}

/** A policy of the project that applies to all its volumes. Nobody has a name of it, so that there may be several. */
async function addPolicy(
  more: { cron?: string; windowMinutes?: number; jitterMinutes?: number } & Partial<PolicyRow> = {},
) {
  const { cron = "0 2 * * *", windowMinutes = 60, jitterMinutes = 0, ...rules } = more;
  const schedule = { cron, timezone: "UTC", window_minutes: windowMinutes, jitter_minutes: jitterMinutes };
  const policy = await createPolicy(database, config, principal, {
    ...{
      projectId: "p",
      name: randomUUID(),
      description: null,
      enabled: true,
      kind: { full_every: 7 },
      retention: null,
    },
    ...{ squash: null, repository: null, force: true, priority: "normal", verify: null, targetHours: null },
    ...rules,
    schedule,
  });
  await assignPolicy(database, principal, policy.id, { projectId: "p" });
  return policy;
}

const clock = async (): Promise<Date> => {
  const [row] = await database.$queryRaw<{ now: Date }[]>`SELECT now() AS now`;
  return (row as { now: Date }).now;
};

/** Makes the policy due at a time of the past; by default, a second ago. */
async function makeDue(id: string, at?: Date): Promise<Date> {
  const nextAt = at ?? new Date((await clock()).getTime() - 1_000);
  await database.policy.update({ where: { id }, data: { nextAt } });
  return nextAt;
}

const runsOf = (policyId: string) => listRuns(database, principal, { policyId, limit: 1_000 });
const itemsOf = async (policyId: string, runId: string) =>
  (await getRun(database, principal, { policyId, runId, limit: 1_000 })).items;
const nextOf = async (id: string) => (await database.policy.findUniqueOrThrow({ where: { id } })).nextAt as Date;

/** Every operation that is live ends, as a worker would leave it; backups become available, or what is said of them. */
async function endOperations(state: "succeeded" | "failed" = "succeeded", reason: string | null = null): Promise<void> {
  await database.$executeRaw`UPDATE operations SET state = ${state}, fail_reason = ${reason}, finished_at = now() WHERE finished_at IS NULL`;
  await database.$executeRaw`UPDATE tasks SET state = 'done'`;
  await database.$executeRaw`
    UPDATE backups SET status = ${state === "succeeded" ? "available" : "error"}, service_metadata = id::text, container = 'c' WHERE status = 'creating'`;
  await database.$executeRaw`UPDATE volumes SET status = previous_status WHERE status = 'backing-up'`;
}

const toldOf = async (): Promise<string[]> =>
  (await database.notification.findMany({ orderBy: { sequence: "asc" } }))
    .map(({ eventType }) => eventType)
    .filter((type) => type.startsWith("policy."));
const counted = async () =>
  Object.fromEntries(
    (await database.counter.findMany({ where: { name: "policy_runs" } })).map(({ label, value }) => [
      label,
      Number(value),
    ]),
  );

describe("a run that is due", () => {
  it("begins once, whichever of several reconcilers finds it, and so do its backups", async () => {
    const volumes = [await addVolume(), await addVolume(), await addVolume()];
    const policy = await addPolicy();
    const dues: number[] = [];
    for (let round = 0; round < 10; round += 1) {
      dues.push((await makeDue(policy.id)).getTime());
      await Promise.all([pass(), pass(), pass()]);
      await endOperations();
      await Promise.all([pass(), pass(), pass()]);
    }
    const runs = await runsOf(policy.id);
    expect(runs.map(({ dueAt }) => dueAt.getTime()).reverse()).toEqual(dues);
    for (const run of runs) expect(run).toMatchObject({ state: "ran", items: { succeeded: 3 } });
    expect(await database.backup.count()).toBe(10 * volumes.length);
    expect(await database.backup.count({ where: { policyId: policy.id } })).toBe(10 * volumes.length);
    expect(await database.operation.count({ where: { policyId: policy.id } })).toBe(10 * volumes.length);
    expect(await counted()).toEqual({ succeeded: 10 });
    expect(await toldOf()).toEqual(Array(10).fill(["policy.run.start", "policy.run.end"]).flat());
    const metrics = await openMetrics(database, config).render();
    expect(metrics).toContain('tephra_policy_runs_total{outcome="succeeded"} 10');
    expect(metrics).toContain(`tephra_policy_next_run_timestamp ${(await nextOf(policy.id)).getTime() / 1_000}`);
  });

  it("moves the time of the next one, which is the schedule's next after now", async () => {
    const policy = await addPolicy({ cron: "30 4 * * *" });
    const before = policy.nextAt;
    await makeDue(policy.id);
    await pass();
    expect(await nextOf(policy.id)).toEqual(before);
    expect(await runsOf(policy.id)).toMatchObject([
      { state: "ran", items: { waiting: 0, running: 0 }, operationId: null },
    ]);
  });

  it("begins no item again that somebody else has begun meanwhile, though its volume is free again", async () => {
    await addVolume();
    const policy = await addPolicy();
    const id = await runPolicy(database, config, principal, policy.id);
    const other = new pg.Client({ connectionString: config.database_url });
    await other.connect();
    try {
      await other.query("BEGIN");
      await other.query("UPDATE policy_run_items SET state = 'succeeded' WHERE run_id = $1", [id]);
      const passing = pass();
      // It has found the item before, and now waits for whoever has begun it.
      const waits = `SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%policy_run_items%' AND datname = current_database()`;
      await waitFor(async () => (await database.$queryRawUnsafe<unknown[]>(waits)).length > 0, {
        what: "the pass waits",
      });
      await other.query("COMMIT");
      await passing;
    } finally {
      await other.end();
    }
    expect(await database.backup.count()).toBe(0);
    expect((await itemsOf(policy.id, id))[0]).toMatchObject({ state: "succeeded", operationId: null });
  });

  it("does not begin again at a time that comes twice, since the clock was set back", async () => {
    await addVolume();
    const policy = await addPolicy();
    const due = await makeDue(policy.id);
    await pass();
    await endOperations();
    await pass();
    await makeDue(policy.id, due);
    await pass();
    await pass();
    expect(await runsOf(policy.id)).toHaveLength(1);
    expect(await database.backup.count()).toBe(1);
    expect((await nextOf(policy.id)) > due).toBe(true);
  });

  it("is looked up again once the clock was set back that had said when it is", async () => {
    const volume = await addVolume();
    const policy = await addPolicy({ jitterMinutes: 30 });
    await makeDue(policy.id);
    await pass();
    await database.$executeRaw`UPDATE policies SET next_at = now() + interval '300 days'`;
    await database.$executeRaw`
      UPDATE policy_runs SET started_at = started_at + interval '299 days', window_end = window_end + interval '299 days'`;
    await database.$executeRaw`UPDATE policy_run_items SET state = 'waiting', starts_at = now() + interval '299 days'`;
    await pass();
    expect((await nextOf(policy.id)).getTime() - (await clock()).getTime()).toBeGreaterThan(86_400_000);
    await pass({ afterOutage: true });
    expect((await nextOf(policy.id)).getTime() - (await clock()).getTime()).toBeLessThanOrEqual(86_400_000);
    const [run] = await runsOf(policy.id);
    expect((await itemsOf(policy.id, run?.id ?? ""))[0]).toMatchObject({ volumeId: volume, state: "running" });
  });

  it("is begun by hand, too, of a policy that is off", async () => {
    await addVolume();
    const policy = await addPolicy({ enabled: false });
    const id = await runPolicy(database, config, principal, policy.id);
    await pass();
    expect(await runsOf(policy.id)).toMatchObject([{ id, scheduled: false, userId: "u", items: { running: 1 } }]);
    expect(policy.nextAt).toBeNull();
  });
});

describe("a run that nobody was there for", () => {
  /** Half an hour from now or before: no test is near a time of it. */
  const halfPast = async (): Promise<string> => `${((await clock()).getUTCMinutes() + 30) % 60} * * * *`;
  const hourMs = 3_600_000;

  it("is made up for once, and late, and the others are missed", async () => {
    await addVolume();
    const policy = await addPolicy({ cron: await halfPast(), windowMinutes: 30 });
    const last = new Date((await nextOf(policy.id)).getTime() - hourMs);
    await makeDue(policy.id, new Date(last.getTime() - 5 * hourMs));
    await pass();
    await pass();
    const runs = await runsOf(policy.id);
    expect(runs.map(({ state }) => state)).toEqual(["late", ...Array(5).fill("missed")]);
    expect(runs.map(({ dueAt }) => last.getTime() - dueAt.getTime())).toEqual(
      [0, 1, 2, 3, 4, 5].map((n) => n * hourMs),
    );
    expect(runs.every(({ reason }) => reason?.startsWith("No worker was alive"))).toBe(true);
    const [late, missed] = runs;
    expect((late?.windowEnd?.getTime() ?? 0) - (late?.startedAt?.getTime() ?? 0)).toBeGreaterThan(29 * 60_000);
    expect(missed).toMatchObject({ startedAt: null, items: { waiting: 0 } });
    expect(await toldOf()).toEqual(["policy.missed", "policy.run.start"]);
    await endOperations();
    await pass();
    expect(await counted()).toEqual({ missed: 5, late: 1 });
    expect(await database.backup.count()).toBe(1);
  });

  it("waits for a worker", async () => {
    await withdrawWorker(database, worker.id);
    await addVolume();
    const policy = await addPolicy({ cron: await halfPast(), windowMinutes: 30 });
    const last = new Date((await nextOf(policy.id)).getTime() - hourMs);
    await makeDue(policy.id, last);
    await pass();
    expect(await runsOf(policy.id)).toEqual([]);
    expect(await nextOf(policy.id)).toEqual(last);
    await publishWorker(database, worker);
    await pass();
    await pass();
    expect(await runsOf(policy.id)).toMatchObject([{ state: "late", dueAt: last, items: { running: 1 } }]);
  });

  it("is skipped while the backups of the one before go on, volume by volume", async () => {
    const slow = await addVolume();
    const policy = await addPolicy();
    await makeDue(policy.id);
    await pass();
    const quick = await addVolume();
    await makeDue(policy.id);
    await pass();
    const [second] = await runsOf(policy.id);
    expect(second).toMatchObject({ state: "ran", items: { running: 1, skipped: 1 } });
    const items = await itemsOf(policy.id, second?.id ?? "");
    expect(items.find(({ volumeId }) => volumeId === slow)).toMatchObject({
      state: "skipped",
      reason: "The backup of an earlier run has not ended.",
    });
    expect(items.find(({ volumeId }) => volumeId === quick)).toMatchObject({ state: "running" });
    await makeDue(policy.id);
    await pass();
    const [third] = await runsOf(policy.id);
    expect(third).toMatchObject({
      state: "skipped",
      reason: "The backups of an earlier run have not ended.",
      items: { skipped: 2 },
    });
    expect(third?.finishedAt).not.toBeNull();
    expect(await toldOf()).toEqual(["policy.run.start", "policy.run.start", "policy.run.skipped"]);
    expect(await counted()).toEqual({ skipped: 1 });
  });
});

describe("what a run verifies", () => {
  const verifications = () =>
    database.operation.findMany({ where: { kind: "backup-verify" }, orderBy: { createdAt: "asc" } });
  /** A pass begins no more than it has time for. */
  const beginAll = async (): Promise<void> => {
    do await pass();
    while ((await database.policyRunItem.count({ where: { state: "waiting" } })) > 0);
  };
  /** A run, from its begin until its backups are done and whatever follows has begun. */
  const run = async (id: string): Promise<void> => {
    await makeDue(id);
    await beginAll();
    await endOperations();
    await Promise.all([pass(), pass()]);
  };

  it("is each backup of every n-th run, once, at low priority, whether or not the run has ended", async () => {
    const volumes = [await addVolume(), await addVolume()];
    const policy = await addPolicy({ verify: { mode: "deep", every: 2, sample: 100 } });
    await run(policy.id);
    expect(await verifications()).toEqual([]);
    await run(policy.id);
    await pass();
    const begun = await verifications();
    const backups = await database.backup.findMany({ orderBy: { createdAt: "desc" }, take: 2 });
    expect(begun.map(({ backupId }) => backupId).sort()).toEqual(backups.map(({ id }) => id).sort());
    expect(begun.map(({ priority, policyId, state }) => [priority, policyId, state])).toEqual(
      volumes.map(() => ["low", policy.id, "queued"]),
    );
    expect(begun[0]?.input).toMatchObject({ mode: "deep" });
    await endOperations();
    await run(policy.id);
    expect(await verifications()).toHaveLength(2);
    await run(policy.id);
    expect(await verifications()).toHaveLength(4);
  });

  it("is a sample of what it backs up, and nothing that has failed or that the policy does not name any more", async () => {
    for (let n = 0; n < 20; n += 1) await addVolume();
    const policy = await addPolicy({ verify: { mode: "quick", every: 1, sample: 50 } });
    await makeDue(policy.id);
    await beginAll();
    const items = await database.policyRunItem.findMany();
    const isDrawn = ({ runId, volumeId }: { runId: string; volumeId: string | null }): boolean =>
      Number.parseInt(createHash("md5").update(`${runId}${volumeId}`).digest("hex").slice(-8), 16) < 2 ** 31;
    expect(items.filter(({ verify }) => verify === "wanted")).toEqual(items.filter(isDrawn));
    const [failing, ...others] = items;
    await database.$executeRaw`
      UPDATE operations SET state = 'failed', fail_reason = 'no', finished_at = now() WHERE id = ${failing?.operationId}::uuid`;
    await endOperations();
    await beginAll();
    const expected = others.filter(isDrawn).map(({ backupId }) => backupId);
    expect((await verifications()).map(({ backupId }) => backupId).sort()).toEqual(expected.sort());
    await endOperations();
    await database.operation.deleteMany({ where: { kind: "backup-verify" } });
    await makeDue(policy.id);
    await beginAll();
    await updatePolicy(database, config, principal, { id: policy.id, change: { verify: null } });
    await endOperations();
    await beginAll();
    expect(await verifications()).toEqual([]);
    expect(await database.policyRunItem.count({ where: { verify: "wanted", state: "succeeded" } })).toBe(0);
  });
});

describe("what a run backs up", () => {
  it("is spread evenly over the jitter, by the run and the volume alone", async () => {
    const rows = Array.from({ length: 2_000 }, () => ({
      ...{ id: randomUUID(), projectId: "p", userId: "u", sizeGib: 1, sizeBytes: 4096n, backend: "files" },
      ...{ status: "available", availabilityZone: "nova" },
    }));
    await database.volume.createMany({ data: rows });
    const policy = await addPolicy({ jitterMinutes: 30 });
    const due = await makeDue(policy.id);
    await pass();
    const items = await database.policyRunItem.findMany();
    expect(items).toHaveLength(2_000);
    const slots = Array<number>(10).fill(0);
    for (const { startsAt } of items) {
      const at = startsAt.getTime() - due.getTime();
      expect(at >= 0 && at < 30 * 60_000).toBe(true);
      slots[Math.floor(at / (3 * 60_000))] = (slots[Math.floor(at / (3 * 60_000))] ?? 0) + 1;
    }
    // 200 each on average, with a standard deviation below 14.
    process.stdout.write(`starts in each tenth of the jitter: ${slots.join(" ")}\n`);
    for (const count of slots) expect(Math.abs(count - 200)).toBeLessThan(100);
    // No more begin in one pass than are due, and than it can begin in its time.
    expect(await database.backup.count()).toBeLessThanOrEqual(50);
  });

  it("is full without a backup to build on, incremental with one, and says so", async () => {
    const volume = await addVolume();
    const policy = await addPolicy({ kind: { full_every: 3 } });
    const made: [boolean | null, string | null][] = [];
    for (let round = 0; round < 5; round += 1) {
      await makeDue(policy.id);
      await pass();
      const [run] = await runsOf(policy.id);
      const [item] = await itemsOf(policy.id, run?.id ?? "");
      const backup = await database.backup.findUniqueOrThrow({ where: { id: item?.backupId ?? "" } });
      expect(backup).toMatchObject({
        volumeId: volume,
        policyId: policy.id,
        projectId: "p",
        userId: "u",
        status: "creating",
      });
      expect(backup.parentId !== null).toBe(item?.incremental);
      expect(run?.operationId).toBe(item?.operationId);
      made.push([item?.incremental ?? null, item?.reason ?? null]);
      await endOperations();
      await pass();
    }
    expect(made).toEqual([
      [false, "There was no backup to build on: this one is full."],
      [true, null],
      [true, null],
      [false, "The chain has 3 members: this one is full."],
      [true, null],
    ]);
  });

  it("is full once after each time that the policy names, and where the parent is damaged or elsewhere", async () => {
    await addVolume();
    // Of days at least two away, before and after.
    const weekly = await addPolicy({ kind: { full_on: `0 0 * * ${((await clock()).getUTCDay() + 3) % 7}` } });
    const kindOfNext = async (): Promise<[boolean | null, string | null]> => {
      await makeDue(weekly.id);
      await pass();
      const [run] = await runsOf(weekly.id);
      const [item] = await itemsOf(weekly.id, run?.id ?? "");
      await endOperations();
      await pass();
      return [item?.incremental ?? null, item?.reason ?? null];
    };
    expect((await kindOfNext())[0]).toBe(false);
    expect(await kindOfNext()).toEqual([true, null]);
    await database.$executeRaw`UPDATE backups SET data_timestamp = data_timestamp - interval '8 days'`;
    const [incremental, reason] = await kindOfNext();
    expect([incremental, reason?.replace(/\d{4}-.*Z/, "TIME")]).toEqual([false, "A full backup was due at TIME."]);
    expect(await kindOfNext()).toEqual([true, null]);
    await database.$executeRaw`UPDATE backups SET damage = 'an object is gone'`;
    expect((await kindOfNext())[0]).toBe(false);
    await database.$executeRaw`UPDATE policies SET repository = 'main'`;
    expect(await kindOfNext()).toEqual([true, null]);
    await database.$executeRaw`UPDATE backups SET repository = 'other'`;
    expect(await kindOfNext()).toEqual([false, "The backups to build on are in repository other: this one is full."]);
  });

  it("fails alone: the reason is at the volume, and the others go on", async () => {
    const [ends, fails] = [await addVolume(), await addVolume()];
    const poor = await addVolume({ projectId: "q" });
    await setQuota(database, config, "q", { backups: 0 });
    const policy = await addPolicy({ projectId: null });
    await assignPolicy(database, principal, policy.id, { projectId: "q" });
    await makeDue(policy.id);
    await pass();
    await database.$executeRaw`
      UPDATE operations SET state = 'failed', fail_reason = 'The disk is gone.', finished_at = now() WHERE volume_id = ${fails}::uuid`;
    await endOperations();
    await pass();
    const [run] = await runsOf(policy.id);
    const items = await itemsOf(policy.id, run?.id ?? "");
    const told = (volume: string) => items.find(({ volumeId }) => volumeId === volume);
    expect(told(ends)).toMatchObject({ state: "succeeded" });
    expect(told(fails)).toMatchObject({ state: "failed", reason: "The disk is gone." });
    expect(told(poor)).toMatchObject({
      state: "failed",
      reason: expect.stringContaining("Quota backups exceeded"),
      backupId: null,
    });
    expect(run).toMatchObject({ items: { succeeded: 1, failed: 2 } });
    expect(await counted()).toEqual({ failed: 1 });
    const ended = await database.notification.findFirstOrThrow({ where: { eventType: "policy.run.end" } });
    expect(ended.payload).toMatchObject({ policy_id: policy.id, succeeded: 1, failed: 2, skipped: 0, state: "ran" });
    const seenByOthers = { ...principal, projectId: "q", isAdmin: false };
    const theirs = await getRun(database, seenByOthers, { policyId: policy.id, runId: run?.id ?? "", limit: 10 });
    expect(theirs.items.map(({ volumeId }) => volumeId)).toEqual([poor]);
  });

  it("waits for a volume that is busy, until the window is over", async () => {
    const volume = await addVolume({ status: "extending" });
    const policy = await addPolicy();
    await makeDue(policy.id);
    await pass();
    const [run] = await runsOf(policy.id);
    const item = async () => (await itemsOf(policy.id, run?.id ?? ""))[0];
    expect(await item()).toMatchObject({
      volumeId: volume,
      state: "waiting",
      reason: expect.stringContaining('"extending"'),
    });
    expect(await database.operation.count()).toBe(0);
    await database.$executeRaw`UPDATE policy_run_items SET starts_at = now()`;
    await database.$executeRaw`UPDATE policy_runs SET window_end = now() - interval '1 second'`;
    await pass();
    expect(await item()).toMatchObject({
      state: "skipped",
      reason: expect.stringMatching(/^The window of the run was over before the backup could begin\. .*"extending"/),
    });
    await database.volume.update({ where: { id: volume }, data: { status: "in-use" } });
    await makeDue(policy.id);
    await pass();
    expect(await runsOf(policy.id)).toMatchObject([{ items: { running: 1 } }, { items: { skipped: 1 } }]);
  });

  it("leaves volumes alone that another policy applies to, or that are excluded", async () => {
    const [plain, special, excluded, once] = [
      await addVolume(),
      await addVolume(),
      await addVolume(),
      await addVolume(),
    ];
    const policy = await addPolicy();
    const other = await createPolicy(database, config, principal, { ...policy, name: randomUUID(), enabled: false });
    await assignPolicy(database, principal, other.id, { volumeId: special });
    const now = await clock();
    await database.volumeExclusion.createMany({
      data: [
        { volumeId: excluded, reason: "scratch", userId: "u" },
        { volumeId: once, reason: "moved", userId: "u", until: new Date(now.getTime() - 1_000) },
      ],
    });
    await makeDue(policy.id);
    await pass();
    const backedUp = (await database.backup.findMany()).map(({ volumeId }) => volumeId);
    expect(backedUp.sort()).toEqual([plain, once].sort());
  });
});

it("costs a pass one statement where nothing is due", async () => {
  await pass();
  const query = vi.spyOn(pg.Client.prototype, "query");
  await pass();
  const texts = query.mock.calls.map(([asked]) =>
    typeof asked === "string" ? asked : (asked as { text: string }).text,
  );
  query.mockRestore();
  expect(texts.filter((text) => /polic(y|ies)/.test(text))).toEqual([expect.stringContaining("next_at <= now()")]);
  const policy = await addPolicy();
  await makeDue(policy.id);
  await pass();
  await pass();
  const idle = vi.spyOn(pg.Client.prototype, "query");
  await pass();
  const later = idle.mock.calls.map(([asked]) =>
    typeof asked === "string" ? asked : (asked as { text: string }).text,
  );
  idle.mockRestore();
  expect(later.filter((text) => /polic(y|ies)/.test(text))).toHaveLength(1);
});
