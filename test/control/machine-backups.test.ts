import { randomUUID } from "node:crypto";
import {
  attachDisk,
  type Config,
  createMachine,
  type Database,
  deleteInstance,
  detachDisk,
  finalizeMachineBackup,
  getMachineBackup,
  listCheckpoints,
  type Principal,
  type RefusalRule,
  removeCheckpoint,
  requestImageTransfer,
  requestMachineBackup,
  requestVolumeDelete,
  requestVolumeExtend,
  resetVolume,
  setPower,
  updateInstance,
} from "@tephra/control";
import { openLog, startReconciler } from "@tephra/control/process";
import {
  backupsOf,
  beginMachineBackup,
  endLeftovers,
  endMachineBackup,
  readyMachineBackup,
} from "@tephra/control/work";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";
import { waitFor } from "../kit/wait-for.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;
beforeAll(async () => {
  const opened = await openControl(stack, { connectionsMax: 12 });
  database = opened.database;
  config = {
    ...opened.config,
    volume_backends: [{ name: "images", driver: "qemu", path: "/nowhere", roots: [] }],
  };
  const server = { id: randomUUID(), host: "here", pid: 1, url: "http://here:1", backends: ["images"] };
  await database.imageServer.create({ data: server });
});
afterAll(() => stack.disposeAsync());

const worker = { id: "w1", host: "here" };
beforeEach(async () => {
  const of = { pid: 1, queue: "q", reaches: ["backend:images"], slots: 1, heartbeatAt: new Date() };
  await database.worker.deleteMany();
  await database.worker.create({ data: { ...worker, ...of } });
  await database.imageServer.updateMany({ data: { heartbeatAt: new Date() } });
});

const alice: Principal = { userId: "u", projectId: "p", roles: [], isAdmin: false, requestId: "req-test" };
const refusedBy = (rule: RefusalRule) => expect.objectContaining({ code: "refused", rule });
const invalid = expect.objectContaining({ code: "invalid" });

async function machineWith(disks: number): Promise<{ id: string; disks: string[] }> {
  const { instance } = await createMachine(database, config, alice, {
    id: null,
    name: randomUUID(),
    configuration: {},
  });
  const ids: string[] = [];
  for (let at = 0; at < disks; at += 1) {
    const id = randomUUID();
    const place = { sizeGib: 1, sizeBytes: 4096n, backend: "images", availabilityZone: "nova", tracksChanges: true };
    await database.volume.create({ data: { ...place, id, projectId: "p", userId: "u", status: "available" } });
    const how = { active: true, bootable: at === 0, readOnly: false, interface: "virtio" as const };
    await attachDisk(database, alice, instance.id, id, how);
    ids.push(id);
  }
  return { id: instance.id, disks: ids };
}

const begin = (machine: string, disks: readonly string[], fromCheckpointId: string | null = null) =>
  requestMachineBackup(database, config, alice, machine, {
    id: null,
    description: null,
    fromCheckpointId,
    requireConsistency: false,
    disks: disks.map((id) => ({ id, full: false })),
  });

/** As a worker would that has opened the disks. */
async function makeReady(id: string, disks: readonly string[]): Promise<boolean> {
  const row = await database.machineBackup.findUniqueOrThrow({ where: { id }, include: { disks: true } });
  await beginMachineBackup(database, row);
  return readyMachineBackup(database, row, {
    takenAt: new Date(),
    consistency: "crash",
    frozenMs: null,
    exports: disks.map((diskId) => ({ diskId, socketPath: "/s", name: diskId, sizeBytes: 4096, changes: null })),
    expired: [],
  });
}

const statusesOf = async (disks: readonly string[]): Promise<string[]> =>
  (await database.volume.findMany({ where: { id: { in: [...disks] } } })).map(
    ({ status, machineBackupId }) => `${status}${machineBackupId === null ? "" : " held"}`,
  );

const expire = (id: string) =>
  database.machineBackup.update({ where: { id }, data: { leaseUntil: new Date(Date.now() - 60_000) } });

/** At least one whole pass of a reconciler that begins now. */
async function reconcile(): Promise<void> {
  const settings = { ...config, tasks: { ...config.tasks, reconcile_ms: 100 } };
  const log = openLog({ log_level: "silent", hostName: "test" }, "test");
  const reconciler = startReconciler({ database, config: settings, log });
  // It is done last in a pass: the first one may have been under way.
  const due = { name: "forget-audit" };
  for (let passes = 0; passes < 2; passes += 1) {
    const ranAt = new Date(0);
    await database.schedule.upsert({ where: due, create: { ...due, ranAt }, update: { ranAt } });
    const isDone = async () => (await database.schedule.count({ where: { ...due, ranAt: { gt: ranAt } } })) === 1;
    await waitFor(isDone, { what: "a pass has ended" });
  }
  await reconciler.stop();
}

const failed = { phase: "failed", reason: "for a test", leftovers: false, lost: false } as const;

