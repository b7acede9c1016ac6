import { changePriority, type Database } from "@tephra/control";
import { openDatabase } from "@tephra/control/process";
import {
  ClaimLostError,
  claimTask,
  failOperation,
  finishTask,
  handBackTask,
  inTransaction,
  renewLeases,
  startOperation,
} from "@tephra/control/work";
import { afterAll, beforeAll, beforeEach, describe, expect, inject, it } from "vitest";
import { createDatabase } from "../kit/instance.ts";
import { waitFor } from "../kit/wait-for.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let taskId: string;
let operationId: string;

beforeAll(async () => {
  database = openDatabase(await createDatabase(inject("servers"), stack));
  stack.defer(() => database.$disconnect());
});
afterAll(() => stack.disposeAsync());

const principal = { userId: "u", projectId: "p", roles: [], isAdmin: false, requestId: "req-test" };

beforeEach(async () => {
  operationId = await inTransaction(database, (tx) =>
    startOperation(tx, principal, {
      kind: "volume-create",
      projectId: "p",
      task: { kind: "provision-volume", needs: [] },
    }),
  );
  taskId = (await database.task.findFirstOrThrow({ where: { operationId } })).id;
});

const claim = (workerId: string, leaseMs = 60_000) => claimTask(database, { taskId, workerId, leaseMs });
const finish = (held: { claim: number }) =>
  inTransaction(database, (tx) => finishTask(tx, { taskId, claim: held.claim, bytesDone: 0, bytesStored: 0 }));

describe("a claim", () => {
  it("is one worker's, however many ask at once", async () => {
    const answers = await Promise.all(Array.from({ length: 8 }, (_, i) => claim(`w${i}`)));
    expect(answers.filter((a) => a !== null)).toHaveLength(1);
  });

  it("can be taken over when the lease is dead, and the late worker's report is refused", async () => {
    const late = await claim("late", 1);
    const next = await waitFor(() => claim("next"), { what: "the lease is dead" });
    expect(next.claim).toBe(2);
    if (!late) throw new Error("not claimed");
    await expect(finish(late)).rejects.toBeInstanceOf(ClaimLostError);
    await finish(next);
    expect(await claim("third")).toBeNull();
  });

  it("is not made by a version that does not know the kind, as while workers are upgraded one by one", async () => {
    const renamed = (kind: string) => database.$executeRaw`UPDATE tasks SET kind = ${kind} WHERE id = ${taskId}::uuid`;
    await renamed("of-a-later-version");
    expect(await claim("old")).toBeNull();
    await renamed("provision-volume");
    expect(await claim("new")).toMatchObject({ claim: 1, attempts: 1 });
  });

  it("given back by a stopping worker costs no attempt", async () => {
    const first = await claim("w");
    await handBackTask(database, { taskId, claim: first?.claim ?? 0 });
    expect(await claim("w2")).toMatchObject({ claim: 2, attempts: 1 });
  });

  it("learns at the heartbeat that its operation has ended, and cannot fail it again", async () => {
    const held = await claim("w");
    const heartbeat = () =>
      renewLeases(database, {
        workerId: "w",
        leaseMs: 60_000,
        held: [{ taskId, claim: held?.claim ?? 0, bytesDone: 1, bytesStored: 0 }],
      });
    expect(await heartbeat()).toMatchObject([{ taskId, cancelled: false }]);
    await failOperation(database, operationId, { reason: "given up" });
    expect(await heartbeat()).toMatchObject([{ taskId, cancelled: true }]);
  });

  it("learns at the heartbeat that its operation has another priority, and its parts have, and a later claim goes by it", async () => {
    const held = { taskId, claim: (await claim("w"))?.claim ?? 0 };
    const heartbeat = () =>
      renewLeases(database, { workerId: "w", leaseMs: 60_000, held: [{ ...held, bytesDone: 1, bytesStored: 0 }] });
    expect(await heartbeat()).toMatchObject([{ priority: "normal" }]);
    const part = await inTransaction(database, (tx) =>
      startOperation(tx, principal, {
        ...{ kind: "volume-create", projectId: "p", parentId: operationId },
        task: { kind: "provision-volume", needs: [] },
      }),
    );
    await expect(changePriority(database, principal, part, "low")).rejects.toThrow(operationId);
    expect(await changePriority(database, principal, operationId, "high")).toMatchObject({ priority: "high" });
    expect(await heartbeat()).toMatchObject([{ priority: "high" }]);
    await handBackTask(database, held);
    expect(await claim("w2")).toMatchObject({ lane: "high", operation: { priority: "high" } });
    const parts = await database.operation.findMany({ where: { id: part }, include: { tasks: true } });
    expect(parts).toMatchObject([{ priority: "high", tasks: [{ rank: -6 }] }]);
    // What begins later is of the priority of what it is a part of.
    const next = await inTransaction(database, (tx) =>
      startOperation(tx, principal, { kind: "backup-delete", projectId: "p", parentId: operationId, task: null }),
    );
    expect(await database.operation.findUnique({ where: { id: next } })).toMatchObject({ priority: "high" });
    await failOperation(database, operationId, { reason: "given up" });
    await expect(changePriority(database, principal, operationId, "low")).rejects.toThrow("It has ended: failed.");
  });

  it("that makes progress beyond every earlier one starts the count of attempts anew", async () => {
    await claim("w", 1);
    const second = await waitFor(() => claim("w2"), { what: "the lease is dead" });
    expect(second.attempts).toBe(2);
    const held = [{ taskId, claim: second.claim, bytesDone: 10, bytesStored: 0 }];
    await renewLeases(database, { workerId: "w2", leaseMs: 60_000, held });
    expect((await database.task.findUniqueOrThrow({ where: { id: taskId } })).attempts).toBe(1);
  });
});
