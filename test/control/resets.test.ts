import { randomUUID } from "node:crypto";
import {
  type Config,
  createGroup,
  createGroupType,
  type Database,
  InvalidError,
  type OperationKind,
  type Principal,
  requestBackup,
  requestBackupDelete,
  requestBackupImport,
  requestGroupFromSource,
  requestGroupSnapshot,
  requestGroupSnapshotDelete,
  requestRestore,
  requestSnapshot,
  requestSnapshotDelete,
  requestVolume,
  requestVolumeDelete,
  requestVolumeExport,
  requestVolumeExtend,
  requestVolumeFromBackup,
  requestVolumeImport,
  resetBackupStatus,
  resetGroup,
  resetGroupSnapshot,
  resetSnapshot,
  resetVolume,
} from "@tephra/control";
import { loadConfig, openDatabase } from "@tephra/control/process";
import {
  beginBackupDelete,
  beginSnapshotDelete,
  beginVolumeDelete,
  type ClaimedTask,
  claimTask,
  failOperation,
  finishBackup,
  inTransaction,
  startOperation,
} from "@tephra/control/work";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
import { createDatabase } from "../kit/instance.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;
let groupType: string;
beforeAll(async () => {
  const url = await createDatabase(inject("servers"), stack);
  database = openDatabase(url, { connectionsMax: 4 });
  stack.defer(() => database.$disconnect());
  const read = loadConfig({ DATABASE_URL: url, REDIS_URL: "redis://127.0.0.1:1", TEPHRA_DATA_DIR: "/tmp" });
  const unlimited = Object.fromEntries(Object.keys(read.quotas).map((name) => [name, -1]));
  config = { ...read, quotas: unlimited as Config["quotas"] };
  const type = { name: "plain", description: null, isPublic: true, groupSpecs: {} };
  groupType = (await createGroupType(database, type)).id;
});
afterAll(() => stack.disposeAsync());

const principal: Principal = { userId: "u", projectId: "p", roles: [], isAdmin: true, requestId: "req-test" };
const owner = { projectId: "p", userId: "u", sizeGib: 1 };
const plain = { name: null, description: null, metadata: {}, availabilityZone: null };

async function addVolume(more: object = {}): Promise<string> {
  const id = randomUUID();
  const row = { ...owner, availabilityZone: "nova", status: "available", sizeBytes: 4096n, backend: "files" };
  await database.volume.create({ data: { ...row, ...more, id } });
  return id;
}

async function addSnapshot(volumeId: string, more: object = {}): Promise<string> {
  const id = randomUUID();
  await database.snapshot.create({ data: { ...owner, volumeId, status: "available", sizeBytes: 4096n, ...more, id } });
  return id;
}

/** A whole backup, at a place of its own. */
async function addBackup(volumeId: string, more: object = {}): Promise<string> {
  const id = randomUUID();
  const stored = { repository: "main", container: "c", serviceMetadata: id, volumeBytes: 4096n, storedBytes: 9n };
  const row = { ...owner, ...stored, volumeId, status: "available", dataTimestamp: new Date() };
  await database.backup.create({ data: { ...row, ...more, id } });
  return id;
}

async function addGroup(): Promise<string> {
  const named = { name: null, description: null, availabilityZone: null };
  return (await createGroup(database, config, principal, { ...named, groupType })).id;
}

const backUp = (volumeId: string, snapshotId: string | null = null) => {
  const request = { ...plain, volumeId, snapshotId, container: null, incremental: false, force: true };
  return requestBackup(database, config, principal, request);
};

const restore = (backupId: string, volumeId: string | null) =>
  requestRestore(database, config, principal, { backupId, volumeId, name: null });

/** A worker takes the operation's task. */
async function claim(about: object, leaseMs = 60_000): Promise<ClaimedTask> {
  const task = await database.task.findFirstOrThrow({ where: { operation: about, state: "ready" } });
  const claimed = await claimTask(database, { taskId: task.id, workerId: "w", leaseMs });
  if (!claimed) throw new Error("the task cannot be had");
  return claimed;
}

/** The worker died, and the reconciler has seen it. */
const loseWorker = (task: ClaimedTask) =>
  database.task.update({ where: { id: task.id }, data: { state: "ready", leaseUntil: null } });

