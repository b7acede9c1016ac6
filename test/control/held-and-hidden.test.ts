import { randomUUID } from "node:crypto";
import {
  actorOf,
  type Backup,
  type Config,
  createPolicy,
  type Database,
  getBackup,
  holdBackup,
  InvalidError,
  listAudit,
  listBackups,
  listHidden,
  NotFoundError,
  type Principal,
  releaseHold,
  requestBackup,
  requestBackupDelete,
  requestBackupForceDelete,
  requestHiddenRemoval,
  undeleteBackup,
} from "@tephra/control";
import { actAs, beginTerm, openLog, reconcile } from "@tephra/control/process";
import { beginBackupDelete, claimTask, failOperation, finishBackupDelete } from "@tephra/control/work";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;
/** Without a deletion delay. */
let undelayed: Config;

beforeAll(async () => {
  const opened = await openControl(stack);
  database = opened.database;
  const tasks = { ...opened.config.tasks, unplaced_timeout_ms: 1e12, dispatch_timeout_ms: 1e12 };
  undelayed = { ...opened.config, tasks, reaper: { ...opened.config.reaper, interval_hours: null } };
  const repositories = undelayed.repositories.map((one) => ({ ...one, deletion_delay_hours: 24 }));
  config = { ...undelayed, repositories };
});
afterAll(() => stack.disposeAsync());
beforeEach(async () => {
  await database.operation.deleteMany();
  await database.backup.deleteMany();
});

const principal: Principal = { userId: "u", projectId: "p", roles: ["member"], isAdmin: false, requestId: "req-test" };
const stranger: Principal = { ...principal, projectId: "q" };
const admin: Principal = { ...principal, projectId: "a", roles: ["admin"], isAdmin: true };
const log = openLog({ log_level: "silent", hostName: "test" }, "test");
const hourMs = 3_600_000;
const tomorrow = () => new Date(Date.now() + 24 * hourMs);

async function addBackup(more: Partial<Backup> = {}): Promise<string> {
  const id = randomUUID();
  const owner = { projectId: "p", userId: "u", sizeGib: 1, status: "available", volumeId: randomUUID() };
  const stored = { repository: "main", container: "c", serviceMetadata: `p-${id}`, volumeBytes: 4096n, objectCount: 1 };
  const { metadata: _, ...row } = more;
  await database.backup.create({ data: { ...owner, ...stored, id, dataTimestamp: new Date(), ...row } });
  return id;
}

const remove = (id: string, by = config) =>
  actAs(actorOf(principal), () => requestBackupDelete(database, by, principal, id));
const rowOf = (id: string) => database.backup.findUniqueOrThrow({ where: { id } });
const listed = async (): Promise<string[]> => {
  const page = { sort: [{ key: "createdAt", direction: "desc" } as const], limit: 50, offset: 0 };
  const { rows } = await listBackups(database, principal, {
    fields: ["id"],
    filters: [],
    allProjects: false,
    withCount: false,
    page,
  });
  return rows.map(({ id }) => id);
};
const deletionsOf = (id: string) => database.operation.findMany({ where: { backupId: id, kind: "backup-delete" } });

/** What a minute of the service does to deletions whose delay is over. */
async function minutePasses(): Promise<void> {
  const name = "remove-deleted-backups";
  const ranAt = new Date(Date.now() - hourMs);
  await database.schedule.upsert({ where: { name }, create: { name, ranAt }, update: { ranAt } });
  await actAs({ kind: "reconciler" }, () =>
    reconcile({ database, config, log, afterOutage: false, term: beginTerm() }),
  );
}

const delayIsOver = (id: string) =>
  database.backup.update({ where: { id }, data: { undeleteUntil: new Date(Date.now() - 1000) } });

