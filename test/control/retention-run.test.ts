import { randomUUID } from "node:crypto";
import {
  assignPolicy,
  type Backup,
  type Config,
  createPolicy,
  type Database,
  holdBackup,
  instanceGroupType,
  listAudit,
  type Principal,
  previewRetention,
  requestVerify,
  simulatePolicy,
  updatePolicy,
} from "@tephra/control";
import { actAs, beginTerm, openLog, reconcile } from "@tephra/control/process";
import { beginBackupDelete, claimTask, finishBackupDelete } from "@tephra/control/work";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;

beforeAll(async () => {
  const opened = await openControl(stack);
  database = opened.database;
  const tasks = { ...opened.config.tasks, unplaced_timeout_ms: 1e12, dispatch_timeout_ms: 1e12 };
  config = { ...opened.config, tasks, reaper: { ...opened.config.reaper, interval_hours: null } };
});
afterAll(() => stack.disposeAsync());
beforeEach(async () => {
  await database.operation.deleteMany();
  await database.backup.deleteMany();
  await database.groupSnapshot.deleteMany();
  await database.volume.deleteMany();
  await database.group.deleteMany();
  await database.instance.deleteMany();
  await database.policy.deleteMany();
  await database.notification.deleteMany();
});

const principal: Principal = { userId: "u", projectId: "p", roles: ["member"], isAdmin: false, requestId: "req-test" };
const stranger: Principal = { ...principal, projectId: "q" };
const log = openLog({ log_level: "silent", hostName: "test" }, "test");
const hourMs = 3_600_000;

async function addVolume(projectId = "p"): Promise<string> {
  const id = randomUUID();
  const owner = { projectId, userId: "u", sizeGib: 1, status: "available", availabilityZone: "nova" };
  await database.volume.create({ data: { ...owner, id, sizeBytes: 4096n, backend: "files" } });
  return id;
}

async function addPolicy(retention: object, more: object = {}) {
  return createPolicy(database, config, principal, {
    ...{
      projectId: "p",
      name: randomUUID(),
      description: null,
      enabled: true,
      force: true,
      priority: "normal",
      verify: null,
      targetHours: null,
    },
    schedule: { cron: "0 2 * * *", timezone: "UTC", window_minutes: 60, jitter_minutes: 0 },
    ...{ kind: { full_every: 7 }, squash: null, repository: null },
    retention: { min_good: 1, manual: false, ...retention },
    ...more,
  });
}

interface Machine {
  instanceId: string;
  groupId: string;
  volumes: string[];
}

/** A machine of two disks. */
async function addMachine(): Promise<Machine> {
  const [instanceId, groupId] = [randomUUID(), randomUUID()];
  const owner = { projectId: "p", userId: "u" };
  const vm = { ...owner, id: instanceId, name: "vm", powerState: "SHUTOFF", driver: "record" };
  await database.instance.create({ data: vm });
  const place = { groupTypeId: instanceGroupType, instanceId, availabilityZone: "nova", status: "available" };
  await database.group.create({ data: { ...owner, ...place, id: groupId } });
  const volumes = [await addVolume(), await addVolume()];
  await database.volume.updateMany({ where: { id: { in: volumes } }, data: { groupId } });
  return { instanceId, groupId, volumes };
}

/** A full backup of all disks of a machine, of so many days ago. */
async function addWhole({ instanceId, groupId, volumes }: Machine, days: number, more: Partial<Backup>) {
  const id = randomUUID();
  const owner = { projectId: "p", userId: "u", groupTypeId: instanceGroupType, instanceId, groupId };
  await database.groupSnapshot.create({ data: { ...owner, id, name: "night", status: "available" } });
  const backups: string[] = [];
  for (const volume of volumes) backups.push(await addBackup(volume, days, { ...more, groupSnapshotId: id }));
  return { id, backups };
}

type Assigned = Awaited<ReturnType<typeof addPolicy>>;

const assign = (policy: Assigned, volumeId: string) =>
  assignPolicy(database, principal, policy.id, { volumeId }, { confirmed: true });

