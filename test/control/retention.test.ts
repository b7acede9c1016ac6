import { randomUUID } from "node:crypto";
import { type Config, type Database, getOperation, NotFoundError } from "@tephra/control";
import { beginTerm, openLog, reconcile } from "@tephra/control/process";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;

beforeAll(async () => {
  const opened = await openControl(stack);
  database = opened.database;
  const read = opened.config;
  const volume_backends = ["near", "far"].map((name) => ({ name, driver: "file" as const, path: `/tmp/${name}` }));
  // What is live here stays so, though nobody works on it.
  const tasks = { ...read.tasks, unplaced_timeout_ms: 1e12, dispatch_timeout_ms: 1e12 };
  config = { ...read, volume_backends, tasks, reaper: { ...read.reaper, interval_hours: null } };
});
afterAll(() => stack.disposeAsync());
beforeEach(async () => {
  await database.operation.deleteMany();
  await database.backup.deleteMany();
  await database.schedule.deleteMany();
});

const log = openLog({ log_level: "silent", hostName: "test" }, "test");
const principal = { userId: "u", projectId: "p", roles: [], isAdmin: false, requestId: "req-test" };
const daysAgo = (days: number): Date => new Date(Date.now() - days * 24 * 3_600_000);
const pass = () => reconcile({ database, config, log, afterOutage: false, term: beginTerm() });

/** A pass in which everything is due that is removed because of its age. */
async function forget(): Promise<void> {
  const kinds = ["workers", "messages", "notifications", "audit", "tasks", "operations"];
  await database.schedule.deleteMany();
  await database.schedule.createMany({ data: kinds.map((kind) => ({ name: `forget-${kind}`, ranAt: daysAgo(1) })) });
  await pass();
}

interface Past {
  /** Since its end, or its beginning if it has not ended. */
  days: number;
  kind?: string;
  state?: string;
  /** States of its tasks. */
  tasks?: string[];
  more?: object;
}

async function addOperation({
  days,
  kind = "volume-create",
  state = "succeeded",
  tasks = [],
  more,
}: Past): Promise<string> {
  const id = randomUUID();
  const at = daysAgo(days);
  const finishedAt = ["queued", "running"].includes(state) ? null : at;
  const row = {
    id,
    kind,
    state,
    projectId: "p",
    userId: "u",
    requestId: "r",
    createdAt: at,
    startedAt: at,
    finishedAt,
  };
  await database.operation.create({ data: { ...row, ...more } });
  for (const [ordinal, taskState] of tasks.entries()) await addTask(id, taskState, ordinal, { finishedAt: at });
  return id;
}

async function addTask(operationId: string, state: string, ordinal: number, more: object): Promise<void> {
  const row = { id: randomUUID(), operationId, state, ordinal, rank: 3, projectId: "p", queuedAt: daysAgo(0) };
  const leaseUntil = new Date(Date.now() + 60_000);
  await database.task.create({ data: { ...row, kind: "copy", needs: [], leaseUntil, ...more } });
}

const isThere = async (id: string): Promise<boolean> => (await database.operation.count({ where: { id } })) === 1;
const tasksOf = (operationId: string): Promise<number> => database.task.count({ where: { operationId } });

describe("tasks of an operation that ended a week ago", () => {
  it("are forgotten, and what they add up to is not", async () => {
    const id = await addOperation({ days: 8, kind: "backup-create", state: "failed" });
    const counted = { bytesDone: 100n, bytesStored: 10n, bytesTwice: 1n };
    await addTask(id, "succeeded", 0, { claim: 1, ...counted });
    await addTask(id, "failed", 1, { claim: 3, ...counted });
    await addTask(id, "succeeded", 0, { kind: "tidy", claim: 9, ...counted });
    const told = async () => {
      const { tasksTotal, tasksDone, bytesDone, bytesStored, bytesCopiedTwice, attempts, rateBytesPerSecond } =
        await getOperation(database, principal, id);
      return { tasksTotal, tasksDone, bytesDone, bytesStored, bytesCopiedTwice, attempts, rateBytesPerSecond };
    };
    const before = await told();
    expect(before).toMatchObject({ tasksTotal: 2, tasksDone: 1, bytesDone: 200, bytesStored: 20n, attempts: 3 });
    await forget();
    expect(await tasksOf(id)).toBe(0);
    expect(await told()).toEqual(before);
  });

  it("stay while anything of it is live, or it is younger", async () => {
    const whole = await addOperation({ days: 99, kind: "group-backup", state: "running", tasks: ["ready"] });
    const kept = [
      await addOperation({ days: 99, state: "running", tasks: ["succeeded", "running"] }),
      await addOperation({ days: 99, state: "queued", tasks: ["ready"] }),
      await addOperation({ days: 99, state: "failed", tasks: ["succeeded", "blocked"] }),
      await addOperation({ days: 99, state: "cancelled", tasks: ["cancelled", "running"] }),
      await addOperation({ days: 99, tasks: ["succeeded"], more: { parentId: whole } }),
      await addOperation({ days: 99, state: "of-a-newer-release", tasks: ["succeeded"] }),
      await addOperation({ days: 99, tasks: ["of-a-newer-release"] }),
      await addOperation({ days: 6.9, tasks: ["succeeded", "failed"] }),
    ];
    const before = await Promise.all(kept.map(tasksOf));
    const gone = await addOperation({ days: 7.1, tasks: ["succeeded"] });
    await forget();
    expect(await tasksOf(gone)).toBe(0);
    expect(await Promise.all(kept.map(tasksOf))).toEqual(before);
    expect(await Promise.all([gone, whole, ...kept].map(isThere))).not.toContain(false);
  });
});

