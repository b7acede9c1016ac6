import { randomUUID } from "node:crypto";
import { type Principal, prepareRestore } from "@tephra/control";
import { actAs, beginTerm, openLog, reconcile } from "@tephra/control/process";
import { claimTask } from "@tephra/control/work";
import { expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";

it("a restore whose request is still at it is taken by no worker, whatever deadlines the reconciler mends", async () => {
  await using stack = new AsyncDisposableStack();
  const { database, config } = await openControl(stack);
  const wait = { clone_minutes: 360, delete_minutes: 60, prepare_seconds: 600 };
  const beside = {
    ...config,
    volume_backends: [{ name: "cinder", driver: "cinder", wait }],
  } as unknown as typeof config;
  const backup = { projectId: "p", userId: "u", volumeId: randomUUID(), sizeGib: 1, repository: "main" };
  const more = { id: randomUUID(), status: "available", dataTimestamp: new Date() };
  const { id: backupId } = await database.backup.create({ data: { ...backup, ...more } });
  const member: Principal = { projectId: "p", userId: "u", roles: ["member"], isAdmin: false, requestId: "req-test" };
  const { operationId } = await prepareRestore(database, beside, member, { backupId, seen: null });
  await actAs({ kind: "reconciler" }, () =>
    reconcile({
      database,
      config: beside,
      log: openLog({ log_level: "silent", hostName: "test" }, "test"),
      afterOutage: true,
      term: beginTerm(),
    }),
  );
  const { id: taskId } = await database.task.findFirstOrThrow({ where: { operationId } });
  expect(await claimTask(database, { taskId, workerId: "w", leaseMs: 60_000 })).toBeNull();
});
