import { randomUUID } from "node:crypto";
import { type Config, type Database, requestVolume, requestVolumeExtend } from "@tephra/control";
import {
  endBluntly,
  isRetryableConflict,
  mayPass,
  openLog,
  openMetrics,
  repairQuotas,
  startReconciler,
} from "@tephra/control/process";
import {
  type BackupPlan,
  type ClaimedTask,
  claimTask,
  failOperation,
  finishCopy,
  inTransaction,
  reopenRanges,
  startCopy,
  startOperation,
  takeDeliveries,
} from "@tephra/control/work";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";
import { waitFor } from "../kit/wait-for.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;
beforeAll(async () => {
  const opened = await openControl(stack);
  database = opened.database;
  const read = opened.config;
  config = { ...read, tasks: { ...read.tasks, reconcile_ms: 100, unplaced_timeout_ms: 500 } };
});
afterAll(() => stack.disposeAsync());
beforeEach(async () => {
  await database.operation.deleteMany();
  await database.backup.deleteMany();
  await database.volume.deleteMany();
  await database.schedule.deleteMany();
  await database.counter.deleteMany();
});

const principal = { userId: "u", projectId: "p", roles: [], isAdmin: true, requestId: "req-test" };
const log = openLog({ log_level: "silent", hostName: "test" }, "test");
const owner = { projectId: "p", userId: "u", sizeGib: 1 };

async function addVolume(status: string): Promise<string> {
  const id = randomUUID();
  const row = { ...owner, id, status, availabilityZone: "nova", sizeBytes: 4096n, backend: "files" };
  await database.volume.create({ data: row });
  return id;
}

async function addBackup(status: string, more: object = {}): Promise<string> {
  const id = randomUUID();
  const row = { ...owner, repository: "main", dataTimestamp: new Date(), volumeId: randomUUID(), container: "c" };
  await database.backup.create({ data: { ...row, serviceMetadata: id, status, ...more, id } });
  return id;
}

async function claim(operationId: string, kind: string): Promise<ClaimedTask> {
  const task = await database.task.findFirstOrThrow({ where: { operationId, kind, state: "ready" } });
  const claimed = await claimTask(database, { taskId: task.id, workerId: "w", leaseMs: 60_000 });
  if (!claimed) throw new Error("the task cannot be had");
  return claimed;
}

const resultOf = (task: ClaimedTask) => ({ taskId: task.id, claim: task.claim, bytesDone: 0, bytesStored: 0 });
const readOperation = (id: string) => database.operation.findUniqueOrThrow({ where: { id } });
const readSchedule = (name: string) => database.schedule.findUniqueOrThrow({ where: { name } });

it("a store that loses what it took after every copy: the backup ends with a reason after three rounds", async () => {
  const backupId = await addBackup("creating");
  const operationId = await inTransaction(database, (tx) =>
    startOperation(tx, principal, {
      kind: "backup-create",
      projectId: "p",
      backupId,
      task: { kind: "plan-backup", needs: [] },
    }),
  );
  const { createdAt } = await readOperation(operationId);
  const plan: BackupPlan = {
    ...{ backupId, volumeId: randomUUID(), parentId: null, parent: null, name: null, description: null },
    ...{ repository: "main", backend: "files", source: { kind: "volume" }, container: "c", prefix: "p" },
    ...{ compression: "zlib", level: 6, objectBytes: 4096, blockBytes: 4096, volumeBytes: 4096, rangeBytes: 4096 },
    ...{ createdAt: createdAt.toISOString(), volumeMeta: null, fingerprint: null },
  };
  const ranges = [{ offset: 0, length: 4096 }];
  const planning = await claim(operationId, "plan-backup");
  await startCopy(database, operationId, resultOf(planning), { plan, ranges, changed: null, fingerprint: "f" });
  let rounds = 0;
  let refused: unknown = null;
  while (refused === null && rounds < 10) {
    await finishCopy(database, operationId, resultOf(await claim(operationId, "copy")));
    const seal = await claim(operationId, "seal");
    const held = { taskId: seal.id, claim: seal.claim };
    refused = await reopenRanges(database, operationId, held, [0]).then(
      () => null,
      (error: unknown) => error,
    );
    if (refused === null) rounds += 1;
    else await failOperation(database, operationId, { reason: (refused as Error).message, held });
  }
  expect(rounds).toBe(3);
  expect(await database.backup.findUniqueOrThrow({ where: { id: backupId } })).toMatchObject({
    status: "error",
    failReason: "Objects that were stored were gone again after 3 rounds: range 0.",
  });
});

