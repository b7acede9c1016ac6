import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import type { Database, Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Group, GroupSnapshot, GroupType, Instance, Prisma } from "../generated/client.ts";
import { type Principal, visibleTo } from "../principal.ts";
import { lockQuota, releaseQuota } from "./quotas.ts";

export type { Group, GroupSnapshot, GroupType, Instance };

export type GroupRow = Group & { volumes: { id: string }[] };

/** The type of every instance group; created by a migration. */
export const instanceGroupType = "ef1322a1-7c55-4a1f-9c86-3f5b8f0d6a11";

/**
 * Locks a group and reads it. After the quota and before volumes in the lock order. Rows that merely refer to the group are not blocked.
 */
export async function lockGroup(tx: Transaction, id: string): Promise<Group | null> {
  await tx.$queryRaw`SELECT id FROM groups WHERE id = ${id}::uuid FOR NO KEY UPDATE`;
  return tx.group.findUnique({ where: { id } });
}

/** @throws NotFoundError for an unknown id or another project's */
export async function getGroup(database: Database | Transaction, principal: Principal, id: string): Promise<GroupRow> {
  const row = isUuid(id)
    ? await database.group.findFirst({
        where: { id, ...visibleTo(principal) },
        include: { volumes: { select: { id: true }, orderBy: [{ createdAt: "asc" }, { id: "asc" }] } },
      })
    : null;
  if (!row) throw new NotFoundError("Group", id);
  return row;
}

/** As `getGroup`, locked. */
export async function lockVisibleGroup(tx: Transaction, principal: Principal, id: string): Promise<GroupRow> {
  const seen = await getGroup(tx, principal, id);
  await lockGroup(tx, seen.id);
  return getGroup(tx, principal, seen.id);
}

/** As `lockVisibleGroup`, after locking its project's quota. */
export async function lockGroupAndQuota(tx: Transaction, principal: Principal, id: string): Promise<GroupRow> {
  const seen = await getGroup(tx, principal, id);
  await lockQuota(tx, seen.projectId);
  return lockVisibleGroup(tx, principal, id);
}

/** Releases the quota of a user-created group: instance groups are never charged. */
export async function releaseGroupQuota(
  tx: Transaction,
  group: Pick<Group, "projectId" | "instanceId">,
): Promise<void> {
  if (group.instanceId === null) await releaseQuota(tx, group.projectId, { groups: 1 });
}

/** @throws InvalidError while an operation holds the group */
export function refuseBusy(group: Pick<Group, "id" | "operationId">): void {
  if (group.operationId === null) return;
  throw new InvalidError("request", `An operation is already in progress on instance group ${group.id}.`);
}

/** The operation holds the group exclusively until `releaseGroup`. The row is locked. */
export async function holdGroup(tx: Transaction, groupId: string, operationId: string): Promise<void> {
  await tx.group.update({ where: { id: groupId }, data: { operationId, updatedAt: new Date() } });
}

/** The operation has ended: the group is free for the next one. */
export async function releaseGroup(tx: Transaction, operationId: string): Promise<void> {
  await tx.group.updateMany({ where: { operationId }, data: { operationId: null, updatedAt: new Date() } });
}

export interface NewGroup {
  projectId: string;
  userId: string;
  name: string | null;
  description: string | null;
  groupTypeId: string;
  availabilityZone: string | null;
  instanceId: string | null;
  /** What its volumes are created from. */
  groupSnapshotId?: string;
  sourceGroupId?: string;
}

/** An empty group is available at once: no worker has anything to do. */
export async function addGroup(
  tx: Transaction,
  config: Config,
  group: NewGroup,
  status: "available" | "creating" = "available",
): Promise<Group> {
  const availabilityZone = group.availabilityZone ?? config.availability_zone;
  return tx.group.create({ data: { ...group, id: randomUUID(), availabilityZone, status } });
}

/** A group snapshot that is about to be taken. */
export function addGroupSnapshot(
  tx: Transaction,
  snapshot: Omit<Prisma.GroupSnapshotUncheckedCreateInput, "id" | "status">,
  id: string = randomUUID(),
): Promise<GroupSnapshot> {
  return tx.groupSnapshot.create({ data: { ...snapshot, id, status: "creating" } });
}

/** Locks the group that a volume is in, if any: before the volume itself. */
export async function lockGroupOf(tx: Transaction, volumeId: string): Promise<void> {
  await tx.$queryRaw`SELECT g.id FROM groups g JOIN volumes v ON v.group_id = g.id WHERE v.id = ${volumeId}::uuid
    FOR NO KEY UPDATE OF g`;
}

/**
 * When a volume finishes or fails, the status of a group that is created from a source is recomputed from all its volumes: once none of
 * them is being created any more, `error` if one failed, else `available`. The group is locked.
 */
export async function settleGroup(tx: Transaction, volumeId: string): Promise<void> {
  await tx.$executeRaw`
    UPDATE groups SET status = made.status, updated_at = now()
    FROM (SELECT o.group_id, CASE WHEN bool_or(o.status = 'error') THEN 'error' ELSE 'available' END AS status
      FROM volumes v JOIN volumes o ON o.group_id = v.group_id WHERE v.id = ${volumeId}::uuid
      GROUP BY o.group_id HAVING NOT bool_or(o.status = 'creating')) made
    WHERE groups.id = made.group_id AND groups.status = 'creating'`;
}

/**
 * Removes all members from the group, whatever they are doing, and deletes the group. The row is locked.
 *
 * @throws InvalidError if it has backups or snapshots, while an operation holds it, or in another status
 */
export async function removeGroup(tx: Transaction, group: Group): Promise<void> {
  if ((await tx.groupSnapshot.count({ where: { groupId: group.id } })) > 0) {
    const text = `Instance group ${group.id} has existing backups. Delete all backups before deleting the group.`;
    throw new InvalidError("request", text);
  }
  refuseBusy(group);
  if (!["available", "error"].includes(group.status)) {
    const text = `Group status must be available or error, but current status is: ${group.status}`;
    throw new InvalidError("request", text);
  }
  await tx.volume.updateMany({ where: { groupId: group.id }, data: { groupId: null } });
  await tx.group.delete({ where: { id: group.id } });
}

/** Locks a group whose members are to change. @throws InvalidError unless it is available and held by no operation; NotFoundError */
export async function lockChangeable(tx: Transaction, principal: Principal, id: string): Promise<GroupRow> {
  const group = await lockVisibleGroup(tx, principal, id);
  if (group.status !== "available") {
    const text = `Group status must be available, but current status is: ${group.status}.`;
    throw new InvalidError("group", text);
  }
  refuseBusy(group);
  return group;
}

/** Locks the group that the caller's new volume is to join. @throws InvalidError when it cannot; NotFoundError */
export async function lockForNewVolume(tx: Transaction, principal: Principal, id: string): Promise<void> {
  const group = await lockChangeable(tx, principal, id);
  if (group.projectId === principal.projectId) return;
  throw new InvalidError("volume", `Cannot add a volume to group ${id} as they belong to different projects.`);
}

/** Locks an instance group. @throws InvalidError when it is of another type; NotFoundError */
export async function lockInstanceGroup(tx: Transaction, principal: Principal, id: string): Promise<GroupRow> {
  const group = await lockVisibleGroup(tx, principal, id);
  assertInstanceGroup(group);
  return group;
}

/** @throws InvalidError when it is of another type */
export function assertInstanceGroup(group: Pick<Group, "id" | "groupTypeId">): void {
  if (group.groupTypeId !== instanceGroupType) {
    throw new InvalidError("request", `Group ${group.id} is not an instance group.`);
  }
}