describe("operations that ended before the retention", () => {
  it("are forgotten, and are unknown then", async () => {
    const gone = await addOperation({ days: 91, tasks: ["succeeded", "cancelled"] });
    const younger = await addOperation({ days: 89, tasks: ["succeeded"] });
    await forget();
    await expect(getOperation(database, principal, gone)).rejects.toThrow(NotFoundError);
    expect(await isThere(younger)).toBe(true);
  });

  it("stay while they are live, or hold or are part of what is live or younger", async () => {
    const old = { days: 999 };
    const live = await addOperation({ ...old, kind: "group-backup", state: "running", tasks: ["ready"] });
    const young = await addOperation({ days: 1, kind: "group-backup" });
    const whole = await addOperation({ ...old, kind: "group-restore" });
    const holder = await addOperation({ ...old, kind: "group-backup" });
    const reaper = await addOperation({ ...old, kind: "repository-reap" });
    const groupTypeId = randomUUID();
    await database.groupType.create({ data: { id: groupTypeId, name: "t" } });
    const group = { projectId: "p", userId: "u", status: "available", groupTypeId, availabilityZone: "nova" };
    await database.group.create({ data: { ...group, id: randomUUID(), operationId: holder } });
    await database.condemnedPlace.create({ data: { container: "c", prefix: "p", operationId: reaper } });
    const kept = [
      ...[live, young, whole, holder, reaper],
      await addOperation({ ...old, more: { parentId: live } }),
      await addOperation({ ...old, more: { parentId: young } }),
      await addOperation({ days: 89, more: { parentId: whole } }),
      await addOperation({ ...old, state: "running", tasks: ["running"] }),
      await addOperation({ ...old, state: "failed", tasks: ["succeeded", "blocked"] }),
      await addOperation({ ...old, state: "of-a-newer-release" }),
    ];
    await forget();
    await forget();
    expect(await Promise.all(kept.map(isThere))).not.toContain(false);
    // What held them is gone or has ended.
    await database.operation.updateMany({ data: { finishedAt: daysAgo(91), state: "failed" } });
    await database.task.updateMany({ data: { state: "cancelled" } });
    await database.group.deleteMany();
    await database.condemnedPlace.deleteMany();
    await forget();
    await forget();
    expect(await Promise.all(kept.map(isThere))).not.toContain(true);
  });

  it("stay where they are the last of their kind that somebody asks for: a success, and each backup's verification", async () => {
    const row = {
      projectId: "p",
      userId: "u",
      sizeGib: 1,
      volumeId: randomUUID(),
      repository: "main",
      status: "available",
    };
    const [there, deleted] = [randomUUID(), randomUUID()];
    await database.backup.create({ data: { ...row, id: there, dataTimestamp: daysAgo(0) } });
    await database.backup.create({ data: { ...row, id: deleted, dataTimestamp: daysAgo(0), deletedAt: daysAgo(0) } });
    const verify = { kind: "backup-verify", state: "failed" };
    const kept = [
      await addOperation({ days: 100, kind: "backup-create" }),
      await addOperation({ ...verify, days: 100, more: { backupId: there } }),
    ];
    const gone = [
      await addOperation({ days: 101, kind: "backup-create" }),
      await addOperation({ days: 95, kind: "backup-create", state: "failed" }),
      await addOperation({ ...verify, days: 101, more: { backupId: there } }),
      await addOperation({ ...verify, days: 100, more: { backupId: deleted } }),
    ];
    await forget();
    expect(await Promise.all(kept.map(isThere))).toEqual([true, true]);
    expect(await Promise.all(gone.map(isThere))).not.toContain(true);
  });

  it("stay until the reaper has been in every backend, where only they tell whose the files are that they may have left", async () => {
    const temporary = { plan: { source: { id: randomUUID(), temporary: true } } };
    const left = [
      await addOperation({ days: 100, kind: "volume-delete", more: { volumeId: randomUUID() } }),
      await addOperation({ days: 100, kind: "snapshot-create", state: "failed", more: { snapshotId: randomUUID() } }),
      await addOperation({ days: 100, kind: "backup-create", state: "failed", more: temporary }),
      await addOperation({ days: 100, kind: "volume-export", state: "failed" }),
    ];
    const addPass = (days: number, unreached: string[], more: { dryRun?: boolean; passedOver?: string[] } = {}) =>
      addOperation({
        days,
        kind: "repository-reap",
        more: {
          input: { repository: "main", dryRun: more.dryRun ?? false, graceMs: 24 * 3_600_000 },
          result: { unreached, passed_over: more.passedOver ?? [] },
        },
      });
    const areThere = async () => {
      await forget();
      return Promise.all(left.map(isThere));
    };
    expect(await areThere()).toEqual([true, true, true, true]);
    await addPass(99.5, []); // What had ended less than the grace before was too young for it.
    await addPass(50, [], { dryRun: true });
    await addPass(50, ["far"]);
    await addPass(50, ["near"], { passedOver: ["far"] });
    expect(await areThere()).toEqual([true, true, true, true]);
    await addPass(40, ["near"]);
    expect(await areThere()).toEqual([false, false, false, false]);
  });
});