describe("a held backup", () => {
  it("is deleted by nobody, not by force, until it is released; all of it is in the audit log", async () => {
    const id = await addBackup();
    const until = tomorrow();
    await actAs(actorOf(principal), () => holdBackup(database, principal, id, { until, reason: "court order" }));
    const refusal = new InvalidError("backup", `Backup is held until ${until.toISOString()}: court order`);
    await expect(remove(id)).rejects.toThrow(refusal);
    await expect(remove(id, undelayed)).rejects.toThrow(refusal);
    await expect(requestBackupForceDelete(database, admin, id)).rejects.toThrow(refusal);
    expect((await rowOf(id)).status).toBe("available");
    expect(await deletionsOf(id)).toEqual([]);
    await actAs(actorOf(principal), () => releaseHold(database, principal, id));
    await remove(id, undelayed);
    expect((await rowOf(id)).status).toBe("deleting");
    const entries = await listAudit(database, { resourceId: id, limit: 10 });
    expect(entries.map(({ toStatus, reason, userId }) => [toStatus, reason, userId])).toEqual([
      ["deleting", null, "u"],
      ["available", "no longer held", "u"],
      ["available", `held until ${until.toISOString()}: court order`, "u"],
      ["available", null, null],
    ]);
  });

  it("is free again when its time has come", async () => {
    const id = await addBackup({ holdUntil: new Date(Date.now() - 1000), holdReason: "over" });
    await remove(id, undelayed);
    expect((await rowOf(id)).status).toBe("deleting");
  });

  it("cannot be held by strangers, nor until a time that is past", async () => {
    const id = await addBackup();
    const until = tomorrow();
    await expect(holdBackup(database, stranger, id, { until, reason: "r" })).rejects.toThrow(NotFoundError);
    await expect(releaseHold(database, stranger, id)).rejects.toThrow(NotFoundError);
    const past = { until: new Date(Date.now() - 1000), reason: "r" };
    await expect(holdBackup(database, principal, id, past)).rejects.toThrow("hold.until: is not in the future");
    await expect(holdBackup(database, principal, randomUUID(), { until, reason: "r" })).rejects.toThrow(NotFoundError);
    expect((await rowOf(id)).holdUntil).toBeNull();
  });
});

describe("a backup that is deleted with a delay", () => {
  it("is seen by nobody, keeps its objects and its quota, and comes back as it was", async () => {
    const id = await addBackup();
    await database.quota.upsert({
      where: { projectId: "p" },
      create: { projectId: "p", backupsUsed: 1, backupGigabytesUsed: 1 },
      update: { backupsUsed: 1, backupGigabytesUsed: 1 },
    });
    await remove(id);
    await expect(getBackup(database, principal, id)).rejects.toThrow(NotFoundError);
    await expect(remove(id)).rejects.toThrow(NotFoundError);
    await expect(requestBackupForceDelete(database, admin, id)).rejects.toThrow(NotFoundError);
    expect(await listed()).toEqual([]);
    expect(await deletionsOf(id)).toEqual([]);
    expect((await listHidden(database, principal, { limit: 10 })).map((b) => b.id)).toEqual([id]);
    expect(await listHidden(database, stranger, { limit: 10 })).toEqual([]);
    await expect(undeleteBackup(database, stranger, id)).rejects.toThrow(NotFoundError);
    const { backupsUsed } = await database.quota.findUniqueOrThrow({ where: { projectId: "p" } });
    expect(backupsUsed).toBe(1);
    await minutePasses();
    expect(await undeleteBackup(database, principal, id)).toEqual([id]);
    expect(await rowOf(id)).toMatchObject({ status: "available", deletedAt: null, undeleteUntil: null });
    expect(await listed()).toEqual([id]);
    await expect(undeleteBackup(database, principal, id)).rejects.toThrow(NotFoundError);
  });

  it("is removed by the ordinary task when the delay is over, and seen by nobody meanwhile", async () => {
    const id = await addBackup();
    await remove(id);
    await delayIsOver(id);
    await expect(undeleteBackup(database, principal, id)).rejects.toThrow("The deletion delay is over");
    await minutePasses();
    const [operation] = await deletionsOf(id);
    expect(operation?.state).toBe("queued");
    expect((await rowOf(id)).status).toBe("deleting");
    await expect(getBackup(database, principal, id)).rejects.toThrow(NotFoundError);
    expect(await listed()).toEqual([]);
    await expect(undeleteBackup(database, principal, id)).rejects.toThrow(NotFoundError);
    await minutePasses();
    expect(await deletionsOf(id)).toHaveLength(1);
    await finish(operation?.id ?? "", id);
    expect(await rowOf(id)).toMatchObject({ status: "deleted", undeleteUntil: null });
    expect(await listHidden(database, principal, { limit: 10 })).toEqual([]);
  });

  it("is seen again, in error, when its removal fails", async () => {
    const id = await addBackup();
    await remove(id);
    await delayIsOver(id);
    await minutePasses();
    const [operation] = await deletionsOf(id);
    await failOperation(database, operation?.id ?? "", { reason: "EIO" });
    expect(await rowOf(id)).toMatchObject({ status: "error", deletedAt: null, undeleteUntil: null, failReason: "EIO" });
    expect(await listed()).toEqual([id]);
  });

  it("has its delay from the policy that made it, where that says so", async () => {
    const rules = { keep_last: 1, min_good: 1, manual: false, deletion_delay_hours: 100 };
    const policy = await createPolicy(database, config, principal, {
      ...{
        projectId: "p",
        name: randomUUID(),
        description: null,
        enabled: false,
        force: true,
        priority: "normal",
        verify: null,
        targetHours: null,
      },
      schedule: { cron: "0 2 * * *", timezone: "UTC", window_minutes: 60, jitter_minutes: 0 },
      ...{ kind: { full_every: 1 }, retention: rules, squash: null, repository: null },
    });
    const id = await addBackup({ policyId: policy.id });
    await remove(id, undelayed);
    const { deletedAt, undeleteUntil } = await rowOf(id);
    expect((undeleteUntil?.getTime() ?? 0) - (deletedAt?.getTime() ?? 0)).toBe(100 * hourMs);
  });

  it("is deleted at once where it was never completed, where no delay is set, or by force", async () => {
    const failed = await addBackup({ status: "error" });
    await remove(failed);
    const other = await addBackup();
    await remove(other, undelayed);
    const forced = await addBackup();
    await requestBackupForceDelete(database, admin, forced);
    for (const id of [failed, other, forced]) expect((await rowOf(id)).status).toBe("deleting");
  });

  it("can be removed before by an admin", async () => {
    const id = await addBackup();
    await remove(id);
    await requestHiddenRemoval(database, admin, id);
    expect((await rowOf(id)).status).toBe("deleting");
    expect(await deletionsOf(id)).toHaveLength(1);
    await expect(requestHiddenRemoval(database, admin, id)).rejects.toThrow(NotFoundError);
  });
});

