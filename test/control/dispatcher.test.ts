import { randomUUID } from "node:crypto";
import { type Config, changePriority, type Database } from "@tephra/control";
import { loadConfig, openLog } from "@tephra/control/process";
import {
  type Dispatched,
  inTransaction,
  type Priority,
  publishWorker,
  queueFor,
  startDispatcher,
  startOperation,
  withdrawWorker,
} from "@tephra/control/work";
import pg from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { openControl } from "../kit/control-database.ts";
import { waitFor } from "../kit/wait-for.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let databaseUrl: string;

beforeAll(async () => {
  ({ databaseUrl, database } = await openControl(stack));
});
afterAll(() => stack.disposeAsync());

const config = () =>
  loadConfig({ DATABASE_URL: databaseUrl, REDIS_URL: "redis://127.0.0.1:1", TEPHRA_DATA_DIR: "/tmp" });

const admin = { userId: "root", projectId: "ops", roles: [], isAdmin: true, requestId: "req-test" };

async function queueOperations(projectId: string, count: number, needs: string[], priority?: Priority): Promise<void> {
  const principal = { userId: "u", projectId, roles: [], isAdmin: false, requestId: "req-test" };
  await inTransaction(database, async (tx) => {
    for (let i = 0; i < count; i += 1) {
      const task = { kind: "plan-backup" as const, needs };
      await startOperation(tx, principal, { kind: "backup-create", projectId, task, ...(priority && { priority }) });
    }
  });
}

/** Dispatches until `until` is true, from so many processes at once, and returns what was put into each queue. */
async function dispatchAll(
  until: (jobs: Map<string, Dispatched[]>) => boolean | Promise<boolean>,
  { config: used = config(), dispatchers = 1 }: { config?: Config; dispatchers?: number } = {},
): Promise<Map<string, Dispatched[]>> {
  const jobs = new Map<string, Dispatched[]>();
  const started = Array.from({ length: dispatchers }, () =>
    startDispatcher({
      database,
      config: used,
      log: openLog({ log_level: "silent", hostName: "test" }, "test"),
      enqueue: async (queue, added) => void jobs.set(queue, [...(jobs.get(queue) ?? []), ...added]),
    }),
  );
  try {
    await waitFor(() => until(jobs), { what: "the dispatcher has filled the queues", timeoutMs: 60_000 });
  } finally {
    await Promise.all(started.map((dispatcher) => dispatcher.stop()));
  }
  return jobs;
}

const projectsOf = async (jobs: readonly Dispatched[]): Promise<string[]> => {
  const rows = await database.task.findMany({ where: { id: { in: jobs.map((j) => j.taskId) } } });
  return jobs.map((j) => rows.find((r) => r.id === j.taskId)?.projectId ?? "?");
};