it("a delivery that ends whoever takes it is dead after as many attempts as one that is refused", async () => {
  const notification = { id: randomUUID(), eventType: "e", host: "h", payload: {}, spread: true };
  await database.notification.create({ data: notification });
  const id = randomUUID();
  await database.delivery.create({ data: { id, notificationId: notification.id, target: "log" } });
  let taken = 0;
  for (let look = 0; look < 6; look += 1) {
    taken += (await takeDeliveries(database, { limit: 10, leaseMs: 0, attemptsMax: 3 })).length;
  }
  expect(taken).toBe(3);
  expect(await database.delivery.findUniqueOrThrow({ where: { id } })).toMatchObject({ state: "dead", attempts: 3 });
});

it("errors are told apart by their codes, not by what their messages quote", () => {
  const quoting = new Error("no operation 40001, nor 40P01");
  expect([isRetryableConflict(quoting), mayPass(quoting)]).toEqual([false, false]);
  const wrapped = { code: "P2010", meta: { driverAdapterError: { cause: { originalCode: "40P01" } } } };
  expect([isRetryableConflict(wrapped), mayPass(wrapped)]).toEqual([true, true]);
  expect(mayPass({ originalCode: "55P03" })).toBe(true);
  expect(mayPass({ originalCode: "23505" })).toBe(false);
});

describe("a pass of the reconciler", () => {
  const reconciled = async (work: () => Promise<void>): Promise<void> => {
    const reconciler = startReconciler({ database, config: { ...config, verify, reaper }, log });
    try {
      await work();
    } finally {
      await reconciler.stop();
    }
  };
  const verify = { interval_hours: 1, sample_percent: 50, mode: "quick" as const };
  const reaper = { interval_hours: null, grace_minutes: 60 } as Config["reaper"];

  /** A live operation that nobody can do. */
  const begin = (kind: "backup-create" | "backup-restore", backupId: string, volumeId: string | null) =>
    inTransaction(database, (tx) =>
      startOperation(tx, principal, {
        kind,
        projectId: "p",
        backupId,
        volumeId,
        task: { kind: kind === "backup-create" ? "plan-backup" : "plan-restore", needs: ["repository:nowhere"] },
      }),
    );

  it("goes on with everything else while the ending of one operation throws, and ends that one, too", async () => {
    const volumeId = await addVolume("restoring-backup");
    const poisonedBackup = await addBackup("restoring");
    const poisoned = await begin("backup-restore", poisonedBackup, volumeId);
    // How an operation ends is said by its kind: nobody here knows this one.
    await database.operation.update({ where: { id: poisoned }, data: { kind: "volume-of-a-later-release" } });
    const other = await begin("backup-create", await addBackup("creating"), null);
    const lost = await begin("backup-create", await addBackup("creating"), null);
    const task = await database.task.findFirstOrThrow({ where: { operationId: lost } });
    await claimTask(database, { taskId: task.id, workerId: "lost", leaseMs: 1 });
    await database.task.update({ where: { id: task.id }, data: { needs: [] } });
    for (const name of ["verify", "quotas"]) await database.schedule.create({ data: { name, ranAt: new Date(0) } });
    await reconciled(async () => {
      await waitFor(async () => (await readOperation(poisoned)).state === "failed", { what: "the poisoned one ends" });
    });
    expect((await readOperation(poisoned)).failReason).toContain("Its ending failed, too");
    expect((await database.volume.findUniqueOrThrow({ where: { id: volumeId } })).status).toBe("error");
    expect((await database.backup.findUniqueOrThrow({ where: { id: poisonedBackup } })).status).toBe("available");
    expect((await readOperation(other)).state).toBe("failed");
    expect(await database.task.findUniqueOrThrow({ where: { id: task.id } })).toMatchObject({ attempts: 1 });
    expect((await database.task.findUniqueOrThrow({ where: { id: task.id } })).state).not.toBe("running");
    for (const name of ["verify", "quotas"]) expect((await readSchedule(name)).ranAt.getTime()).toBeGreaterThan(0);
    const metrics = await openMetrics(database, config).render();
    expect(metrics).toContain('tephra_reconciler_failures_total{step="fail-unplaced"} 3');
  });

  it("gives up a clean-up that ends every worker that takes it", async () => {
    const operationId = await begin("backup-create", await addBackup("creating"), null);
    await failOperation(database, operationId, { reason: "given up" });
    const tidy = { operationId, kind: "tidy", ordinal: 0, rank: 0, projectId: "p", queuedAt: new Date(), needs: [] };
    const { id } = await database.task.create({ data: { id: randomUUID(), ...tidy } });
    await reconciled(async () => {
      for (let claims = 0; claims < 3; claims += 1) {
        await waitFor(() => claimTask(database, { taskId: id, workerId: "lost", leaseMs: 1 }), { what: "claimed" });
        await waitFor(async () => (await database.task.findUniqueOrThrow({ where: { id } })).state !== "running", {
          what: "its lease is dead",
        });
      }
      await waitFor(async () => (await database.task.findUniqueOrThrow({ where: { id } })).state === "failed", {
        what: "the clean-up is given up",
      });
    });
  });

  it("does not verify one backup again and again while others wait: a try is a turn, too", async () => {
    const ids = [
      await addBackup("available", { createdAt: new Date(0) }),
      await addBackup("available", { createdAt: new Date(9) }),
    ];
    for (let turn = 0; turn < 2; turn += 1) {
      await database.schedule.deleteMany();
      await database.schedule.create({ data: { name: "verify", ranAt: new Date(0) } });
      await reconciled(async () => {
        await waitFor(async () => (await readSchedule("verify")).ranAt.getTime() > 0, { what: "verifications begin" });
      });
      const begun = await database.operation.findMany({
        where: { kind: "backup-verify" },
        orderBy: { createdAt: "asc" },
      });
      expect(begun.map((operation) => operation.backupId)).toEqual(ids.slice(0, turn + 1));
      for (const { id } of begun) await failOperation(database, id, { reason: "EIO" });
    }
  });
});