const resources = {
  volume: {
    reset: (id: string, status: string) => resetVolume(database, principal, id, { status, detached: false }),
    read: (id: string) => database.volume.findUniqueOrThrow({ where: { id } }),
    targets: ["available", "error", "error_restoring", "maintenance", "creating", "backing-up", "restoring-backup"],
  },
  snapshot: {
    reset: (id: string, status: string) => resetSnapshot(database, principal, id, status),
    read: (id: string) => database.snapshot.findUniqueOrThrow({ where: { id } }),
    targets: ["available", "error", "error_deleting", "creating", "deleting", "backing-up"],
  },
  backup: {
    reset: (id: string, status: string) => resetBackupStatus(database, principal, id, status as "available" | "error"),
    read: (id: string) => database.backup.findUniqueOrThrow({ where: { id } }),
    targets: ["available", "error"],
  },
  group: {
    reset: (id: string, status: string) => resetGroup(database, principal, id, status),
    read: (id: string) => database.group.findUniqueOrThrow({ where: { id } }),
    targets: ["available", "error", "creating", "deleting"],
  },
  group_snapshot: {
    reset: (id: string, status: string) => resetGroupSnapshot(database, principal, id, status),
    read: (id: string) => database.groupSnapshot.findUniqueOrThrow({ where: { id } }),
    targets: ["available", "error", "creating", "deleting"],
  },
} as const;

type Resource = keyof typeof resources;

/**
 * set: the row has the status, and nothing is live. kept: as before, since that is what it becomes anyhow. refused: as before.
 * A status that stands instead is what the row has when the work has been cancelled.
 */
type Outcome = "set" | "kept" | "refused" | "available";

interface Scene {
  resource: Resource;
  /** Status and live operation, as a person would say it. */
  scene: string;
  /** Makes it; returns the row's id. */
  make: () => Promise<string>;
  available: Outcome;
  error: Outcome;
  /** Statuses that mean work. */
  moving: Outcome;
}

const idle = { available: "set", error: "set", moving: "set" } as const;
const work = { available: "set", error: "set", moving: "refused" } as const;
const making = { available: "kept", error: "set", moving: "refused" } as const;
const going = { available: "refused", error: "set", moving: "refused" } as const;
const others = { available: "refused", error: "refused", moving: "refused" } as const;

async function volumeWith(begin: (id: string) => Promise<unknown>): Promise<string> {
  const id = await addVolume();
  await begin(id);
  return id;
}