/** A backup of so many days ago. */
async function addBackup(volumeId: string, days: number, more: Partial<Backup> = {}): Promise<string> {
  const id = randomUUID();
  const at = new Date(Date.now() - days * 24 * hourMs);
  const owner = { projectId: "p", userId: "u", sizeGib: 1, status: "available", volumeId };
  const stored = { repository: "main", container: "c", serviceMetadata: `p-${id}`, storedBytes: 1000n, objectCount: 1 };
  const { metadata: _, ...row } = more;
  await database.backup.create({ data: { ...owner, ...stored, id, dataTimestamp: at, createdAt: at, ...row } });
  return id;
}

/** Full, then incrementals; one a day, the last of today. From the full one on. */
async function addChain(volumeId: string, length: number, policyId: string | null): Promise<string[]> {
  const ids: string[] = [];
  for (let n = 0; n < length; n++) {
    ids.push(await addBackup(volumeId, length - 1 - n, { parentId: ids.at(-1) ?? null, policyId }));
  }
  return ids;
}

const left = async (): Promise<string[]> =>
  (
    await database.backup.findMany({
      where: { status: "available", deletedAt: null },
      orderBy: { dataTimestamp: "asc" },
    })
  ).map(({ id }) => id);

/** Retention, as the service does it once an hour. */
async function run(by = config): Promise<void> {
  const ranAt = new Date(Date.now() - 2 * hourMs);
  await database.schedule.upsert({
    where: { name: "retention" },
    create: { name: "retention", ranAt },
    update: { ranAt },
  });
  const pass = { database, config: by, log, afterOutage: false, term: beginTerm() };
  await actAs({ kind: "reconciler" }, () => reconcile(pass));
}

/** A worker removes what is to be removed. */
async function removeAll(): Promise<void> {
  const tasks = await database.task.findMany({ where: { kind: "remove-backup", state: "ready" } });
  for (const { id: taskId } of tasks) {
    const task = await claimTask(database, { taskId, workerId: "w", leaseMs: 60_000 });
    if (!task) throw new Error("the task cannot be had");
    await beginBackupDelete(database, task.operation);
    await finishBackupDelete(database, task.operation, { taskId, claim: task.claim, bytesDone: 0, bytesStored: 0 });
  }
}

describe("a preview", () => {
  it("tells what stays, goes, is blocked or squashed, of all volumes, and changes nothing", async () => {
    const policy = await addPolicy({ keep_last: 2 });
    const [one, two] = [await addVolume(), await addVolume()];
    const chain = await addChain(one, 4, policy.id);
    const fulls = [await addBackup(two, 2, { policyId: policy.id }), await addBackup(two, 1, { policyId: policy.id })];
    const failed = await addBackup(two, 3, { policyId: policy.id, status: "error" });
    const last = await addBackup(two, 0, { policyId: policy.id });
    const other = await addChain(await addVolume(), 3, policy.id);
    for (const volume of [one, two]) await assign(policy, volume);
    const preview = await previewRetention(database, principal, policy.id, {});
    expect(preview.volumes).toBe(2);
    const kept = Object.fromEntries(preview.keep.map(({ id, rules }) => [id, rules]));
    expect(kept).toEqual({
      [chain[3] ?? ""]: ["keep_last", "min_good", "newest"],
      [chain[2] ?? ""]: ["keep_last"],
      [last]: ["keep_last", "min_good", "newest"],
      [fulls[1] ?? ""]: ["keep_last"],
    });
    expect(preview.go.map(({ id, reason, volumeId }) => [id, reason, volumeId]).sort()).toEqual(
      [
        [fulls[0], "no_rule", two],
        [failed, "failed", two],
      ].sort(),
    );
    expect(preview.blocked).toEqual([
      { volumeId: one, id: chain[1], because: [chain[2]] },
      { volumeId: one, id: chain[0], because: [chain[2]] },
    ]);
    expect(preview.freesBytes).toBe(2000);
    const change = { squash: { when_chain_longer_than: 2 } };
    const squashed = await previewRetention(database, principal, policy.id, { change, volumeId: one });
    expect(squashed).toMatchObject({ squash: [chain.slice(0, 3)], blocked: [], go: [], volumes: 1 });
    const everything = await previewRetention(database, principal, policy.id, { change: { retention: null } });
    expect(everything).toMatchObject({ keep: [], go: [], blocked: [] });
    expect(await left()).toHaveLength(7 + other.length);
  });

  it("of a published policy shows each project its own volumes", async () => {
    const admin = { ...principal, isAdmin: true };
    const policy = await createPolicy(database, config, admin, {
      ...(await addPolicy({ keep_last: 1 })),
      projectId: null,
    });
    const volume = await addVolume();
    await addChain(volume, 2, policy.id);
    await assign(policy, volume);
    expect((await previewRetention(database, principal, policy.id, {})).volumes).toBe(1);
    expect((await previewRetention(database, stranger, policy.id, {})).volumes).toBe(0);
    expect((await previewRetention(database, admin, policy.id, {})).volumes).toBe(1);
  });
});

