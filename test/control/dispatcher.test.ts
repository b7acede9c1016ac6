import { randomUUID } from "node:crypto";
import {
  type Database,
  type Dispatched,
  inTransaction,
  loadConfig,
  openDatabase,
  openLog,
  publishWorker,
  queueFor,
  startDispatcher,
  startOperation,
  withdrawWorker,
} from "@tephra/control";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { createDatabase } from "../harness/instance.ts";
import { waitFor } from "../harness/wait-for.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let databaseUrl: string;

beforeAll(async () => {
  databaseUrl = await createDatabase(inject("servers"), stack);
  database = openDatabase(databaseUrl);
  stack.defer(() => database.$disconnect());
});
afterAll(() => stack.disposeAsync());

const config = () =>
  loadConfig({ DATABASE_URL: databaseUrl, REDIS_URL: "redis://127.0.0.1:1", TEPHRA_DATA_DIR: "/tmp" });

async function queueOperations(projectId: string, count: number, needs: string[]): Promise<void> {
  const principal = { userId: "u", projectId, roles: [], isAdmin: false, requestId: "req-test" };
  await inTransaction(database, async (tx) => {
    for (let i = 0; i < count; i += 1) {
      await startOperation(tx, principal, { kind: "backup-create", projectId, task: { kind: "plan-backup", needs } });
    }
  });
}

/** Dispatches until nothing more fits, and returns what was put into each queue. */
async function dispatchAll(until: (jobs: Map<string, Dispatched[]>) => boolean): Promise<Map<string, Dispatched[]>> {
  const jobs = new Map<string, Dispatched[]>();
  const dispatcher = startDispatcher({
    database,
    config: config(),
    log: openLog({ log_level: "silent", hostName: "test" }, "test"),
    enqueue: async (queue, added) => void jobs.set(queue, [...(jobs.get(queue) ?? []), ...added]),
  });
  try {
    await waitFor(() => until(jobs), { what: "the dispatcher has filled the queues" });
  } finally {
    await dispatcher.stop();
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
});