describe("what is removed because of its age", () => {
  it("goes a few rows at a time, past what others have locked, and the next pass goes on", async () => {
    const [one, many] = [await addOperation({ days: 1_000 }), await addOperation({ days: 999 })];
    await database.$executeRaw`
      INSERT INTO operations (id, kind, state, project_id, user_id, request_id, finished_at)
      SELECT gen_random_uuid(), 'volume-create', 'succeeded', 'p', 'u', 'r', now() - interval '100 days' FROM generate_series(1, 3000)`;
    await database.$executeRaw`
      INSERT INTO tasks (id, operation_id, kind, ordinal, state, rank, project_id, queued_at, bytes_done)
      SELECT gen_random_uuid(), ${many}::uuid, 'copy', n, 'succeeded', 3, 'p', now(), 1 FROM generate_series(1, 6000) n`;
    const left = () => database.operation.count();
    await database.$transaction(async (tx) => {
      await tx.$queryRaw`SELECT id FROM operations WHERE id = ${one}::uuid FOR UPDATE`;
      const withTasks = () => database.operation.count({ where: { tasksRemovedAt: null } });
      await forget();
      const first = await withTasks();
      expect(first).toBeGreaterThan(1);
      await pass();
      expect(await withTasks()).toBeLessThan(first);
      for (let passes = 1; (await left()) > 1; passes += 1) {
        expect(passes).toBeLessThan(50);
        const before = await left();
        await forget();
        expect(before - (await left())).toBeLessThanOrEqual(1_000);
      }
    });
    expect(await isThere(one)).toBe(true);
    await forget();
    expect(await left()).toBe(0);
  });

  it("goes by the clock, once an hour over all processes", async () => {
    const id = randomUUID();
    const about = { projectId: "p", requestId: "r", eventId: "e", userMessage: "m", messageLevel: "ERROR" };
    const put = async (): Promise<void> => {
      await addOperation({ days: 91 });
      await database.message.create({
        data: { ...about, id: randomUUID(), resourceType: "t", resourceUuid: id, createdAt: daysAgo(31) },
      });
      await database.notification.create({
        data: { id: randomUUID(), eventType: "e", host: "h", payload: {}, spread: true, createdAt: daysAgo(2) },
      });
      await database.auditEntry.create({
        data: { at: daysAgo(91), resource: "volume", resourceId: id, projectId: "p", toStatus: "s", actor: "user" },
      });
      const card = { id: randomUUID(), host: "h", pid: 1, queue: "q", slots: 1, heartbeatAt: daysAgo(1) };
      await database.worker.create({ data: card });
    };
    const left = async (): Promise<number[]> => [
      await database.operation.count(),
      await database.message.count(),
      await database.notification.count(),
      await database.auditEntry.count({ where: { resourceId: id } }),
      await database.worker.count(),
    ];
    await put();
    await forget();
    expect(await left()).toEqual([0, 0, 0, 0, 0]);
    await put();
    await Promise.all([pass(), pass()]);
    expect(await left()).toEqual([1, 1, 1, 1, 1]);
    await forget();
    expect(await left()).toEqual([0, 0, 0, 0, 0]);
  });
});