describe("a run", () => {
  it("deletes what no rule keeps, from the newest on, each once what builds on it is gone, and says why", async () => {
    const policy = await addPolicy({ keep_last: 1 });
    const volume = await addVolume();
    const old = await addChain(volume, 3, policy.id);
    await database.backup.updateMany({ data: { dataTimestamp: new Date(Date.now() - 100 * 24 * hourMs) } });
    const newest = await addBackup(volume, 0, { policyId: policy.id });
    await assign(policy, volume);
    for (const gone of old.toReversed()) {
      await run();
      expect(await database.backup.findUnique({ where: { id: gone } })).toMatchObject({ status: "deleting" });
      expect(await database.operation.count({ where: { kind: "backup-delete", state: "queued" } })).toBe(1);
      await removeAll();
    }
    await run();
    expect(await left()).toEqual([newest]);
    const [entry] = await listAudit(database, { resourceId: old[0] ?? "", limit: 3 }).then((all) =>
      all.filter(({ toStatus }) => toStatus === "deleting"),
    );
    expect(entry).toMatchObject({ actor: "reconciler", reason: `policy ${policy.name}: no rule keeps it` });
    const told = await database.notification.findMany({ where: { eventType: "retention.deleted" } });
    expect(told.map(({ payload }) => payload)).toMatchObject(
      old.toReversed().map((id) => ({ backup_id: id, policy_name: policy.name, reason: "no rule keeps it" })),
    );
  });

  it("goes on for a volume that is gone, by the policy of its newest backup, and leaves the last good one", async () => {
    const policy = await addPolicy({ keep_within: "36h" });
    const before = await addPolicy({ keep_last: 100 });
    const gone = randomUUID();
    const byBefore = await addBackup(gone, 9, { policyId: before.id });
    const old = [await addBackup(gone, 8, { policyId: policy.id }), await addBackup(gone, 7, { policyId: policy.id })];
    const byHand = await addBackup(gone, 6);
    const others = await addBackup(gone, 10, { policyId: policy.id, projectId: "q" });
    const last = await addBackup(gone, 5, { policyId: policy.id });
    const failed = await addBackup(gone, 7.5, { policyId: policy.id, status: "error" });
    for (let n = 0; n < 4; n += 1) {
      await run();
      await removeAll();
    }
    expect(await left()).toEqual([others, byHand, last]);
    for (const id of [...old, byBefore, failed]) {
      expect((await database.backup.findUniqueOrThrow({ where: { id } })).deletedAt).not.toBeNull();
    }
    await database.policy.update({ where: { id: policy.id }, data: { enabled: false, nextAt: null } });
    await addBackup(gone, 6, { policyId: policy.id });
    await run();
    expect(await left()).toHaveLength(4);
  });

  it("with a deletion delay hides a whole chain at once", async () => {
    const policy = await addPolicy({ keep_last: 1, deletion_delay_hours: 1 });
    const volume = await addVolume();
    const old = await addChain(volume, 3, policy.id);
    await database.backup.updateMany({ data: { dataTimestamp: new Date(Date.now() - 100 * 24 * hourMs) } });
    const newest = await addBackup(volume, 0, { policyId: policy.id });
    await assign(policy, volume);
    await run();
    expect(await left()).toEqual([newest]);
    expect(await database.backup.count({ where: { id: { in: old }, undeleteUntil: { not: null } } })).toBe(3);
  });

  it("leaves what is held, read, made by hand or of no policy, and policies that are disabled", async () => {
    const policy = await addPolicy({ keep_last: 1 });
    const volume = await addVolume();
    const of = { policyId: policy.id };
    const [held, read, byHand] = [
      await addBackup(volume, 5, of),
      await addBackup(volume, 4, of),
      await addBackup(volume, 3),
    ];
    const last = await addBackup(volume, 0, of);
    const until = new Date(Date.now() + 24 * hourMs);
    await holdBackup(database, principal, held, { until, reason: "why" });
    await requestVerify(database, config, principal, { backupId: read, mode: "quick" });
    const disabled = await addPolicy({ keep_last: 1 }, { enabled: false });
    const asleep = await addVolume();
    const untouched = [
      await addBackup(asleep, 2, { policyId: disabled.id }),
      await addBackup(asleep, 1, { policyId: disabled.id }),
    ];
    await assign(policy, volume);
    await assign(disabled, asleep);
    await run();
    expect((await left()).sort()).toEqual([held, read, byHand, last, ...untouched].sort());
    await database.operation.updateMany({ data: { state: "succeeded", finishedAt: new Date() } });
    await run();
    expect(await left()).not.toContain(read);
  });

  it("never deletes the last good backup, however old it is and whatever failed since", async () => {
    const policy = await addPolicy({ keep_within: "1h" });
    const volume = await addVolume();
    const good = await addBackup(volume, 900, { policyId: policy.id });
    await addBackup(volume, 800, { policyId: policy.id, status: "error" });
    await addBackup(volume, 700, { policyId: policy.id, damage: "x" });
    await assign(policy, volume);
    await run();
    await removeAll();
    await run();
    expect(await left()).toContain(good);
  });

  it("deletes a machine's backup as a whole, and only when all of it may go", async () => {
    const policy = await addPolicy({ keep_last: 1 });
    const machine = await addMachine();
    const of = { policyId: policy.id };
    const [old, older] = [await addWhole(machine, 1, of), await addWhole(machine, 2, of)];
    const last = await addWhole(machine, 0, of);
    const [held = ""] = older.backups;
    await holdBackup(database, principal, held, { until: new Date(Date.now() + hourMs), reason: "why" });
    const instanceId = machine.instanceId;
    await assignPolicy(database, principal, policy.id, { instanceId }, { confirmed: true });
    await run();
    expect((await left()).sort()).toEqual([...older.backups, ...last.backups].sort());
    const deleting = await database.groupSnapshot.findMany({ where: { status: "deleting" } });
    expect(deleting.map(({ id }) => id)).toEqual([old.id]);
    const told = await database.notification.findMany({ where: { eventType: "retention.deleted" } });
    expect(told).toHaveLength(2);
    expect(await database.operation.count({ where: { kind: "group-delete" } })).toBe(1);
  });

  it("has a chain squashed that is longer than it may be, once, and after what builds on its members is gone", async () => {
    const policy = await addPolicy({ keep_last: 2 }, { squash: { when_chain_longer_than: 3 } });
    const volume = await addVolume();
    const chain = await addChain(volume, 5, policy.id);
    const beside = await addBackup(volume, 3.5, { policyId: policy.id, parentId: chain[0] ?? "" });
    await assign(policy, volume);
    const squashes = () => database.operation.findMany({ where: { kind: "backup-squash" } });
    await run();
    expect(await squashes()).toEqual([]);
    expect(await database.backup.findUnique({ where: { id: beside } })).toMatchObject({ status: "deleting" });
    await run();
    expect(await squashes()).toEqual([]);
    await removeAll();
    for (let n = 0; n < 2; n++) {
      await run();
      expect(await squashes()).toMatchObject([{ backupId: chain[3], state: "queued", userId: "system" }]);
    }
    expect(await left()).toEqual(chain);
  });

  it("by several processes at once deletes each once", async () => {
    const policy = await addPolicy({ keep_last: 1 });
    const volumes = await Promise.all(Array.from({ length: 5 }, () => addVolume()));
    for (const volume of volumes) {
      for (const days of [0, 1, 2, 3]) await addBackup(volume, days, { policyId: policy.id });
      await assign(policy, volume);
    }
    await Promise.all([run(), run(), run()]);
    expect(await left()).toHaveLength(5);
    expect(await database.operation.count({ where: { kind: "backup-delete" } })).toBe(15);
  });
});

