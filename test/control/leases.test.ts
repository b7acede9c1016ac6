import type { Database } from "@tephra/control";
import { openDatabase, openLog } from "@tephra/control/process";
import { type ClaimedTask, claimTask, inTransaction, startOperation } from "@tephra/control/work";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { LeaseLostError, openLeases } from "../../apps/worker/src/leases.ts";
import { createDatabase } from "../kit/instance.ts";
import { startTcpProxy } from "../kit/tcp-proxy.ts";
import { waitFor } from "../kit/wait-for.ts";

const stack = new AsyncDisposableStack();
let database: Database;
const log = openLog({ log_level: "silent", hostName: "test" }, "test");
const hourMs = 3_600_000;

beforeAll(async () => {
  database = openDatabase(await createDatabase(inject("servers"), stack));
  stack.defer(() => database.$disconnect());
});
afterAll(() => stack.disposeAsync());

async function claimed(on: Database, leaseMs: number): Promise<{ task: ClaimedTask; askedAt: bigint }> {
  const principal = { userId: "u", projectId: "p", roles: [], isAdmin: false, requestId: "req-test" };
  const operationId = await inTransaction(on, (tx) =>
    startOperation(tx, principal, {
      kind: "volume-create",
      projectId: "p",
      task: { kind: "provision-volume", needs: [] },
    }),
  );
  const { id: taskId } = await on.task.findFirstOrThrow({ where: { operationId } });
  const askedAt = process.hrtime.bigint();
  const task = await claimTask(on, { taskId, workerId: "w", leaseMs });
  if (!task) throw new Error("not claimed");
  return { task, askedAt };
}

const msSince = (at: bigint): number => Number(process.hrtime.bigint() - at) / 1e6;

const throwsLost = (fence: () => void): boolean => {
  try {
    fence();
    return false;
  } catch (error) {
    if (!(error instanceof LeaseLostError)) throw error;
    return true;
  }
};

describe("a lease", () => {
  it("that cannot be renewed stops its task before anybody else may take it", async () => {
    const leaseMs = 4_000; // A busy machine may take a second to claim.
    const leases = openLeases({ database, log, workerId: "w", leaseMs, heartbeatMs: hourMs, quietMs: hourMs });
    const { task, askedAt } = await claimed(database, leaseMs);
    await using held = leases.hold(task, askedAt);
    held.run.fence();
    await waitFor(() => throwsLost(held.run.fence), { what: "the fence closes", everyMs: 10 });
    expect(msSince(askedAt)).toBeGreaterThan(leaseMs * 0.6);
    expect(held.run.signal.aborted, "what is in flight is aborted").toBe(true);
    await leases.stop();
  });

  it("closes its fence at once after a sleep longer than the lease, before any timer has run", async () => {
    const leases = openLeases({ database, log, workerId: "w", leaseMs: 10_000, heartbeatMs: hourMs, quietMs: hourMs });
    const { task, askedAt } = await claimed(database, 10_000);
    await using held = leases.hold(task, askedAt - 6_001_000_000n);
    expect(held.run.writableUntil?.[0], "threads see it too").toBeLessThan(process.hrtime.bigint());
    expect(throwsLost(held.run.fence)).toBe(true);
    await leases.stop();
  });

  it("that is renewed in time stays open, and is lost when another has claimed the task", async () => {
    const leaseMs = 4_000; // A busy machine may take a second for a renewal.
    const leases = openLeases({ database, log, workerId: "w", leaseMs, heartbeatMs: 50, quietMs: hourMs });
    const { task, askedAt } = await claimed(database, leaseMs);
    await using held = leases.hold(task, askedAt);
    await waitFor(() => msSince(askedAt) > leaseMs, { what: "a lease has passed", everyMs: 20 });
    held.run.fence();
    expect(held.run.writableUntil?.[0], "threads may write on").toBeGreaterThan(process.hrtime.bigint());
    await database.$executeRaw`UPDATE tasks SET claim = claim + 1 WHERE id = ${task.id}::uuid`;
    await waitFor(() => throwsLost(held.run.fence), { what: "the fence closes", everyMs: 10 });
    expect(held.run.writableUntil?.[0], "threads stop at once").toBe(0n);
    await leases.stop();
  });

  it("is given up when a call has not returned, however often others are tried, and kept while something moves", async () => {
    const quietMs = 1_500; // A busy machine may stop this process for a second.
    const leases = openLeases({ database, log, workerId: "w", leaseMs: 10_000, heartbeatMs: 50, quietMs });
    const { task, askedAt } = await claimed(database, 10_000);
    await using held = leases.hold(task, askedAt);
    let given: unknown = null;
    held.hung.catch((error: unknown) => {
      given = error;
    });
    const slow = held.watch.begin("repository:main", "putIfAbsent");
    let bytesDone = 0;
    await waitFor(
      () => {
        bytesDone += 1;
        held.run.onProgress({ bytesDone, bytesStored: 0 });
        return msSince(askedAt) > quietMs * 2;
      },
      { what: "bytes have moved for longer than it may stand still", everyMs: 50 },
    );
    expect(given, "bytes moved").toBeNull();
    slow();
    held.watch.begin("repository:main", "putIfAbsent", 2_000);
    const beganAt = process.hrtime.bigint();
    await waitFor(
      () => {
        held.run.onProgress({ bytesDone, bytesStored: 0 }); // The same again is no progress.
        return given !== null;
      },
      { what: "it is given up", everyMs: 50 },
    );
    expect(msSince(beganAt), "not before the time that the call asked for").toBeGreaterThan(2_000);
    expect(given).toMatchObject({ code: "hung", places: ["repository:main"] });
    expect(held.run.writableUntil?.[0], "threads stop at once").toBe(0n);
    expect(() => held.run.fence()).toThrow(/did not answer/);
    await leases.stop();
  });

  it("is renewed on another connection when its own falls silent", async () => {
    const leaseMs = 6_000;
    await using own = new AsyncDisposableStack();
    const url = await createDatabase(inject("servers"), own);
    const proxy = own.use(await startTcpProxy(new URL(url)));
    const throughProxy = openDatabase(proxy.through(url));
    own.defer(() => throughProxy.$disconnect());
    own.defer(() => proxy.trouble({ kind: "cut" }));
    const leases = openLeases({
      database: throughProxy,
      log,
      workerId: "w",
      leaseMs,
      heartbeatMs: 100,
      quietMs: hourMs,
    });
    const { task, askedAt } = await claimed(throughProxy, leaseMs);
    await using held = leases.hold(task, askedAt);
    proxy.trouble({ kind: "silent" });
    await waitFor(() => msSince(askedAt) > leaseMs * 1.2, { what: "the lease has passed", everyMs: 20 });
    held.run.fence();
    await leases.stop();
  });
});
