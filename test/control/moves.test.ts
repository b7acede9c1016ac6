import { randomUUID } from "node:crypto";
import {
  type Config,
  type Database,
  InvalidError,
  instanceGroupType,
  type Principal,
  requestBackup,
  requestGroupBackupDelete,
  requestRestore,
  requestVolumeDelete,
  resetBackupStatus,
} from "@tephra/control";
import { afterAll, beforeAll, expect, it, vi } from "vitest";
import { openControl } from "../kit/control-database.ts";
import { waitFor } from "../kit/wait-for.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;
beforeAll(async () => {
  ({ database, config } = await openControl(stack, { connectionsMax: 8 }));
});
afterAll(() => stack.disposeAsync());

const principal: Principal = { userId: "u", projectId: "p", roles: [], isAdmin: true, requestId: "req-test" };
const owner = { projectId: principal.projectId, userId: principal.userId };

async function addVolume(groupId: string | null = null): Promise<string> {
  const id = randomUUID();
  const place = { sizeGib: 1, sizeBytes: 4096n, backend: "files", availabilityZone: "nova" };
  await database.volume.create({ data: { ...owner, ...place, id, groupId, status: "available" } });
  return id;
}

async function addBackup(volumeId: string, groupSnapshotId: string | null = null): Promise<string> {
  const id = randomUUID();
  const stored = { repository: "main", container: "c", serviceMetadata: "p", volumeBytes: 4096n, sizeGib: 1 };
  const row = { ...owner, ...stored, id, volumeId, groupSnapshotId, status: "available", dataTimestamp: new Date() };
  await database.backup.create({ data: row });
  return id;
}

/** A machine of one disk with one backup. */
async function addGroupBackup() {
  const [instanceId, groupId, groupSnapshotId] = [randomUUID(), randomUUID(), randomUUID()];
  await database.instance.create({
    data: { ...owner, id: instanceId, name: "vm", powerState: "SHUTOFF", driver: "record" },
  });
  const group = {
    ...owner,
    id: groupId,
    groupTypeId: instanceGroupType,
    instanceId,
    availabilityZone: "nova",
    status: "available",
  };
  await database.group.create({ data: group });
  const volumeId = await addVolume(groupId);
  const snapshot = {
    ...owner,
    id: groupSnapshotId,
    groupId,
    groupTypeId: instanceGroupType,
    instanceId,
    name: "night",
  };
  await database.groupSnapshot.create({ data: { ...snapshot, status: "available" } });
  return {
    name: { groupId, instanceId, groupSnapshotId, name: "night" },
    id: await addBackup(volumeId, groupSnapshotId),
  };
}

/**
 * What comes of two requests that wait for one row, in this order: by then each has read what there is. The first is accepted. @returns
 * the second one's error, or null
 */
async function raceFor(
  table: "backups" | "snapshots",
  id: string,
  first: () => Promise<unknown>,
  second: () => Promise<unknown>,
): Promise<unknown> {
  const waiting = async (count: number) => {
    const [row] = await database.$queryRaw<{ count: number }[]>`
      SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`;
    return row?.count === count;
  };
  let one: Promise<unknown> = Promise.resolve();
  let two: Promise<unknown> = Promise.resolve();
  await database.$transaction(async (tx) => {
    if (table === "backups") await tx.$queryRaw`SELECT FROM backups WHERE id = ${id}::uuid FOR UPDATE`;
    else await tx.$queryRaw`SELECT FROM snapshots WHERE id = ${id}::uuid FOR UPDATE`;
    one = first();
    await waitFor(() => waiting(1), { what: "the first waits" });
    two = second().then(
      () => null,
      (error: unknown) => error,
    );
    await waitFor(() => waiting(2), { what: "the second waits, too" });
  });
  await one;
  return two;
}

it("a status is dated by the database's clock, whatever the host's says", async () => {
  const id = await addBackup(await addVolume());
  const day = 86_400_000;
  const apart = async () => {
    const [row] = await database.$queryRaw<[{ ms: number }]>`
      SELECT (extract(epoch FROM now() - updated_at) * 1000)::float8 AS ms FROM backups WHERE id = ${id}::uuid`;
    return Math.abs(row.ms);
  };
  vi.useFakeTimers({ toFake: ["Date"], now: Date.now() - day });
  try {
    await requestRestore(database, config, principal, { backupId: id, volumeId: null, name: null });
    expect(await apart()).toBeLessThan(day / 2);
    await resetBackupStatus(database, principal, id, "error");
    expect(await apart()).toBeLessThan(day / 2);
  } finally {
    vi.useRealTimers();
  }
});

it("a machine's backup is not deleted under a restore that was accepted a moment before", async () => {
  const { id, name } = await addGroupBackup();
  const refused = await raceFor(
    "backups",
    id,
    () => requestRestore(database, config, principal, { backupId: id, volumeId: null, name: null }),
    () => requestGroupBackupDelete(database, config, principal, name),
  );
  expect(refused).toBeInstanceOf(InvalidError);
  expect(await database.backup.findUnique({ where: { id } })).toMatchObject({ status: "restoring" });
  expect(await database.groupSnapshot.findUnique({ where: { id: name.groupSnapshotId } })).toMatchObject({
    status: "available",
  });
});

it("a volume is not deleted with a snapshot of which a backup was accepted a moment before", async () => {
  const volumeId = await addVolume();
  const id = randomUUID();
  const snapshot = { ...owner, id, volumeId, sizeGib: 1, sizeBytes: 4096n, status: "available" };
  await database.snapshot.create({ data: snapshot });
  const plain = { name: null, description: null, metadata: {}, availabilityZone: null, container: null };
  const refused = await raceFor(
    "snapshots",
    id,
    () =>
      requestBackup(database, config, principal, {
        ...plain,
        volumeId,
        snapshotId: id,
        incremental: false,
        force: false,
      }),
    () => requestVolumeDelete(database, principal, volumeId, { cascade: true }),
  );
  expect(refused).toBeInstanceOf(InvalidError);
  expect(await database.snapshot.findUnique({ where: { id } })).toMatchObject({ status: "backing-up" });
  expect(await database.volume.findUnique({ where: { id: volumeId } })).toMatchObject({ status: "available" });
});