describe("chains", () => {
  async function chain(): Promise<[string, string, string]> {
    const volumeId = randomUUID();
    const full = await addBackup({ volumeId });
    const one = await addBackup({ volumeId, parentId: full });
    return [full, one, await addBackup({ volumeId, parentId: one })];
  }

  it("go from the newest on, and a parent stays until what builds on it is gone", async () => {
    const [full, one, two] = await chain();
    await expect(remove(full)).rejects.toThrow("Incremental backups exist");
    await remove(two);
    await remove(one);
    // No delay of its own: it stays as long as what builds on it.
    await remove(full, undelayed);
    expect((await rowOf(full)).undeleteUntil).toEqual((await rowOf(one)).undeleteUntil);
    await delayIsOver(full);
    await minutePasses();
    expect((await rowOf(full)).status).toBe("deleted");
    await expect(requestHiddenRemoval(database, admin, full)).rejects.toThrow("can still be brought back");
    expect(await undeleteBackup(database, principal, one).catch((error: Error) => error.message)).toMatch(
      "delay is over",
    );
    await delayIsOver(one);
    await delayIsOver(two);
    for (const id of [two, one, full]) {
      await minutePasses();
      const [operation] = await deletionsOf(id);
      await finish(operation?.id ?? "", id);
    }
    expect(await database.backup.count({ where: { undeleteUntil: { not: null } } })).toBe(0);
  });

  it("a backup comes back with those that it builds on", async () => {
    const [full, one, two] = await chain();
    for (const id of [two, one, full]) await remove(id);
    expect(await undeleteBackup(database, principal, two)).toEqual([full, one, two]);
    expect((await listed()).sort()).toEqual([full, one, two].sort());
  });

  it("nothing is forced away below what can be brought back, and nothing new builds on what is hidden", async () => {
    const [full, one, two] = await chain();
    await remove(two);
    await expect(requestBackupForceDelete(database, admin, one)).rejects.toThrow("can still be brought back");
    const { volumeId } = await rowOf(full);
    const owner = { projectId: "p", userId: "u", sizeGib: 1, status: "available", availabilityZone: "nova" };
    await database.volume.create({ data: { ...owner, id: volumeId, sizeBytes: 4096n, backend: "files" } });
    const asked = { name: null, description: null, metadata: {}, availabilityZone: null, snapshotId: null };
    const request = { ...asked, container: null, incremental: true, force: false, volumeId };
    expect((await requestBackup(database, config, principal, request)).parentId).toBe(one);
  });

  it("objects that a hidden row shares with one that is deleted stay", async () => {
    const shared = { container: "c", serviceMetadata: "shared" };
    const hidden = await addBackup(shared);
    const twin = await addBackup(shared);
    await remove(hidden);
    await remove(twin, undelayed);
    const [operation] = await deletionsOf(twin);
    const claimed = await claimDeletion(operation?.id ?? "");
    expect(await beginBackupDelete(database, claimed.operation)).toBeNull();
  });
});

async function claimDeletion(operationId: string) {
  const { id: taskId } = await database.task.findFirstOrThrow({ where: { operationId } });
  const task = await claimTask(database, { taskId, workerId: "w", leaseMs: 60_000 });
  if (!task) throw new Error("the task cannot be had");
  return { operation: task.operation, result: { taskId, claim: task.claim, bytesDone: 0, bytesStored: 0 } };
}

/** Ends a deletion as a worker does whose repository has nothing left of the backup. */
async function finish(operationId: string, backupId: string): Promise<void> {
  const { operation, result } = await claimDeletion(operationId);
  expect((await beginBackupDelete(database, operation))?.prefix).toBe(`p-${backupId}`);
  await finishBackupDelete(database, operation, result);
}
