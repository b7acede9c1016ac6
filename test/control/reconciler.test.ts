import { randomUUID } from "node:crypto";
import type { Database } from "@tephra/control";
import { loadConfig, openDatabase, openLog, startReconciler } from "@tephra/control/process";
import {
  claimTask,
  failOperation,
  inTransaction,
  publishWorker,
  startOperation,
  withdrawWorker,
} from "@tephra/control/work";
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from "vitest";
import { createDatabase } from "../kit/instance.ts";
import { waitFor } from "../kit/wait-for.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let databaseUrl: string;
let operationId: string;
let taskId: string;

const reaches = ["backend:files", "repository:main"];

beforeAll(async () => {
  databaseUrl = await createDatabase(inject("servers"), stack);
  database = openDatabase(databaseUrl);
  stack.defer(() => database.$disconnect());
  const base = loadConfig({ DATABASE_URL: databaseUrl, REDIS_URL: "redis://127.0.0.1:1", TEPHRA_DATA_DIR: "/tmp" });
  const tasks = { ...base.tasks, reconcile_ms: 100, dispatch_timeout_ms: 500, unplaced_timeout_ms: 500 };
  const log = openLog({ log_level: "silent", hostName: "test" }, "test");
  const reconciler = startReconciler({ database, config: { ...base, tasks }, log });
  stack.defer(() => reconciler.stop());
});
afterAll(() => stack.disposeAsync());

beforeEach(async () => {
  const card = { host: "h", pid: 1, slots: 1, unreachable: { "repository:far": "It is not mounted." } };
  await publishWorker(database, { ...card, id: "w", reaches });
  operationId = await begin(reaches);
  taskId = (await database.task.findFirstOrThrow({ where: { operationId } })).id;
});

function begin(needs: string[]): Promise<string> {
  const principal = { userId: "u", projectId: "p", roles: [], isAdmin: false, requestId: "req-test" };
  return inTransaction(database, (tx) =>
    startOperation(tx, principal, { kind: "backup-create", projectId: "p", task: { kind: "plan-backup", needs } }),
  );
}

const task = () => database.task.findUniqueOrThrow({ where: { id: taskId } });
const taskIs = (state: string) => waitFor(async () => (await task()).state === state, { what: `the task is ${state}` });
const failed = (id: string) =>
  waitFor(async () => (await database.operation.findUniqueOrThrow({ where: { id } })).failReason, {
    what: "the operation has failed",
  });

describe("the reconciler, with no Redis to ask", () => {
  it("makes a task ready again whose lease is dead", async () => {
    await claimTask(database, { taskId, workerId: "lost", leaseMs: 1 });
    await taskIs("ready");
    expect(await task()).toMatchObject({ claim: 1, attempts: 1, leaseUntil: null });
  });

  it("leaves one alone whose lease lives", async () => {
    await claimTask(database, { taskId, workerId: "alive", leaseMs: 60_000 });
    const other = await begin(["repository:nowhere"]);
    await failed(other);
    expect((await task()).state).toBe("running");
  });

  it("makes a task ready again that was dispatched and never claimed", async () => {
    await database.task.update({ where: { id: taskId }, data: { state: "dispatched", dispatchedAt: new Date(0) } });
    await taskIs("ready");
  });

  it("ends an operation whose task has cost too many workers, with a reason", async () => {
    for (let i = 0; i < 3; i += 1) {
      await waitFor(() => claimTask(database, { taskId, workerId: "lost", leaseMs: 1 }), { what: "claimed" });
      await waitFor(async () => (await task()).state !== "running", { what: "the lease is dead" });
    }
    expect(await failed(operationId)).toContain("Gave up after 3 workers were lost at task plan-backup");
  });

  it("ends an operation that no worker reaches, as Cinder does, with what workers say about it", async () => {
    const unreached = await begin(["repository:far"]);
    expect(await failed(unreached)).toBe("Service not found for creating backup. It is not mounted.");
  });

  it("counts how long nobody is there to do a task, not how long it has waited for its turn", async () => {
    await database.task.update({ where: { id: taskId }, data: { runAfter: new Date(0) } });
    await waitFor(async () => (await task()).unplacedAt === null, { what: "there is a worker" });
    await withdrawWorker(database, "w");
    await failed(operationId);
    const { finishedAt } = await database.operation.findUniqueOrThrow({ where: { id: operationId } });
    // From when that was first seen.
    const { unplacedAt } = await task();
    expect((finishedAt?.getTime() ?? 0) - (unplacedAt?.getTime() ?? 0)).toBeGreaterThanOrEqual(500);
    expect(unplacedAt).not.toBeNull();
  });

  it("frees a tidy task only when nobody runs for the operation any more", async () => {
    const held = await claimTask(database, { taskId, workerId: "w", leaseMs: 60_000 });
    const tidy = {
      operationId,
      kind: "tidy",
      ordinal: 0,
      rank: 0,
      projectId: "p",
      queuedAt: new Date(),
      needs: reaches,
    };
    const { id } = await database.task.create({ data: { id: randomUUID(), ...tidy, state: "blocked" } });
    const other = await begin(["repository:nowhere"]);
    await failed(other);
    expect((await database.task.findUniqueOrThrow({ where: { id } })).state).toBe("blocked");
    await failOperation(database, operationId, { reason: "given up", held: { taskId, claim: held?.claim ?? 0 } });
    await database.task.updateMany({ where: { id, state: "cancelled" }, data: { state: "blocked" } });
    await waitFor(async () => (await database.task.findUniqueOrThrow({ where: { id } })).state === "ready", {
      what: "the tidy task is free",
    });
  });
});