const volumes: Scene[] = [
  { resource: "volume", scene: "at rest", make: () => addVolume(), ...idle },
  {
    resource: "volume",
    scene: "creating: volume-create",
    make: async () => (await requestVolume(database, config, principal, { ...plain, sizeGib: 1, source: null })).id,
    ...making,
  },
  {
    resource: "volume",
    scene: "creating: volume-import",
    make: async () => (await requestVolumeImport(database, config, principal, { ...plain, path: "/x" })).volume.id,
    ...making,
  },
  {
    resource: "volume",
    scene: "creating: backup-restore",
    make: async () => {
      const backupId = await addBackup(await addVolume());
      return (await requestVolumeFromBackup(database, config, principal, { ...plain, sizeGib: null, backupId })).id;
    },
    ...making,
  },
  { resource: "volume", scene: "backing-up: backup-create", make: () => volumeWith(backUp), ...work },
  {
    resource: "volume",
    scene: "backing-up: backup-create, a worker at it",
    make: () => volumeWith(async (id) => (await backUp(id)) && claim({ volumeId: id })),
    ...work,
  },
  {
    resource: "volume",
    scene: "restoring-backup: backup-restore",
    make: () => volumeWith(async (id) => restore(await addBackup(id), id)),
    ...work,
  },
  {
    resource: "volume",
    scene: "restoring-backup: backup-restore, a worker at it",
    make: () => volumeWith(async (id) => (await restore(await addBackup(id), id)) && claim({ volumeId: id })),
    ...going,
  },
  {
    resource: "volume",
    scene: "error: a restore that was cancelled, whose worker does not know it yet",
    make: async () => {
      const id = await volumeWith(async (of) => (await restore(await addBackup(of), of)) && claim({ volumeId: of }));
      await resources.volume.reset(id, "error");
      return id;
    },
    ...going,
  },
  {
    resource: "volume",
    scene: "restoring-backup: a part of group-restore that is done",
    make: async () => {
      const id = await addVolume({ status: "restoring-backup" });
      const whole = await begin({ kind: "group-restore" });
      const part = await begin({ kind: "backup-restore", volumeId: id, parentId: whole });
      await database.operation.update({ where: { id: part }, data: { state: "succeeded" } });
      return id;
    },
    ...others,
  },
  {
    resource: "volume",
    scene: "uploading: volume-export",
    make: () =>
      volumeWith((volumeId) => requestVolumeExport(database, principal, { volumeId, path: "/x", overwrite: false })),
    ...work,
  },
  {
    resource: "volume",
    scene: "extending: volume-extend",
    make: () => volumeWith((id) => requestVolumeExtend(database, config, principal, id, { sizeGib: 2, inUse: false })),
    ...work,
  },
  {
    resource: "volume",
    scene: "deleting: volume-delete, with a snapshot",
    make: () => volumeWith(async (id) => (await addSnapshot(id)) && deleteVolume(id)),
    ...work,
  },
  {
    resource: "volume",
    scene: "deleting: volume-delete, whose worker died",
    make: () =>
      volumeWith(async (id) => {
        await deleteVolume(id);
        await loseWorker(await claim({ volumeId: id }));
      }),
    ...going,
  },
  {
    resource: "volume",
    scene: "error_deleting: a deletion that failed after it had begun",
    make: () =>
      volumeWith(async (id) => {
        await deleteVolume(id);
        const { operation } = await claim({ volumeId: id });
        await beginVolumeDelete(database, operation);
        await failOperation(database, operation.id, { reason: "EIO" });
      }),
    ...going,
  },
];

const deleteVolume = (id: string) => requestVolumeDelete(database, principal, id, { cascade: true });
const deleteSnapshot = (id: string) => requestSnapshotDelete(database, principal, id);

async function begin(operation: { kind: OperationKind } & Record<string, string | null>): Promise<string> {
  return inTransaction(database, (tx) => {
    return startOperation(tx, principal, { projectId: "p", ...operation, task: null } as never);
  });
}

async function snapshotWith(start: (id: string, volumeId: string) => Promise<unknown>): Promise<string> {
  const volumeId = await addVolume();
  const id = await addSnapshot(volumeId);
  await start(id, volumeId);
  return id;
}

const takeSnapshot = async () => {
  const request = { ...plain, volumeId: await addVolume(), force: false };
  return (await requestSnapshot(database, config, principal, request)).id;
};

const snapshots: Scene[] = [
  { resource: "snapshot", scene: "at rest", make: () => snapshotWith(async () => {}), ...idle },
  { resource: "snapshot", scene: "creating: snapshot-create", make: takeSnapshot, ...making },
  {
    resource: "snapshot",
    scene: "error: its creation was cancelled, and the worker does not know it yet",
    make: async () => {
      const id = await takeSnapshot();
      await claim({ snapshotId: id });
      await resources.snapshot.reset(id, "error");
      return id;
    },
    ...going,
  },
  {
    resource: "snapshot",
    scene: "backing-up: backup-create",
    make: () => snapshotWith((id, volumeId) => backUp(volumeId, id)),
    ...work,
  },
  { resource: "snapshot", scene: "deleting: snapshot-delete", make: () => snapshotWith(deleteSnapshot), ...work },
  {
    resource: "snapshot",
    scene: "deleting: snapshot-delete, whose worker died",
    make: () =>
      snapshotWith(async (id) => {
        await deleteSnapshot(id);
        await loseWorker(await claim({ snapshotId: id }));
      }),
    ...going,
  },
  {
    resource: "snapshot",
    scene: "error_deleting: a deletion that failed after it had begun",
    make: () =>
      snapshotWith(async (id) => {
        await deleteSnapshot(id);
        const { operation } = await claim({ snapshotId: id });
        await beginSnapshotDelete(database, operation);
        await failOperation(database, operation.id, { reason: "EIO" });
      }),
    ...going,
  },
  {
    resource: "snapshot",
    scene: "deleting: volume-delete",
    make: () => snapshotWith((_id, volumeId) => deleteVolume(volumeId)),
    ...others,
  },
  {
    resource: "snapshot",
    scene: "creating: group-snapshot",
    make: async () => {
      const taken = await takeGroupSnapshot();
      return (await database.snapshot.findFirstOrThrow({ where: { groupSnapshotId: taken } })).id;
    },
    ...others,
  },
];