describe("quotas", () => {
  it("are compared with what the rows add up to, and put right", async () => {
    const plain = { name: null, description: null, metadata: {}, availabilityZone: null };
    const { id } = await requestVolume(database, config, principal, { ...plain, sizeGib: 2, source: null });
    await database.volume.update({ where: { id }, data: { status: "available" } });
    await requestVolumeExtend(database, config, principal, id, { sizeGib: 5, inUse: false });
    const backup = await addBackup("available");
    const seen = await inTransaction(database, repairQuotas);
    expect(seen, "the backup was never charged").toEqual(["p"]);
    expect(await inTransaction(database, repairQuotas)).toEqual([]);
    await database.quota.update({ where: { projectId: "p" }, data: { volumesUsed: 7, backupsUsed: 0 } });
    await database.quota.create({ data: { projectId: "nobody", groupsUsed: 1 } });
    expect((await inTransaction(database, repairQuotas)).sort()).toEqual(["nobody", "p"]);
    expect(await database.quota.findUniqueOrThrow({ where: { projectId: "p" } })).toMatchObject({
      volumesUsed: 1,
      gigabytesUsed: 5,
      backupsUsed: 1,
      backupGigabytesUsed: 1,
    });
    await database.backup.update({ where: { id: backup }, data: { deletedAt: new Date() } });
    expect(await inTransaction(database, repairQuotas)).toEqual(["p"]);
  });

  it("are right again after an operation that had to be ended bluntly", async () => {
    const volumeId = await addVolume("available");
    await inTransaction(database, repairQuotas);
    await requestVolumeExtend(database, config, principal, volumeId, { sizeGib: 3, inUse: false });
    const { id } = await database.operation.findFirstOrThrow({ where: { volumeId } });
    await endBluntly(database, id, "poisoned");
    expect(await inTransaction(database, repairQuotas)).toEqual(["p"]);
    expect(await database.volume.findUniqueOrThrow({ where: { id: volumeId } })).toMatchObject({ status: "error" });
  });
});
