import { randomUUID } from "node:crypto";
import type { Database, OperationKind } from "@tephra/control";
import { loadConfig } from "@tephra/control/process";
import {
  claimTask,
  failOperation,
  inTransaction,
  OperationEndedError,
  planBackup,
  planRestore,
  planVerify,
  startOperation,
  type TaskKind,
  type TaskOperation,
} from "@tephra/control/work";
import { afterAll, beforeAll, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let databaseUrl: string;
beforeAll(async () => {
  ({ databaseUrl, database } = await openControl(stack));
});
afterAll(() => stack.disposeAsync());

/** A claimed plan task of an operation on a new backup of a new volume, as its claimant holds it. */
async function claimPlan(kind: OperationKind, task: TaskKind, input: Record<string, unknown>): Promise<TaskOperation> {
  const [volumeId, backupId] = [randomUUID(), randomUUID()];
  const owner = { projectId: "p", userId: "u", sizeGib: 1, availabilityZone: "nova" };
  const status = kind === "backup-create" ? "creating" : "available";
  await database.volume.create({
    data: {
      ...owner,
      id: volumeId,
      status: "backing-up",
      previousStatus: "in-use",
      sizeBytes: 4096n,
      backend: "files",
    },
  });
  await database.backup.create({
    data: {
      ...owner,
      id: backupId,
      volumeId,
      status,
      repository: "main",
      dataTimestamp: new Date(),
      ...(kind === "backup-create" ? {} : { container: "c", serviceMetadata: "volume_p", volumeBytes: 4096n }),
    },
  });
  const principal = { userId: "u", projectId: "p", roles: [], isAdmin: false, requestId: "req-test" };
  const operationId = await inTransaction(database, (tx) =>
    startOperation(tx, principal, {
      kind,
      projectId: "p",
      volumeId,
      backupId,
      input: input as never,
      task: { kind: task, needs: [] },
    }),
  );
  const { id: taskId } = await database.task.findFirstOrThrow({ where: { operationId } });
  const claimed = await claimTask(database, { taskId, workerId: "w", leaseMs: 60_000 });
  if (claimed === null) throw new Error("not claimed");
  return claimed.operation;
}

const planAny = {
  "backup-create": (operation: TaskOperation) =>
    planBackup(
      database,
      loadConfig({ DATABASE_URL: databaseUrl, REDIS_URL: "redis://127.0.0.1:1", TEPHRA_DATA_DIR: "/tmp" }),
      operation,
      async () => ({
        service: "posix",
        defaultContainer: (id) => id,
        defaultPrefix: ({ backupId }) => backupId,
        tellsChanges: false,
        canFreezeCheaply: async () => true,
      }),
    ),
  "backup-restore": (operation: TaskOperation) => planRestore(database, operation, { rangeBytes: 4096 }),
  "backup-verify": (operation: TaskOperation) => planVerify(database, operation),
} as const;

it.each([
  ["backup-create", "plan-backup", {}],
  ["backup-restore", "plan-restore", { newVolume: true }],
  ["backup-verify", "plan-verify", { mode: "deep", backend: null }],
] as const)(
  "a claim of %s that has looked before another fixed the plan obeys that plan",
  async (kind, task, input) => {
    const operation = await claimPlan(kind, task, input);
    expect(operation.plan).toBeNull();
    const first = await planAny[kind](operation);
    // What the late one decides by itself would be another plan: a snapshot has a new name each time.
    expect(await planAny[kind](operation)).toEqual(first);
    const { id } = operation;
    expect((await database.operation.findUniqueOrThrow({ where: { id } })).plan).toEqual(first);
    await failOperation(database, id, { reason: "given up" });
    await expect(planAny[kind](operation)).rejects.toBeInstanceOf(OperationEndedError);
  },
);