async function takeGroupSnapshot(): Promise<string> {
  const groupId = await addGroup();
  await addVolume({ groupId });
  return (await requestGroupSnapshot(database, config, principal, { groupId, name: null, description: null })).id;
}

/** A group snapshot with a snapshot in it, at rest. */
async function addGroupSnapshot(): Promise<{ id: string; groupId: string }> {
  const [id, groupId] = [randomUUID(), await addGroup()];
  const { projectId, userId } = owner;
  await database.groupSnapshot.create({
    data: { id, projectId, userId, groupId, groupTypeId: groupType, status: "available" },
  });
  await addSnapshot(await addVolume({ groupId }), { groupSnapshotId: id });
  return { id, groupId };
}

async function backupWith(start: (id: string, volumeId: string) => Promise<unknown>): Promise<string> {
  const volumeId = await addVolume();
  const id = await addBackup(volumeId);
  await start(id, volumeId);
  return id;
}

const deleteBackup = (id: string) => requestBackupDelete(database, config, principal, id);

const backups: Scene[] = [
  { resource: "backup", scene: "at rest", make: () => backupWith(async () => {}), ...idle },
  {
    resource: "backup",
    scene: "creating: backup-create",
    make: async () => (await backUp(await addVolume())).id,
    ...making,
  },
  {
    resource: "backup",
    scene: "creating: backup-import",
    make: async () => {
      const record = { service: "s", url: "", id: randomUUID(), parentId: null, sizeGib: 1 };
      return (await requestBackupImport(database, config, principal, record)).id;
    },
    ...making,
  },
  {
    resource: "backup",
    scene: "error: it was never completed",
    make: async () => {
      const { id } = await backUp(await addVolume());
      await resources.backup.reset(id, "error");
      return id;
    },
    ...going,
  },
  {
    resource: "backup",
    scene: "restoring: backup-restore",
    make: () => backupWith((id) => restore(id, null)),
    available: "set",
    error: "available",
    moving: "refused",
  },
  {
    resource: "backup",
    scene: "creating: a member of group-backup whose snapshots are not taken yet",
    make: () => memberOf("group-backup", { status: "creating", storedBytes: null }),
    ...others,
  },
  {
    resource: "backup",
    scene: "restoring: a member of group-restore that is prepared",
    make: () => memberOf("group-restore", { status: "restoring" }),
    ...others,
  },
  { resource: "backup", scene: "deleting: backup-delete", make: () => backupWith(deleteBackup), ...work },
  {
    resource: "backup",
    scene: "deleting: backup-delete, whose worker died",
    make: () =>
      backupWith(async (id) => {
        await deleteBackup(id);
        await loseWorker(await claim({ backupId: id }));
      }),
    ...going,
  },
  {
    resource: "backup",
    scene: "deleting: backup-delete, of objects that another deletion removes already",
    make: async () => {
      const volumeId = await addVolume();
      const [one, other] = [await addBackup(volumeId), await addBackup(volumeId)];
      await database.backup.update({ where: { id: other }, data: { serviceMetadata: one } });
      await deleteBackup(one);
      await deleteBackup(other);
      const { operation } = await claim({ backupId: other });
      expect(await beginBackupDelete(database, operation)).toMatchObject({ prefix: one });
      return one;
    },
    ...going,
  },
  {
    resource: "backup",
    scene: "error: a deletion that failed after it had begun",
    make: () =>
      backupWith(async (id) => {
        await deleteBackup(id);
        const { operation } = await claim({ backupId: id });
        await beginBackupDelete(database, operation);
        await failOperation(database, operation.id, { reason: "EIO" });
      }),
    ...going,
  },
  {
    resource: "backup",
    scene: "error: a deletion that failed before it had begun",
    make: () =>
      backupWith(async (id) => {
        await deleteBackup(id);
        const { operation } = await claim({ backupId: id });
        await failOperation(database, operation.id, { reason: "The repository is not mounted." });
      }),
    ...idle,
  },
];