describe("more than half of what is there", () => {
  it("goes only when somebody has said that it is meant", async () => {
    const volume = await addVolume();
    const policy = await addPolicy({ keep_last: 3 });
    for (const days of [0, 1, 2, 3]) await addBackup(volume, days, { policyId: policy.id });
    await assignPolicy(database, principal, policy.id, { volumeId: volume });
    const change = { retention: { keep_last: 1, min_good: 1, manual: false } };
    const refused = "confirm: the first run would delete 3 of 4 backups";
    await expect(updatePolicy(database, config, principal, { id: policy.id, change })).rejects.toThrow(refused);
    expect(await database.policy.findUniqueOrThrow({ where: { id: policy.id } })).toMatchObject({
      retention: { keep_last: 3 },
    });
    await updatePolicy(database, config, principal, { id: policy.id, change: { description: "no rule is changed" } });
    await updatePolicy(database, config, principal, { id: policy.id, change, confirmed: true });
    const strict = await addPolicy({ keep_last: 1 });
    await expect(assignPolicy(database, principal, strict.id, { volumeId: volume })).rejects.toThrow(refused);
    await expect(assignPolicy(database, principal, strict.id, { projectId: "p" })).resolves.toBeDefined();
    await database.volume.update({ where: { id: volume }, data: { metadata: { "tephra:policy": "named" } } });
    await database.policyAssignment.deleteMany();
    await expect(addPolicy({ keep_last: 1 }, { name: "named" })).rejects.toThrow(refused);
    await addPolicy({ keep_last: 2 }, { name: "named" });
  });
});

