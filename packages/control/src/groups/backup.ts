import { randomUUID } from "node:crypto";
import { chooseParent, type NewBackup, placeBackup, startBackup } from "../backups/create.ts";
import type { Config } from "../config.ts";
import type { Prisma } from "../db/database.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { completeOperation, lockLiveOperation, type OperationRow, startOperation } from "../queue/operations.ts";
import { finishTask, type TaskOperation, type TaskResult } from "../queue/tasks.ts";
import { needToWrite } from "../queue/workers.ts";
import type { Backup } from "../rows/backups.ts";
import { addBackup, lockBackup } from "../rows/backups.ts";
import {
  addGroupSnapshot,
  type GroupRow,
  holdGroup,
  instanceGroupType,
  lockInstanceGroup,
  lockVisibleGroup,
  refuseBusy,
  releaseGroup,
} from "../rows/groups.ts";
import { move } from "../rows/move.ts";
import { lockQuota, reserveQuota } from "../rows/quotas.ts";
import { addSnapshots } from "../rows/snapshots.ts";
import type { Volume } from "../rows/volumes.ts";
import { snapshotsTogether } from "../volume-backends.ts";
import { joinInstanceGroup } from "../volumes/attach.ts";
import { getInstance, getInstanceOf, type InstanceRow, inDiskOrder } from "./instances.ts";
import { type GroupSnapshotRow, getGroupSnapshot, type InstanceRecord } from "./snapshots.ts";

/** The result of accepting an operation on an instance group. All lists have the same order: boot disk first. */
export interface AcceptedGroupOperation {
  operationId: string;
  groupId: string;
  instanceId: string;
  groupSnapshotId: string;
  volumeIds: string[];
  snapshotIds: string[];
  backupIds: string[];
}

/** The instance named in a request, if it is the group's. @throws InvalidError */
export async function memberInstance(
  tx: Transaction,
  principal: Principal,
  group: GroupRow,
  instanceId: string,
): Promise<InstanceRow> {
  if (group.instanceId === instanceId) return getInstanceOf(tx, group.projectId, instanceId);
  const instance = await getInstance(tx, principal, instanceId).catch((error: unknown) => {
    if (error instanceof NotFoundError) throw new InvalidError("request", error.message);
    throw error;
  });
  if (group.projectId !== instance.projectId || group.instanceId !== instance.id) {
    throw new InvalidError("request", `Instance ${instanceId} is not a member of instance group ${group.id}.`);
  }
  return instance;
}

/**
 * Members in the order of the instance's disks, then those that are not disks of it. Disks that are not yet in a group join this one now.
 */
async function readMembers(tx: Transaction, group: GroupRow, instance: InstanceRow | null) {
  if (instance) await joinInstanceGroup(tx, group.projectId, instance.id);
  const volumes = await tx.volume.findMany({
    where: { groupId: group.id },
    orderBy: [{ createdAt: "asc" }, { id: "asc" }],
  });
  const device = (volume: Volume) => instance?.disks.find((disk) => disk.volumeId === volume.id)?.device ?? null;
  const members = volumes.map((volume) => ({ volume, volumeId: volume.id, device: device(volume) }));
  return instance ? inDiskOrder(members, instance.bootVolumeId) : members;
}

type Member = Awaited<ReturnType<typeof readMembers>>[number];

/**
 * Volumes of which no snapshot is taken together with others are told here: a worker could only fail. `instance`: the machine that has them;
 * null: they are nobody's disks.
 *
 * @throws InvalidError
 */
export function refuseApart(
  config: Config,
  members: readonly { volume: Pick<Volume, "id" | "backend"> }[],
  instance: Pick<InstanceRow, "powerState"> | null,
): void {
  const runs = instance?.powerState === "ACTIVE";
  const backendOf = (name: string) => config.volume_backends.find((each) => each.name === name);
  const places = members.map(({ volume }) => ({ volume, backend: backendOf(volume.backend) }));
  const hasCopies = places.some(({ backend }) => backend && snapshotsTogether(backend) === "copies");
  for (const { volume, backend } of places) {
    if (backend === undefined) continue;
    const way = snapshotsTogether(backend);
    if (way !== "never" && !(way === "layers" && runs && hasCopies)) continue;
    const text =
      `Volume ${volume.id} is in backend ${backend.name} (driver ${backend.driver}), of whose volumes no snapshots are taken together with ` +
      `${way === "never" ? "others. Back it up by itself." : "those of others while their machine runs."}`;
    throw new InvalidError("request", text);
  }
}