async function memberOf(kind: OperationKind, backup: object): Promise<string> {
  const { id: groupSnapshotId, groupId } = await addGroupSnapshot();
  await begin({ kind, groupId, groupSnapshotId });
  return addBackup(await addVolume(), { ...backup, groupSnapshotId });
}

const groups: Scene[] = [
  { resource: "group", scene: "at rest", make: addGroup, ...idle },
  {
    resource: "group",
    scene: "creating: volume-create of its members",
    make: async () => {
      const { id: groupSnapshotId } = await addGroupSnapshot();
      const source = { name: null, description: null, source: { groupSnapshotId } };
      return (await requestGroupFromSource(database, config, principal, source)).id;
    },
    ...making,
  },
  {
    resource: "group",
    scene: "available: group-snapshot",
    make: async () => {
      const id = await takeGroupSnapshot();
      return (await database.groupSnapshot.findUniqueOrThrow({ where: { id } })).groupId;
    },
    ...others,
  },
  {
    resource: "group_snapshot",
    scene: "at rest",
    make: async () => (await addGroupSnapshot()).id,
    ...idle,
  },
  { resource: "group_snapshot", scene: "creating: group-snapshot", make: takeGroupSnapshot, ...making },
  {
    resource: "group_snapshot",
    scene: "deleting: group-delete",
    make: async () => {
      const { id } = await addGroupSnapshot();
      await requestGroupSnapshotDelete(database, config, principal, id);
      return id;
    },
    ...going,
  },
  {
    resource: "group_snapshot",
    scene: "available: group-restore",
    make: async () => {
      const { id, groupId } = await addGroupSnapshot();
      await begin({ kind: "group-restore", groupId, groupSnapshotId: id });
      return id;
    },
    ...work,
  },
];

const isError = (status: string) => status.startsWith("error");
const resting = ["available", "maintenance"];

function expectedOf(scene: Scene, target: string): Outcome {
  if (isError(target)) return scene.error;
  // What a creation becomes is `available` alone: every other resting status ends it as an error does, if nobody writes.
  if (target === "maintenance") return scene.available === "kept" ? "set" : scene.available;
  return resting.includes(target) ? scene.available : scene.moving;
}

async function clear(): Promise<void> {
  await database.operation.deleteMany();
  await database.snapshot.deleteMany();
  await database.backup.deleteMany();
  await database.groupSnapshot.deleteMany();
  await database.volume.deleteMany();
  await database.group.deleteMany();
}

/** Everything that is live or has a status, so that what was refused can be seen to have changed nothing. */
async function allRows(): Promise<unknown> {
  const [rows] = await database.$queryRaw<unknown[]>`SELECT
    (SELECT json_agg(json_build_array(id, status) ORDER BY id) FROM volumes) AS volumes,
    (SELECT json_agg(json_build_array(id, status) ORDER BY id) FROM snapshots) AS snapshots,
    (SELECT json_agg(json_build_array(id, status) ORDER BY id) FROM backups) AS backups,
    (SELECT json_agg(json_build_array(id, status) ORDER BY id) FROM group_snapshots) AS group_snapshots,
    (SELECT json_agg(json_build_array(id, status) ORDER BY id) FROM groups) AS groups,
    (SELECT json_agg(json_build_array(id, state) ORDER BY id) FROM operations) AS operations`;
  return rows;
}