it("of many requests at once one begins, and the others find the machine in its backup", async () => {
  const { id, disks } = await machineWith(2);
  for (let round = 0; round < 5; round += 1) {
    const results = await Promise.allSettled(Array.from({ length: 6 }, () => begin(id, disks)));
    const begun = results.flatMap((result) => (result.status === "fulfilled" ? [result.value] : []));
    const errors = results.flatMap((result) => (result.status === "rejected" ? [result.reason] : []));
    expect(begun).toHaveLength(1);
    expect(errors).toEqual(Array(5).fill(refusedBy("during-backup")));
    expect(await statusesOf(disks)).toEqual(["backing-up held", "backing-up held"]);
    await endMachineBackup(database, { id: begun[0]?.id ?? "", workerId: null }, failed);
    expect(await statusesOf(disks)).toEqual(["in-use", "in-use"]);
  }
});

it("while it lasts, machine and disks stay as they are for every other verb", async () => {
  const { id, disks } = await machineWith(1);
  const [disk = ""] = disks;
  const backup = await begin(id, disks);
  await expect(setPower(database, alice, id, "start")).rejects.toEqual(refusedBy("during-backup"));
  await expect(detachDisk(database, alice, id, disk)).rejects.toEqual(refusedBy("during-backup"));
  await expect(updateInstance(database, config, alice, id, { powerState: "ACTIVE" })).rejects.toEqual(invalid);
  await expect(deleteInstance(database, alice, id)).rejects.toEqual(invalid);
  await expect(requestVolumeDelete(database, alice, disk, { cascade: false })).rejects.toEqual(invalid);
  await expect(requestVolumeExtend(database, config, alice, disk, { sizeGib: 2, inUse: true })).rejects.toEqual(
    invalid,
  );
  const copy = { subject: { volumeId: disk }, direction: "download", format: "raw" } as const;
  const transfer = { ...copy, timeoutPolicy: "legacy", inactivityTimeout: null, host: null } as const;
  await expect(requestImageTransfer(database, config, alice, transfer)).rejects.toMatchObject({
    problem: "disk-locked",
  });
  expect(await statusesOf(disks)).toEqual(["backing-up held"]);
  await endMachineBackup(database, { id: backup.id, workerId: null }, failed);
  await setPower(database, alice, id, "start");
});

it("a backup whose worker is gone ends: locks and transfers go, and what is left has a new owner", async () => {
  const { id, disks } = await machineWith(1);
  const [volumeId = ""] = disks;
  const { id: backupId } = await begin(id, disks);
  expect(await makeReady(backupId, disks)).toBe(true);
  const [checkpoint] = await listCheckpoints(database, alice, id);
  expect(checkpoint?.status).toBe("created");
  const asked = {
    subject: { volumeId, backupId },
    direction: "download",
    format: null,
    timeoutPolicy: "legacy",
  } as const;
  const transfer = await requestImageTransfer(database, config, alice, {
    ...asked,
    inactivityTimeout: null,
    host: null,
  });
  await reconcile();
  expect((await getMachineBackup(database, alice, id, backupId)).status).toBe("ready");
  await expire(backupId);
  await reconcile();
  expect(await getMachineBackup(database, alice, id, backupId)).toMatchObject({
    status: "failed",
    failReason: "The worker that held it is gone.",
    leftovers: true,
  });
  expect(await statusesOf(disks)).toEqual(["in-use"]);
  expect(await listCheckpoints(database, alice, id)).toEqual([]);
  expect(await database.imageTransfer.findUnique({ where: { id: transfer.id } })).toMatchObject({
    status: "finished_failure",
  });
  const other = { id: "w2", host: "here" };
  expect((await backupsOf(database, config, { id: "w3", host: "elsewhere" })).leftovers).toEqual([]);
  const [left] = (await backupsOf(database, config, other)).leftovers;
  expect(left?.id).toBe(backupId);
  // Nobody else has it meanwhile, and the one that was only slow has nothing to say any more.
  expect((await backupsOf(database, config, worker)).leftovers).toEqual([]);
  expect(await endMachineBackup(database, { id: backupId, workerId: worker.id }, { phase: "succeeded" })).toBe(false);
  if (left) await endLeftovers(database, left);
  expect((await backupsOf(database, config, other)).leftovers).toEqual([]);
});

it("a worker that gives signs of life keeps its backups", async () => {
  const { id, disks } = await machineWith(1);
  const backup = await begin(id, disks);
  await expire(backup.id);
  const { live } = await backupsOf(database, config, worker);
  expect(live.map((row) => row.id)).toContain(backup.id);
  await reconcile();
  expect((await getMachineBackup(database, alice, id, backup.id)).status).toBe("initializing");
  await endMachineBackup(database, { id: backup.id, workerId: worker.id }, failed);
});

