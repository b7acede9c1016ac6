import type { Config, Database } from "@tephra/control";
import { beginTerm, openLog, reconcile } from "@tephra/control/process";
import { inTransaction, publishWorker, startOperation } from "@tephra/control/work";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";

const stack = new AsyncDisposableStack();
/** One connection, which tells what it has read when it is asked. */
let database: Database;
let config: Config;
const needs = ["repository:main"];
const waiting = 20_000;
const log = openLog({ log_level: "silent", hostName: "test" }, "test");

beforeAll(async () => {
  ({ database, config } = await openControl(stack, { connectionsMax: 1 }));
  await database.$executeRaw`
    WITH o AS (
      INSERT INTO operations (id, kind, state, project_id, user_id, request_id, created_at)
      SELECT gen_random_uuid(), 'backup-create', 'queued', 'p' || n % 50, 'u', 'r', now() - n * interval '1 second'
      FROM generate_series(1, ${waiting}::int) n RETURNING *
    )
    INSERT INTO tasks (id, operation_id, kind, ordinal, rank, project_id, queued_at, needs)
    SELECT gen_random_uuid(), id, 'plan-backup', 0, 4, project_id, created_at, ${needs}::text[] FROM o`;
  await database.$executeRaw`ANALYZE operations, tasks`;
});
afterAll(() => stack.disposeAsync());
beforeEach(() => publishWorker(database, { id: "w", host: "h", pid: 1, slots: 1, reaches: needs, unreachable: {} }));

const term = beginTerm();
const pass = (): Promise<void> => reconcile({ database, config, log, afterOutage: false, term });

async function rowsRead(): Promise<number> {
  await database.$queryRaw`SELECT pg_stat_force_next_flush()::text`;
  const [row] = await database.$queryRaw<{ rows: number }[]>`
    SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::float8 AS rows FROM pg_stat_user_tables
    WHERE relname IN ('tasks', 'operations')`;
  return row?.rows ?? 0;
}

describe("with 20,000 operations that wait", () => {
  it("a pass of the reconciler reads a few of them", async () => {
    await pass();
    const before = await rowsRead();
    await pass();
    expect((await rowsRead()) - before).toBeLessThan(waiting / 20);
  });

  it("deadlines that a clock has left in the future are found by the first pass of a term, and the first after an outage", async () => {
    const { id } = await database.task.findFirstOrThrow({ where: { state: "ready" } });
    for (const again of [{ term: beginTerm() }, { term, afterOutage: true }]) {
      await database.$executeRaw`UPDATE tasks SET run_after = now() + interval '1 day' WHERE id = ${id}::uuid`;
      await reconcile({ database, config, log, afterOutage: false, ...again });
      const [row] = await database.$queryRaw<
        { due: boolean }[]
      >`SELECT run_after <= now() AS due FROM tasks WHERE id = ${id}::uuid`;
      expect(row?.due).toBe(true);
    }
  });

  it("one whose tasks somebody has removed is found when its turn comes, and ends with a reason", async () => {
    const principal = { userId: "u", projectId: "p", roles: [], isAdmin: false, requestId: "req-test" };
    const lost = await inTransaction(database, (tx) =>
      startOperation(tx, principal, { kind: "backup-create", projectId: "p", task: { kind: "plan-backup", needs } }),
    );
    const [{ id: other } = { id: "" }] = await database.$queryRaw<{ id: string }[]>`
      SELECT id FROM operations WHERE request_id = 'r' ORDER BY created_at OFFSET 250 LIMIT 1`;
    await database.task.deleteMany({ where: { operationId: { in: [lost, other] } } });
    await database.$executeRaw`UPDATE operations SET created_at = now() - interval '1 year' WHERE id = ${lost}::uuid`;
    const reasonOf = async (id: string): Promise<string | null> =>
      (await database.operation.findUniqueOrThrow({ where: { id } })).failReason;
    const one = { database, config, log, afterOutage: false, term: beginTerm() };
    await reconcile(one);
    expect([await reasonOf(lost), await reasonOf(other)]).toEqual(["The operation has no task left to run.", null]);
    await reconcile(one);
    await reconcile(one);
    expect(await reasonOf(other)).toBe("The operation has no task left to run.");
  });

  it("and the walk begins again at the oldest when it has come to the youngest", async () => {
    await database.task.deleteMany();
    await database.operation.deleteMany();
    const one = { database, config, log, afterOutage: false, term: beginTerm() };
    await reconcile(one);
    expect(one.term.walkedTo).toBeNull();
  });
});
