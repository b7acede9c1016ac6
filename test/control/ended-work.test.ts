import { randomUUID } from "node:crypto";
import { type Config, type Database, listOperations } from "@tephra/control";
import { beginTerm, loadConfig, openDatabase, openLog, openMetrics, reconcile } from "@tephra/control/process";
import {
  cancelTask,
  claimTask,
  failOperation,
  finishTask,
  inTransaction,
  publishWorker,
  readUnclaimed,
  renewLeases,
  startDispatcher,
  startOperation,
} from "@tephra/control/work";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { createDatabase } from "../kit/instance.ts";
import { waitFor } from "../kit/wait-for.ts";

const stack = new AsyncDisposableStack();
let databaseUrl: string;
let database: Database;
let config: Config;

beforeAll(async () => {
  databaseUrl = await createDatabase(inject("servers"), stack);
  database = openDatabase(databaseUrl);
  stack.defer(() => database.$disconnect());
  const read = loadConfig({ DATABASE_URL: databaseUrl, REDIS_URL: "redis://127.0.0.1:1", TEPHRA_DATA_DIR: "/tmp" });
  config = { ...read, tasks: { ...read.tasks, reconcile_ms: 100 } };
});
afterAll(() => stack.disposeAsync());

const principal = { userId: "u", projectId: "p", roles: [], isAdmin: true, requestId: "req-test" };
const log = openLog({ log_level: "silent", hostName: "test" }, "test");

/** A backup that runs, and its task under a lease of this worker. */
async function begin(workerId = "w"): Promise<{ operationId: string; taskId: string; claim: number }> {
  const operationId = await inTransaction(database, (tx) =>
    startOperation(tx, principal, {
      kind: "backup-create",
      projectId: "p",
      task: { kind: "plan-backup", needs: ["repository:main"] },
    }),
  );
  const { id: taskId } = await database.task.findFirstOrThrow({ where: { operationId } });
  const claimed = await claimTask(database, { taskId, workerId, leaseMs: 60_000 });
  if (!claimed) throw new Error("the task cannot be had");
  return { operationId, taskId, claim: claimed.claim };
}

const metric = async (name: string): Promise<number> => {
  const text = await openMetrics(database, config).render();
  return Number(new RegExp(`^${name} (.+)$`, "m").exec(text)?.[1]);
};

describe("bytes", () => {
  it("are counted when tasks end, however they end, and never a second time", async () => {
    const done = { bytesDone: 100, bytesStored: 10 };
    const finished = await begin();
    await inTransaction(database, (tx) => finishTask(tx, { ...finished, ...done }));
    const cancelled = await begin();
    const failed = await begin();
    const held = [cancelled, failed].map((task) => ({ ...task, ...done }));
    await renewLeases(database, { workerId: "w", leaseMs: 60_000, held });
    expect(await metric("tephra_bytes_in_total")).toBe(100);
    await cancelTask(database, cancelled);
    await failOperation(database, failed.operationId, { reason: "EIO", held: failed });
    await database.task.updateMany({ data: { failReason: "looked at again" } });
    expect(await metric("tephra_bytes_in_total")).toBe(300);
    expect(await metric("tephra_bytes_out_total")).toBe(30);
    await database.operation.deleteMany();
    expect(await metric("tephra_bytes_in_total")).toBe(300);
  });

  it("are not what transactions wait for: one that has ended a task and goes on keeps no other from its end", async () => {
    const before = await metric("tephra_bytes_in_total");
    const tasks = await Promise.all(Array.from({ length: 6 }, () => begin()));
    const gate = Promise.withResolvers<void>();
    let waiting = 0;
    const ends = tasks.map((task) =>
      inTransaction(database, async (tx) => {
        await finishTask(tx, { ...task, bytesDone: 1, bytesStored: 0 });
        waiting += 1;
        if (waiting === tasks.length) gate.resolve();
        await gate.promise;
      }),
    );
    await Promise.all(ends);
    expect(await metric("tephra_bytes_in_total")).toBe(before + 6);
  });
});

it("a worker counts for as long as the others take it for alive", async () => {
  const card = { host: "h", pid: 1, slots: 3, reaches: ["repository:main"], unreachable: {} };
  await publishWorker(database, { ...card, id: "slow" });
  await database.$executeRaw`UPDATE workers SET heartbeat_at = now() - interval '50 seconds' WHERE id = 'slow'`;
  expect(await metric("tephra_workers")).toBe(0);
  const patient = { ...config, worker: { ...config.worker, down_ms: 60_000 } };
  const text = await openMetrics(database, patient).render();
  expect(text).toMatch(/^tephra_workers 1$/m);
  expect(text).toMatch(/^tephra_worker_slots 3$/m);
  await database.worker.deleteMany();
});