function checkMembers(config: Config, group: GroupRow, instance: InstanceRow | null, members: readonly Member[]): void {
  if (members.length === 0) throw new InvalidError("request", `Group ${group.id} has no volumes to back up.`);
  for (const { volume } of members) {
    if (["available", "in-use"].includes(volume.status)) continue;
    const text = `Volume ${volume.id} status must be available or in-use, but current status is: ${volume.status}.`;
    throw new InvalidError("request", text);
  }
  refuseApart(config, members, instance);
  const stray = instance?.disks.find((disk) => !members.some((member) => member.volumeId === disk.volumeId));
  if (stray) throw new InvalidError("request", `Volume ${stray.volumeId} is a member of another group.`);
}

export interface NewGroupBackup {
  groupId: string;
  instanceId: string;
  name: string;
  description: string | null;
  incremental: boolean;
  metadata: Record<string, string>;
  /** As of a backup. */
  policy?: NewBackup["policy"];
}

/**
 * Accepts the backup of an instance: quotas reserved, group snapshot, snapshots and backups `creating`, operation and task, in one
 * transaction; from then on the operation holds the group.
 *
 * @throws NotFoundError, InvalidError, QuotaExceededError; nothing is left behind
 */
export async function requestGroupBackup(
  database: Database,
  config: Config,
  principal: Principal,
  request: NewGroupBackup,
): Promise<AcceptedGroupOperation> {
  return inTransaction(database, (tx) => requestGroupBackupWithin(tx, config, principal, request));
}

/** As `requestGroupBackup`, in a transaction that is rolled back when this throws. */
export async function requestGroupBackupWithin(
  tx: Transaction,
  config: Config,
  principal: Principal,
  request: NewGroupBackup,
): Promise<AcceptedGroupOperation> {
  await lockQuota(tx, principal.projectId);
  const group = await lockInstanceGroup(tx, principal, request.groupId);
  const instance = await memberInstance(tx, principal, group, request.instanceId);
  if (group.status !== "available") {
    const text = `Group status must be available, but current status is: ${group.status}`;
    throw new InvalidError("request", text);
  }
  if (!["ACTIVE", "SHUTOFF"].includes(instance.powerState)) {
    throw new InvalidError("request", `Cannot back up instance ${instance.id} in status ${instance.powerState}.`);
  }
  const members = await readMembers(tx, group, instance);
  checkMembers(config, group, instance, members);
  refuseBusy(group);
  if ((await tx.groupSnapshot.count({ where: { groupId: group.id, name: request.name, ovf: null } })) > 0) {
    const text = `A backup named ${request.name} already exists in instance group ${group.id}.`;
    throw new InvalidError("request", text);
  }
  const gigabytes = members.reduce((sum, { volume }) => sum + volume.sizeGib, 0);
  const snapshots = { snapshots: members.length, gigabytes };
  await reserveQuota(tx, config, principal.projectId, {
    ...snapshots,
    backups: members.length,
    backup_gigabytes: gigabytes,
  });
  const groupSnapshotId = await recordGroupSnapshot(tx, principal, group, {
    name: request.name,
    description: request.description ?? `group backup for instance ${instance.name}`,
    instance,
    members,
  });
  const snapshotIds = await addMemberSnapshots(tx, principal, { id: groupSnapshotId, name: request.name }, members);
  const backupIds: string[] = [];
  for (const [at, member] of members.entries()) {
    const snapshotId = snapshotIds[at] as string;
    const place = { group, instance, groupSnapshotId, snapshotId };
    backupIds.push(await addMemberBackup(tx, config, principal, request, { ...place, member }));
  }
  const operationId = await startSnapshot(tx, principal, group, {
    kind: "group-backup",
    groupSnapshotId,
    members,
    policyId: request.policy?.id ?? null,
  });
  const volumeIds = members.map((member) => member.volumeId);
  return {
    operationId,
    groupId: group.id,
    instanceId: instance.id,
    groupSnapshotId,
    volumeIds,
    snapshotIds,
    backupIds,
  };
}