describe("a simulation", () => {
  const rules = (retention: object, more: object = {}) => ({
    schedule: { cron: "0 2 * * *", timezone: "Europe/Berlin", window_minutes: 60, jitter_minutes: 0 },
    retention: { min_good: 1, manual: false, ...retention },
    ...more,
  });
  const size = { days: 365, fullBytes: 1000, changeRate: 0.1, from: new Date("2026-01-01T00:00:00Z") };

  it("of a year keeps what the rules say, and tells what it takes", async () => {
    const every = { kind: { full_every: 1 } };
    const year = await simulatePolicy(database, config, principal, { ...size, rules: rules({ keep_daily: 7 }, every) });
    expect(year).toMatchObject({ made: 365, deleted: 358, storedBytes: 7000, peakBytes: 8000, squashed: 0 });
    const gfs = { keep_daily: 7, keep_weekly: 4, keep_monthly: 12 };
    const both = await simulatePolicy(database, config, principal, { ...size, rules: rules(gfs, every) });
    expect(both.backups.filter(({ rules: of }) => of.includes("keep_monthly"))).toHaveLength(12);
    expect(both.backups.length).toBeLessThan(7 + 4 + 12);
  });

  it("with squash keeps one chain, without it whole ones", async () => {
    const kind = { kind: { full_every: 1000 } };
    const chain = await simulatePolicy(database, config, principal, { ...size, rules: rules({ keep_daily: 7 }, kind) });
    expect(chain.backups).toHaveLength(365);
    const squash = { ...kind, squash: { when_chain_longer_than: 10 } };
    const short = await simulatePolicy(database, config, principal, {
      ...size,
      rules: rules({ keep_daily: 7 }, squash),
    });
    expect(short.backups.length).toBeLessThanOrEqual(10);
    expect(short.storedBytes).toBe(1000 + (short.backups.length - 1) * 100);
    expect(short.squashed).toBeGreaterThan(50);
  });

  it("refuses rules that make no sense, and too many backups", async () => {
    const bad = rules({ keep_daily: 0 });
    await expect(simulatePolicy(database, config, principal, { ...size, rules: bad })).rejects.toThrow(
      "would keep nothing",
    );
    await expect(simulatePolicy(database, config, principal, { ...size, rules: {} })).rejects.toThrow("schedule");
    const often = { cron: "* * * * *", timezone: "UTC", window_minutes: 1, jitter_minutes: 0 };
    const many = { ...rules({ keep_last: 1 }), schedule: often };
    await expect(simulatePolicy(database, config, principal, { ...size, rules: many })).rejects.toThrow("10000");
  });
});