describe("with 20,000 tasks and operations that have ended", () => {
  const ended = 20_000;
  /** One connection, which tells what it has read when it is asked. */
  let single: Database;

  beforeAll(async () => {
    single = openDatabase(databaseUrl, { connectionsMax: 1 });
    await single.$executeRaw`
      INSERT INTO operations (id, kind, state, project_id, user_id, request_id, created_at, started_at, finished_at)
      SELECT ('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid, 'backup-create',
        (ARRAY['succeeded', 'failed', 'cancelled'])[1 + n % 3], 'p' || n % 50, 'u', 'r', at, at, at
      FROM generate_series(1, ${ended}::int) n CROSS JOIN LATERAL (SELECT now() - n * interval '1 minute' AS at) t`;
    await single.$executeRaw`
      INSERT INTO tasks (id, operation_id, kind, ordinal, state, rank, project_id, queued_at, needs, unplaced_at, finished_at)
      SELECT gen_random_uuid(), id, 'copy', 0, state, 3, project_id, created_at, ARRAY['repository:main'], created_at, finished_at
      FROM operations WHERE request_id = 'r'`;
    await single.$executeRaw`ANALYZE operations, tasks`;
  });
  afterAll(() => single.$disconnect());

  const rowsRead = async (): Promise<number> => {
    await single.$queryRaw`SELECT pg_stat_force_next_flush()::text`;
    const [row] = await single.$queryRaw<{ rows: number }[]>`
      SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::float8 AS rows FROM pg_stat_user_tables
      WHERE relname IN ('tasks', 'operations')`;
    return row?.rows ?? 0;
  };
  const expectFew = async (work: () => Promise<unknown>): Promise<void> => {
    const before = await rowsRead();
    await work();
    expect((await rowsRead()) - before).toBeLessThan(ended / 10);
  };

  it("a scrape reads none of them", () => expectFew(() => openMetrics(single, config).render()));

  it("a pass of the reconciler reads none of them", () =>
    expectFew(async () => {
      const { taskId } = await begin("lost");
      await database.task.update({ where: { id: taskId }, data: { leaseUntil: new Date(0) } });
      await reconcile({ database: single, config, log, afterOutage: false, term: beginTerm() });
      expect((await database.task.findUniqueOrThrow({ where: { id: taskId } })).state).toBe("ready");
    }));

  it("neither does the choice of what to do next", () =>
    expectFew(async () => {
      await publishWorker(single, {
        id: "w",
        host: "h",
        pid: 1,
        slots: 9,
        reaches: ["repository:main"],
        unreachable: {},
      });
      let jobs = 0;
      const enqueue = async (_: string, added: readonly unknown[]) => {
        jobs += added.length;
      };
      const dispatcher = startDispatcher({ database: single, config, log, enqueue });
      await waitFor(() => jobs > 0, { what: "something is chosen" });
      await dispatcher.stop();
    }));

  it("nor a list of operations, nor the question whether a job is ours", () =>
    expectFew(async () => {
      const limit = 20;
      expect(await listOperations(single, { ...principal, isAdmin: false, projectId: "p7" }, { limit })).toHaveLength(
        limit,
      );
      expect(await listOperations(single, principal, { limit, states: ["failed"] })).toHaveLength(limit);
      expect(await readUnclaimed(single, randomUUID())).toBeNull();
      expect(await readUnclaimed(single, "no uuid")).toBeNull();
    }));
});

it("counts what waits at every scrape, a long queue now and then", async () => {
  const { operationId } = await begin();
  const { render } = openMetrics(database, config);
  const ready = async (): Promise<number> => Number(/^tephra_tasks_ready (.+)$/m.exec(await render())?.[1]);
  const before = await ready();
  const addTo = async (total: number): Promise<void> => {
    await database.$executeRaw`
      INSERT INTO tasks (id, operation_id, kind, ordinal, rank, project_id, queued_at, needs)
      SELECT gen_random_uuid(), ${operationId}::uuid, 'copy', n, 3, 'p', now(), ARRAY['repository:main']
      FROM generate_series(1, ${total - before}::int) n ON CONFLICT DO NOTHING`;
  };
  for (const total of [10, 1_000, 1_001]) {
    await addTo(total);
    expect(await ready()).toBe(total);
  }
  await addTo(2_500);
  expect([1_001, 2_500]).toContain(await ready());
  expect(await metric("tephra_tasks_ready")).toBe(2_500);
  await database.task.deleteMany({ where: { operationId, kind: "copy", ordinal: { gt: 700 - before } } });
  expect(await ready()).toBe(700);
  await database.operation.deleteMany();
});