/** Rows of one status that have a live operation which says another one, and rows that are being moved by nobody. */
async function contradictions(): Promise<unknown> {
  const [found] = await database.$queryRaw<Record<string, number>[]>`
    WITH live AS (SELECT * FROM operations WHERE state IN ('queued', 'running')),
    says(kind, of, status) AS (VALUES
      ('volume-create', 'volume', 'creating'), ('volume-import', 'volume', 'creating'), ('volume-export', 'volume', 'uploading'),
      ('volume-extend', 'volume', 'extending'), ('volume-delete', 'volume', 'deleting'), ('snapshot-create', 'snapshot', 'creating'),
      ('snapshot-delete', 'snapshot', 'deleting'), ('backup-create', 'backup', 'creating'), ('backup-import', 'backup', 'creating'),
      ('backup-restore', 'backup', 'restoring'), ('backup-delete', 'backup', 'deleting'))
    SELECT
      (SELECT count(*)::int FROM live JOIN says USING (kind) JOIN volumes v ON v.id = live.volume_id
        WHERE says.of = 'volume' AND v.status <> says.status) AS volumes,
      (SELECT count(*)::int FROM live JOIN says USING (kind) JOIN snapshots s ON s.id = live.snapshot_id
        WHERE says.of = 'snapshot' AND s.status <> says.status) AS snapshots,
      (SELECT count(*)::int FROM live JOIN says USING (kind) JOIN backups b ON b.id = live.backup_id
        WHERE says.of = 'backup' AND b.status <> says.status) AS backups,
      (SELECT count(*)::int FROM live JOIN volumes v ON v.id = live.volume_id WHERE live.kind = 'backup-create'
        AND live.snapshot_id IS NULL AND v.status <> 'backing-up') AS "volumes of backups",
      (SELECT count(*)::int FROM live JOIN volumes v ON v.id = live.volume_id WHERE live.kind = 'backup-restore'
        AND v.status NOT IN ('restoring-backup', 'creating')) AS "volumes of restores",
      (SELECT count(*)::int FROM backups WHERE status = 'available'
        AND (removal_begun_at IS NOT NULL OR (stored_bytes IS NULL AND object_count = 0))) AS "available and not restorable",
      (SELECT count(*)::int FROM snapshots s WHERE s.status = 'deleting' AND NOT EXISTS (SELECT FROM live
        WHERE (live.kind = 'volume-delete' AND live.volume_id = s.volume_id) OR live.snapshot_id = s.id)) AS "deleted by nobody"`;
  return found;
}

describe("an admin's word on a status", () => {
  for (const scene of [...volumes, ...snapshots, ...backups, ...groups]) {
    const { reset, read, targets } = resources[scene.resource];
    it(`${scene.resource} ${scene.scene}`, async () => {
      for (const target of targets) {
        await clear();
        const id = await scene.make();
        const before = { status: (await read(id)).status, all: await allRows() };
        const refused = await reset(id, target).then(
          () => null,
          (error: unknown) => error,
        );
        if (refused !== null && !(refused instanceof InvalidError)) throw refused;
        const { status } = await read(id);
        const expected = expectedOf(scene, target);
        const said = { target, refused: refused !== null, status };
        if (expected === "refused") expect(said).toEqual({ target, refused: true, status: before.status });
        else if (expected === "kept") expect(said).toEqual({ target, refused: false, status: before.status });
        else expect(said).toEqual({ target, refused: false, status: expected === "set" ? target : expected });
        if (expected === "refused" || expected === "kept") expect(await allRows(), target).toEqual(before.all);
        const nothing = Object.fromEntries(Object.keys((await contradictions()) as object).map((key) => [key, 0]));
        if (isError(target) || resting.includes(target)) expect(await contradictions(), target).toEqual(nothing);
      }
    });
  }
});

it("a deletion that was ended half way can be asked for again, and waits for the worker that does not know of its end", async () => {
  const id = await backupWith(deleteBackup);
  const task = await claim({ backupId: id });
  await beginBackupDelete(database, task.operation);
  await resources.backup.reset(id, "error");
  await deleteBackup(id);
  const [next] = await database.task.findMany({ where: { operation: { backupId: id, state: "queued" } } });
  expect(next?.state).toBe("blocked");
});

it("a backup whose creation was cancelled is not completed by the worker that does not know it", async () => {
  const { id } = await backUp(await addVolume());
  const task = await claim({ backupId: id });
  await resources.backup.reset(id, "error");
  const plan = { backupId: id, fingerprint: null, source: { kind: "volume" } };
  const done = { plan, sealed: { objects: 1, bytesStored: 1 } } as never;
  const result = { taskId: task.id, claim: task.claim, bytesDone: 0, bytesStored: 0 };
  await expect(finishBackup(database, task.operation, result, done)).rejects.toThrow("has ended");
  await expect(resources.backup.reset(id, "available")).rejects.toThrow("never completed");
});