/**
 * Accepts a snapshot of all volumes of a group at one instant, without backups: Cinder's own group snapshot.
 *
 * @throws NotFoundError, InvalidError, QuotaExceededError; nothing is left behind
 */
export async function requestGroupSnapshot(
  database: Database,
  config: Config,
  principal: Principal,
  request: { groupId: string; name: string | null; description: string | null },
): Promise<GroupSnapshotRow> {
  return inTransaction(database, async (tx) => {
    await lockQuota(tx, principal.projectId);
    const group = await lockVisibleGroup(tx, principal, request.groupId);
    if (group.groupTypeId === instanceGroupType) {
      const text = `Group ${group.id} is an instance group: its snapshots are made with its backups.`;
      throw new InvalidError("group", text);
    }
    const members = await readMembers(tx, group, null);
    checkMembers(config, group, null, members);
    refuseBusy(group);
    const gigabytes = members.reduce((sum, { volume }) => sum + volume.sizeGib, 0);
    await reserveQuota(tx, config, principal.projectId, { snapshots: members.length, gigabytes });
    const { name, description } = request;
    const id = await recordGroupSnapshot(tx, principal, group, { name, description, instance: null, members });
    await addMemberSnapshots(tx, principal, { id, name }, members);
    await startSnapshot(tx, principal, group, { kind: "group-snapshot", groupSnapshotId: id, members });
    return getGroupSnapshot(tx, principal, id);
  });
}

/** What is kept of an instance with a snapshot of it. */
export const recordOf = (
  instance: InstanceRow,
  members: readonly { volumeId: string; device: string | null }[],
): InstanceRecord => ({
  id: instance.id,
  name: instance.name,
  power_state: instance.powerState,
  boot_volume_id: instance.bootVolumeId,
  configuration: instance.configuration,
  disks: members.map((member) => ({ volume_id: member.volumeId, device: member.device })),
});

async function recordGroupSnapshot(
  tx: Transaction,
  principal: Principal,
  group: GroupRow,
  snapshot: {
    name: string | null;
    description: string | null;
    instance: InstanceRow | null;
    members: readonly Member[];
  },
): Promise<string> {
  const { name, description, instance, members } = snapshot;
  const row = await addGroupSnapshot(tx, {
    projectId: principal.projectId,
    userId: principal.userId,
    groupId: group.id,
    groupTypeId: group.groupTypeId,
    instanceId: instance?.id ?? null,
    name,
    description,
    ...(instance && { instance: recordOf(instance, members) as unknown as Prisma.InputJsonObject }),
  });
  return row.id;
}

/** One snapshot of each member; their ids in the members' order. */
async function addMemberSnapshots(
  tx: Transaction,
  principal: Principal,
  of: { id: string; name: string | null },
  members: readonly Member[],
): Promise<string[]> {
  const rows = members.map(({ volume }) => ({
    id: randomUUID(),
    projectId: principal.projectId,
    userId: principal.userId,
    volumeId: volume.id,
    groupSnapshotId: of.id,
    name: of.name,
    sizeGib: volume.sizeGib,
    sizeBytes: volume.sizeBytes,
  }));
  await addSnapshots(tx, rows);
  return rows.map((row) => row.id);
}

/** The row of one member's backup. The backup itself begins once the snapshots are there. */
async function addMemberBackup(
  tx: Transaction,
  config: Config,
  principal: Principal,
  request: NewGroupBackup,
  part: { member: Member; group: GroupRow; instance: InstanceRow; groupSnapshotId: string; snapshotId: string },
): Promise<string> {
  const { volume, device } = part.member;
  const parent = request.incremental ? await chooseParent(tx, principal.projectId, volume.id, null) : null;
  const row = await addBackup(tx, {
    id: randomUUID(),
    projectId: principal.projectId,
    userId: principal.userId,
    volumeId: volume.id,
    snapshotId: part.snapshotId,
    groupSnapshotId: part.groupSnapshotId,
    parentId: parent?.id ?? null,
    name: request.name,
    description: `backup for volume ${volume.id}`,
    sizeGib: volume.sizeGib,
    repository: request.policy?.repository ?? placeBackup(config, null, { parent, volume }).repository,
    policyId: request.policy?.id ?? null,
    container: part.group.id,
    metadata: {
      ...request.metadata,
      instance_group_id: part.group.id,
      group_snapshot_id: part.groupSnapshotId,
      instance_id: part.instance.id,
      mountpoint: device ?? "",
    },
    dataTimestamp: new Date(),
  });
  return row.id;
}