it("an end and a transfer at once: either the transfer is refused, or the end is", async () => {
  const { id, disks } = await machineWith(1);
  const [volumeId = ""] = disks;
  for (let round = 0; round < 10; round += 1) {
    const { id: backupId } = await begin(id, disks);
    await makeReady(backupId, disks);
    const asked = {
      subject: { volumeId, backupId },
      direction: "download",
      format: "raw",
      timeoutPolicy: "legacy",
    } as const;
    const [transfer, end] = await Promise.allSettled([
      requestImageTransfer(database, config, alice, { ...asked, inactivityTimeout: null, host: null }),
      finalizeMachineBackup(database, alice, id, backupId),
    ]);
    expect([transfer.status, end.status].toSorted()).toEqual(["fulfilled", "rejected"]);
    await endMachineBackup(database, { id: backupId, workerId: null }, failed);
    expect(await database.imageTransfer.count({ where: { backupId, endedAt: null } })).toBe(0);
  }
});

it("one that is ended before it is ready never is, and one that has ended stays so", async () => {
  const { id, disks } = await machineWith(1);
  const backup = await begin(id, disks);
  await finalizeMachineBackup(database, alice, id, backup.id);
  expect(await makeReady(backup.id, disks)).toBe(false);
  expect(await listCheckpoints(database, alice, id)).toEqual([]);
  const row = await getMachineBackup(database, alice, id, backup.id);
  expect([row.status, row.abandoned]).toEqual(["finalizing", true]);
  expect(await endMachineBackup(database, { id: backup.id, workerId: worker.id }, failed)).toBe(true);
  expect(await endMachineBackup(database, { id: backup.id, workerId: worker.id }, failed)).toBe(false);
  await finalizeMachineBackup(database, alice, id, backup.id);
  expect((await getMachineBackup(database, alice, id, backup.id)).status).toBe("failed");
});

it("checkpoints that were lost are told so, and none of them can be built on", async () => {
  const { id, disks } = await machineWith(1);
  const first = await begin(id, disks);
  await makeReady(first.id, disks);
  await finalizeMachineBackup(database, alice, id, first.id);
  expect(await endMachineBackup(database, { id: first.id, workerId: worker.id }, { phase: "succeeded" })).toBe(true);
  const [checkpoint] = await listCheckpoints(database, alice, id);
  const second = await begin(id, disks, checkpoint?.id);
  expect(second.disks[0]?.sinceId).toBe(checkpoint?.id);
  await makeReady(second.id, disks);
  await expect(removeCheckpoint(database, alice, id, checkpoint?.id ?? "")).rejects.toEqual(refusedBy("during-backup"));
  await endMachineBackup(database, { id: second.id, workerId: worker.id }, { ...failed, lost: true });
  expect((await listCheckpoints(database, alice, id)).map((row) => [row.id, row.status])).toEqual([
    [checkpoint?.id, "invalid"],
  ]);
  await expect(begin(id, disks, checkpoint?.id)).rejects.toEqual(refusedBy("checkpoint-invalid"));
  await removeCheckpoint(database, alice, id, checkpoint?.id ?? "");
  await expect(begin(id, disks, checkpoint?.id)).rejects.toEqual(refusedBy("checkpoint-unknown"));
  expect(await statusesOf(disks)).toEqual(["in-use"]);
});

it("without a worker that reaches the disks nothing is locked", async () => {
  const { id, disks } = await machineWith(1);
  await database.worker.updateMany({ data: { reaches: [] } });
  await expect(begin(id, disks)).rejects.toEqual(refusedBy("no-backup-host"));
  expect(await statusesOf(disks)).toEqual(["in-use"]);
});

it("a status that an administrator sets meanwhile stays, and the lock goes with the backup", async () => {
  const { id, disks } = await machineWith(1);
  const [disk = ""] = disks;
  const backup = await begin(id, disks);
  const admin = { ...alice, isAdmin: true };
  await resetVolume(database, admin, disk, { status: "error", detached: false });
  expect(await statusesOf(disks)).toEqual(["error held"]);
  await endMachineBackup(database, { id: backup.id, workerId: null }, failed);
  expect(await statusesOf(disks)).toEqual(["error"]);
});

it("backups are forgotten a while after their end, unless something of them is left, and checkpoints with their machine", async () => {
  const { id, disks } = await machineWith(1);
  const ids: string[] = [];
  for (const leftovers of [false, true]) {
    const backup = await begin(id, disks);
    await makeReady(backup.id, disks);
    await endMachineBackup(database, { id: backup.id, workerId: null }, { ...failed, leftovers });
    ids.push(backup.id);
  }
  const last = await begin(id, disks);
  await makeReady(last.id, disks);
  await finalizeMachineBackup(database, alice, id, last.id);
  await endMachineBackup(database, { id: last.id, workerId: null }, { phase: "succeeded" });
  await deleteInstance(database, alice, id);
  const long = new Date(Date.now() - 8 * 24 * 3_600_000);
  await database.machineBackup.updateMany({ where: { id: { in: ids } }, data: { endedAt: long } });
  await database.schedule.deleteMany({ where: { name: "forget-machine-backups" } });
  await database.schedule.create({ data: { name: "forget-machine-backups", ranAt: long } });
  await reconcile();
  const kept = await database.machineBackup.findMany({ where: { instanceId: id }, orderBy: { createdAt: "asc" } });
  expect(kept.map((row) => row.id)).toEqual([ids[1], last.id]);
  expect(await database.machineCheckpoint.count({ where: { instanceId: id } })).toBe(0);
});