describe("the dispatcher", () => {
  const reaches = ["backend:files", "repository:main"];
  const worker = { id: "w1", host: "h", pid: 1, slots: 2, reaches, unreachable: {} };

  it("gives a project with one task its turn before the second of one with a thousand, and keeps two jobs per slot", async () => {
    await queueOperations("aaa", 300, reaches);
    await queueOperations("bbb", 1, reaches);
    await publishWorker(database, worker);
    const jobs = await dispatchAll((j) => (j.get(queueFor(reaches))?.length ?? 0) >= 4);
    const mine = jobs.get(queueFor(reaches)) ?? [];
    expect(mine).toHaveLength(4);
    expect(await projectsOf(mine)).toContain("bbb");
    for (const job of mine) expect(job.jobId).toBe(`t-${job.taskId}-1`);
    await database.operation.deleteMany();
  });

  it("sends a task only to a queue whose workers reach what it needs", async () => {
    const far = { ...worker, id: "w2", reaches: ["repository:far"] };
    await publishWorker(database, far);
    await queueOperations("ccc", 1, ["repository:far"]);
    await queueOperations("ddd", 1, ["repository:nowhere"]);
    const jobs = await dispatchAll((j) => (j.get(queueFor(far.reaches))?.length ?? 0) === 1);
    expect(jobs.get(queueFor(reaches)) ?? []).toEqual([]);
    expect(await projectsOf(jobs.get(queueFor(far.reaches)) ?? [])).toEqual(["ccc"]);
    const waiting = await database.task.findFirst({ where: { projectId: "ddd" } });
    expect(waiting?.state).toBe("ready");
    await database.operation.deleteMany();
    await withdrawWorker(database, far.id);
  });

  it("gives every one of a thousand projects its turn, though nobody reaches what the first of them need", async () => {
    const projects = Array.from({ length: 1_200 }, (_, i) => `many-${1_000 + i}`);
    const stuck = projects.slice(0, 700);
    await database.$executeRaw`
      WITH o AS (
        INSERT INTO operations (id, kind, project_id, user_id, request_id)
        SELECT gen_random_uuid(), 'backup-create', p, 'u', 'r' FROM unnest(${projects}::text[]) p RETURNING *
      )
      INSERT INTO tasks (id, operation_id, kind, ordinal, rank, project_id, queued_at, needs)
      SELECT gen_random_uuid(), id, 'plan-backup', 0, 4, project_id, created_at,
        CASE WHEN project_id = ANY(${stuck}::text[]) THEN ARRAY['repository:nowhere'] ELSE ${reaches}::text[] END FROM o`;
    await publishWorker(database, { ...worker, slots: 1_000 });
    const jobs = await dispatchAll((j) => (j.get(queueFor(reaches))?.length ?? 0) >= projects.length - stuck.length);
    expect(new Set(await projectsOf(jobs.get(queueFor(reaches)) ?? []))).toEqual(new Set(projects.slice(stuck.length)));
    await publishWorker(database, worker);
    await database.operation.deleteMany();
  });

  it("gives each of many projects its next task only when all others had theirs, whoever asked first", async () => {
    const projects = Array.from({ length: 9 }, (_, i) => `turn-${i}`);
    for (const project of projects) await queueOperations(project, 3, reaches);
    await publishWorker(database, { ...worker, slots: 1 });
    const order: string[] = [];
    const dispatcher = startDispatcher({
      database,
      config: config(),
      log: openLog({ log_level: "silent", hostName: "test" }, "test"),
      enqueue: async (_, jobs) => {
        order.push(...(await projectsOf(jobs)));
        // What was handed out first has ended.
        const ended = await database.task.findMany({
          where: { state: "dispatched" },
          orderBy: { dispatchedAt: "asc" },
        });
        await database.task.update({ where: { id: ended[0]?.id ?? "" }, data: { state: "succeeded" } });
        dispatcher.freed();
      },
    });
    try {
      await waitFor(() => order.length === 27, { what: "all tasks were handed out", timeoutMs: 60_000 });
    } finally {
      await dispatcher.stop();
    }
    for (let round = 0; round < 3; round += 1) {
      expect(order.slice(9 * round, 9 * (round + 1)).sort(), `round ${round}: ${order}`).toEqual(projects);
    }
    await publishWorker(database, worker);
    await database.operation.deleteMany();
  });

  it("keeps slots for what is of high priority, whatever else waits or runs, and no others for it", async () => {
    await queueOperations("aaa", 9, reaches);
    const jobsOf = (jobs: Map<string, Dispatched[]>): Dispatched[] => jobs.get(queueFor(reaches)) ?? [];
    const before = jobsOf(await dispatchAll((j) => jobsOf(j).length >= 4));
    expect(before.map(({ high }) => high)).toEqual([false, false, false, false]);
    await queueOperations("aaa", 1, reaches, "high");
    await queueOperations("bbb", 9, reaches, "high");
    const first = jobsOf(await dispatchAll((j) => jobsOf(j).length >= 4));
    expect(first.map(({ high }) => high)).toEqual([true, true, true, true]);
    expect(await projectsOf(first)).toContain("aaa");
    // The others are dispatched while tasks of high priority still wait.
    await database.task.updateMany({
      where: { id: { in: before.map((j) => j.taskId) } },
      data: { state: "succeeded" },
    });
    const next = jobsOf(await dispatchAll((j) => jobsOf(j).length >= 4));
    expect(next.map(({ high }) => high)).toEqual([false, false, false, false]);
    await database.operation.deleteMany();
  });

  it("takes what is of low priority after everything else of its project, and before nothing of others", async () => {
    await queueOperations("aaa", 4, reaches, "low");
    await queueOperations("aaa", 2, reaches);
    await queueOperations("bbb", 1, reaches);
    const jobs = await dispatchAll((j) => (j.get(queueFor(reaches))?.length ?? 0) >= 4);
    const rows = await database.task.findMany({ where: { state: "dispatched" }, include: { operation: true } });
    expect(rows.map((row) => `${row.projectId} ${row.operation.priority}`).sort()).toEqual([
      "aaa low",
      "aaa normal",
      "aaa normal",
      "bbb normal",
    ]);
    expect(jobs.get(queueFor(reaches))).toHaveLength(4);
    await database.operation.deleteMany();
  });

  it("has what gets another priority wait for the slots of that, though its job is in a queue already", async () => {
    const jobsOf = (jobs: Map<string, Dispatched[]>): Dispatched[] => jobs.get(queueFor(reaches)) ?? [];
    await queueOperations("aaa", 6, reaches);
    await dispatchAll((j) => jobsOf(j).length >= 4);
    const dispatched = await database.task.findFirstOrThrow({ where: { state: "dispatched" } });
    const waiting = await database.task.findFirstOrThrow({ where: { state: "ready" } });
    const raised = [dispatched, waiting].map(({ operationId }) => operationId);
    for (const id of raised) await changePriority(database, admin, id, "high");
    const jobs = jobsOf(await dispatchAll((j) => jobsOf(j).filter(({ high }) => high).length >= 2));
    const high = jobs.filter((job) => job.high).map(({ jobId }) => jobId);
    expect(high.sort()).toEqual([`t-${dispatched.id}-2`, `t-${waiting.id}-1`].sort());
    for (const id of raised) await changePriority(database, admin, id, "low");
    const tasks = await database.task.findMany({ where: { operationId: { in: raised } } });
    expect(tasks.map(({ rank, state }) => [rank, state])).toEqual([
      [14, "ready"],
      [14, "ready"],
    ]);
    await database.operation.deleteMany();
  });

  it("takes what finishes something before what starts something", async () => {
    await queueOperations("eee", 4, reaches);
    const operation = await database.operation.findFirstOrThrow({ orderBy: { createdAt: "desc" } });
    const seal = {
      id: randomUUID(),
      operationId: operation.id,
      kind: "seal",
      ordinal: 0,
      rank: 1,
      projectId: "eee",
      queuedAt: new Date(),
      needs: reaches,
    };
    await database.task.create({ data: seal });
    const jobs = await dispatchAll((j) => (j.get(queueFor(reaches))?.length ?? 0) >= 4);
    expect(jobs.get(queueFor(reaches))?.map((j) => j.taskId)).toContain(seal.id);
    await database.operation.deleteMany();
  });

  it("looks for tasks neither when one is added while all slots are taken, nor when a slot is freed while none waits", async () => {
    await publishWorker(database, worker);
    await queueOperations("fff", 8, reaches);
    const query = vi.spyOn(pg.Client.prototype, "query");
    const isLook = ([asked]: unknown[]): boolean =>
      String((asked as { text?: string }).text).includes("RECURSIVE found");
    let jobs = 0;
    const dispatcher = startDispatcher({
      database,
      config: config(),
      log: openLog({ log_level: "silent", hostName: "test" }, "test"),
      enqueue: async (_, added) => {
        jobs += added.length;
      },
    });
    /** Until it has not looked for so long, whatever it is told meanwhile. */
    const quietFor = async (quietMs: number, tell: () => void): Promise<void> => {
      let last = { looks: 0, at: performance.now() };
      const isQuiet = (): boolean => {
        tell();
        const looks = query.mock.calls.filter(isLook).length;
        if (looks > last.looks) last = { looks, at: performance.now() };
        return performance.now() - last.at > quietMs;
      };
      await waitFor(isQuiet, { what: "no task was looked for", everyMs: 5 });
    };
    try {
      await waitFor(() => jobs === 4, { what: "all slots are taken" });
      await quietFor(200, dispatcher.wake);
      await database.operation.deleteMany();
      await quietFor(900, dispatcher.freed);
    } finally {
      await dispatcher.stop();
      query.mockRestore();
    }
  });

  describe("with caps", () => {
    const wide = { id: "wide", host: "h", pid: 1, slots: 8, reaches: ["repository:main"], unreachable: {} };
    const room = wide.slots * 2;
    const inFlight = async (projectId: string): Promise<number> =>
      database.task.count({ where: { projectId, state: { in: ["dispatched", "running"] } } });
    /** The tasks of a project that are in flight are done. */
    const finish = (projectId: string) =>
      database.task.updateMany({ where: { projectId, state: "dispatched" }, data: { state: "succeeded" } });
    /** Long enough for a dispatcher to look more than once. */
    const lookedTwice = () => {
      let looks = 0;
      return () => ++looks > 20;
    };
    beforeAll(async () => {
      await withdrawWorker(database, worker.id);
      await publishWorker(database, wide);
    });
    afterEach(() => database.operation.deleteMany());
    afterAll(() => withdrawWorker(database, wide.id));

    it("a project takes all there is while it is alone, and keeps to its cap while another has something to do", async () => {
      const capped = { ...config(), dispatcher: { project_cap: 3 } };
      await queueOperations("aaa", 40, wide.reaches);
      await dispatchAll(async () => (await inFlight("aaa")) === room, { config: capped });
      await finish("aaa");
      await queueOperations("bbb", 2, wide.reaches);
      await dispatchAll(async () => (await inFlight("bbb")) === 2, { config: capped });
      expect(await inFlight("aaa")).toBe(3);
      const looked = lookedTwice();
      await dispatchAll(looked, { config: capped });
      expect(await inFlight("aaa")).toBe(3);
      await finish("bbb");
      await dispatchAll(async () => (await inFlight("aaa")) === room, { config: capped });
    });

    it("a repository never has more tasks than it may, however many dispatchers choose at once, and holds up no other", async () => {
      const base = config();
      const [main] = base.repositories;
      if (!main) throw new Error("no repository");
      const repositories = [
        { ...main, max_running_tasks: 3 },
        { ...main, name: "free", default: false },
      ];
      const both = { ...wide, reaches: ["repository:free", "repository:main"] };
      await publishWorker(database, both);
      await queueOperations("aaa", 30, ["repository:main"]);
      await queueOperations("aaa", 4, ["repository:main", "repository:free"]);
      await queueOperations("aaa", 4, ["repository:free"]);
      const options = { config: { ...base, repositories }, dispatchers: 4 };
      const free = (): Promise<number> =>
        database.task.count({ where: { state: "dispatched", needs: { equals: ["repository:free"] } } });
      await dispatchAll(async () => (await free()) === 4, options);
      expect(await inFlight("aaa")).toBe(3 + 4);
      await finish("aaa");
      await dispatchAll(async () => (await inFlight("aaa")) === 3, options);
      await dispatchAll(lookedTwice(), options);
      expect(await inFlight("aaa")).toBe(3);
    });
  });
});