/** The operation that takes the snapshots of one instant, and holds the group until then. */
export async function startSnapshot(
  tx: Transaction,
  principal: Principal,
  group: GroupRow,
  snapshot: {
    kind: "group-backup" | "group-snapshot";
    groupSnapshotId: string;
    members: readonly Pick<Member, "volume">[];
    policyId?: string | null;
  },
): Promise<string> {
  const { kind, groupSnapshotId, members, policyId = null } = snapshot;
  const operationId = await startOperation(tx, principal, {
    kind,
    policyId,
    projectId: principal.projectId,
    groupId: group.id,
    groupSnapshotId,
    bytesTotal: members.reduce((sum, { volume }) => sum + volume.sizeBytes, 0n),
    task: { kind: "snapshot-group", needs: [...new Set(members.map(({ volume }) => `backend:${volume.backend}`))] },
  });
  await holdGroup(tx, group.id, operationId);
  return operationId;
}

/** The worker's report on the snapshots. */
export interface TakenTogether {
  /** The common instant of all snapshots. */
  takenAt: Date;
  frozenMs: number | null;
  consistency: "application" | "crash";
  /** Exact lengths by snapshot id. */
  sizesBytes: ReadonlyMap<string, number>;
}

/**
 * The snapshots of one instant are there: the backups of them begin, each as an operation of its own, with that instant as data_timestamp.
 * Of one without backups: what comes `next` begins, if anything does.
 *
 * @throws ClaimLostError, OperationEndedError
 */
export async function finishGroupSnapshot(
  database: Database,
  config: Config,
  operation: TaskOperation,
  result: TaskResult,
  taken: TakenTogether,
  next: (tx: Transaction, operation: TaskOperation) => Promise<void>,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const of = { groupSnapshotId: operation.groupSnapshotId ?? nilUuid };
    const { takenAt, frozenMs, consistency } = taken;
    const backups = await tx.backup.findMany({
      where: { ...of, status: "creating", deletedAt: null },
      orderBy: { id: "asc" },
    });
    for (const backup of backups) await lockBackup(tx, backup.id);
    const step = { from: "creating", to: "available" } as const;
    const columns = { takenAt, frozenMs, consistency };
    await move(tx, "groupSnapshot", { id: of.groupSnapshotId }, step, columns);
    const backedUp = new Set(backups.map((backup) => backup.snapshotId));
    for (const [id, sizeBytes] of taken.sizesBytes) {
      const to = backedUp.has(id) ? "backing-up" : "available";
      await move(tx, "snapshot", { id }, { from: "creating", to }, { sizeBytes: BigInt(sizeBytes) });
    }
    await tx.backup.updateMany({
      where: { id: { in: backups.map(({ id }) => id) } },
      data: { dataTimestamp: takenAt },
    });
    if (backups.length === 0) {
      await releaseGroup(tx, operation.id);
      await next(tx, operation);
      return completeOperation(tx, operation, result);
    }
    const whole = await lockLiveOperation(tx, operation.id);
    await finishTask(tx, result);
    await tx.operation.update({ where: { id: whole.id }, data: { remaining: backups.length, updatedAt: new Date() } });
    for (const backup of backups) await startPart(tx, config, whole, backup);
  });
}

async function startPart(tx: Transaction, config: Config, whole: OperationRow, row: Backup): Promise<void> {
  const volume = await tx.volume.findUniqueOrThrow({ where: { id: row.volumeId } });
  const snapshot = await tx.snapshot.findUniqueOrThrow({ where: { id: row.snapshotId ?? nilUuid } });
  const parent = row.parentId ? await tx.backup.findUnique({ where: { id: row.parentId } }) : null;
  const reach = needToWrite(row.repository);
  await startBackup(tx, config, whole, { row, parent, volume, snapshot, reach, parentId: whole.id });
}

/** All backups have been made. @throws ClaimLostError, OperationEndedError */
export async function finishGroupBackup(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await releaseGroup(tx, operation.id);
    await completeOperation(tx, operation, result);
  });
}
