import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isUuid, orderOf, type Page, windowOf } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Group, GroupType, Prisma, Volume } from "../generated/client.ts";
import { type Principal, projectOf, visibleTo } from "../principal.ts";
import { lockQuota, releaseQuota, reserveQuota } from "../rows/quotas.ts";

export type { GroupType };
/** How an operation on a group that came to nothing ended. */
export interface GroupEnd {
  state: "failed" | "cancelled";
  reason: string;
}

export type GroupRow = Group & { volumes: { id: string }[] };

/** The type of every instance group: a migration made it. */
export const instanceGroupType = "ef1322a1-7c55-4a1f-9c86-3f5b8f0d6a11";

/**
 * Locks a group and reads it. After the quota and before volumes in the lock order. Rows that only refer to the group are not held up.
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

/** As `lockVisibleGroup`, with its project's quota before it. */
async function lockGroupAndQuota(tx: Transaction, principal: Principal, id: string): Promise<GroupRow> {
  const seen = await getGroup(tx, principal, id);
  await lockQuota(tx, seen.projectId);
  return lockVisibleGroup(tx, principal, id);
}

/** Of a group of the user's own: those that came with an instance were never charged. */
async function releaseGroupQuota(tx: Transaction, group: Pick<Group, "projectId" | "instanceId">): Promise<void> {
  if (group.instanceId === null) await releaseQuota(tx, group.projectId, { groups: 1 });
}

/** @throws InvalidError while an operation has the group to itself */
export function refuseBusy(group: Pick<Group, "id" | "operationId">): void {
  if (group.operationId === null) return;
  throw new InvalidError("request", `An operation is already in progress on instance group ${group.id}.`);
}

/** The group is the operation's alone until `releaseGroup`. The row is locked. */
export async function holdGroup(tx: Transaction, groupId: string, operationId: string): Promise<void> {
  await tx.group.update({ where: { id: groupId }, data: { operationId, updatedAt: new Date() } });
}

/** The operation has ended: the next one may come. */
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
  /** What its volumes are made of. */
  groupSnapshotId?: string;
  sourceGroupId?: string;
}

/** An empty one is available at once: there is nothing that a worker would have to do. */
export async function addGroup(
  tx: Transaction,
  config: Config,
  group: NewGroup,
  status: "available" | "creating" = "available",
): Promise<Group> {
  const availabilityZone = group.availabilityZone ?? config.availability_zone;
  return tx.group.create({ data: { ...group, id: randomUUID(), availabilityZone, status } });
}

/** Locks the group that a volume is in, if it is in one: before the volume itself. */
export async function lockGroupOf(tx: Transaction, volumeId: string): Promise<void> {
  await tx.$queryRaw`SELECT g.id FROM groups g JOIN volumes v ON v.group_id = g.id WHERE v.id = ${volumeId}::uuid
    FOR NO KEY UPDATE OF g`;
}

/**
 * A group that is made of a source is `available` when all of its volumes are there, or in `error` with one of them. To be called when a
 * volume has been made, or could not be; the group is locked.
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
 * The members leave the group, whatever they are doing, and the group is gone. The row is locked.
 *
 * @throws InvalidError with backups or snapshots of it, while an operation has it, or in another status
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

export type GroupSortKey = "id" | "createdAt" | "name" | "status" | "updatedAt";

export interface GroupFilter {
  id?: string;
  name?: string;
  status?: string;
  groupTypeId?: string;
  availabilityZone?: string;
  projectId?: string;
}

/** One page. @throws NotFoundError when the marker is unknown or another project's */
export async function listGroups(
  database: Database,
  principal: Principal,
  query: { filter: GroupFilter; allProjects: boolean; page: Page<GroupSortKey> },
): Promise<GroupRow[]> {
  const { filter, page } = query;
  if (page.marker !== undefined) await getGroup(database, principal, page.marker);
  if ([filter.id, filter.groupTypeId].some((id) => id !== undefined && !isUuid(id))) return [];
  return database.group.findMany({
    where: { ...filter, ...projectOf(principal, query.allProjects) },
    include: { volumes: { select: { id: true }, orderBy: [{ createdAt: "asc" }, { id: "asc" }] } },
    orderBy: orderOf(page),
    ...windowOf(page),
  });
}

/** The instance groups that the caller may see, newest first. */
export async function listInstanceGroups(database: Database, principal: Principal): Promise<GroupRow[]> {
  return database.group.findMany({
    where: { groupTypeId: instanceGroupType, ...visibleTo(principal) },
    include: { volumes: { select: { id: true }, orderBy: [{ createdAt: "asc" }, { id: "asc" }] } },
    orderBy: [{ createdAt: "desc" }, { id: "desc" }],
  });
}

/** A group of the user's own. @throws NotFoundError for an unknown type; QuotaExceededError */
export async function createGroup(
  database: Database,
  config: Config,
  principal: Principal,
  group: Pick<NewGroup, "name" | "description" | "availabilityZone"> & { groupType: string },
): Promise<Group> {
  const { groupType, ...columns } = group;
  return inTransaction(database, async (tx) => {
    const { id: groupTypeId } = await getGroupType(tx, groupType);
    const { projectId, userId } = principal;
    await reserveQuota(tx, config, projectId, { groups: 1 });
    return addGroup(tx, config, { ...columns, projectId, userId, groupTypeId, instanceId: null });
  });
}

export interface GroupChange {
  name?: string | null;
  description?: string | null;
  addVolumes: readonly string[];
  removeVolumes: readonly string[];
}

const joinable = ["available", "in-use"];
const leavable = ["available", "in-use", "error", "error_deleting"];
const words = (list: readonly string[]): string => `(${list.map((word) => `'${word}'`).join(", ")})`;

/** Locks a group that shall get or lose members. @throws InvalidError unless it is available and nobody's; NotFoundError */
async function lockChangeable(tx: Transaction, principal: Principal, id: string): Promise<GroupRow> {
  const group = await lockVisibleGroup(tx, principal, id);
  if (group.status !== "available") {
    const text = `Group status must be available, but current status is: ${group.status}.`;
    throw new InvalidError("group", text);
  }
  refuseBusy(group);
  return group;
}

/** Locks the group that a new volume of the caller's shall be in. @throws InvalidError when it cannot be; NotFoundError */
export async function lockForNewVolume(tx: Transaction, principal: Principal, id: string): Promise<void> {
  const group = await lockChangeable(tx, principal, id);
  if (group.projectId === principal.projectId) return;
  throw new InvalidError("volume", `Cannot add a volume to group ${id} as they belong to different projects.`);
}

/**
 * Changes a group's name, description and members, in Cinder's words.
 *
 * @throws InvalidError unless the group is available and nobody's, or for a volume that cannot join or leave; NotFoundError
 */
export async function updateGroup(
  database: Database,
  principal: Principal,
  id: string,
  change: GroupChange,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const group = await lockChangeable(tx, principal, id);
    const { addVolumes, removeVolumes, ...columns } = change;
    const both = addVolumes.filter((volume) => removeVolumes.includes(volume));
    if (both.length > 0) {
      const text = `UUIDs [${both.map((volume) => `'${volume}'`).join(", ")}] are in both add and remove volume list.`;
      throw new InvalidError("volume", text);
    }
    const members = group.volumes.map((volume) => volume.id);
    const added = addVolumes.filter((volume) => !members.includes(volume));
    for (const volume of [...added].sort()) await join(tx, principal, group, volume);
    for (const volume of [...removeVolumes].sort()) await leave(tx, principal, group, volume);
    const renamed = Object.entries(columns).some(([key, value]) => value !== group[key as "name" | "description"]);
    if (!renamed && added.length === 0 && removeVolumes.length === 0) {
      const text = `Cannot update group ${group.id} because no valid name, description, add_volumes, or remove_volumes were provided.`;
      throw new InvalidError("group", text);
    }
    await tx.group.update({ where: { id: group.id }, data: { ...columns, updatedAt: new Date() } });
  });
}

/** Another project's volume is neither found nor locked. */
async function lockForGroup(tx: Transaction, principal: Principal, id: string): Promise<Volume | null> {
  if (!isUuid(id)) return null;
  const mine = { id, ...visibleTo(principal) };
  if ((await tx.volume.count({ where: mine })) === 0) return null;
  await tx.$queryRaw`SELECT id FROM volumes WHERE id = ${id}::uuid FOR UPDATE`;
  return tx.volume.findFirst({ where: mine });
}

async function join(tx: Transaction, principal: Principal, group: Group, volumeId: string): Promise<void> {
  const volume = await lockForGroup(tx, principal, volumeId);
  const refuse = (why: string) =>
    new InvalidError("volume", `Cannot add volume ${volumeId} to group ${group.id} because ${why}`);
  if (!volume) throw refuse("volume cannot be found.");
  if (volume.groupId !== null) throw refuse(`it is already in group ${volume.groupId}.`);
  if (volume.projectId !== group.projectId) {
    const text = `Cannot add volume ${volumeId} to group ${group.id} as they belong to different projects.`;
    throw new InvalidError("volume", text);
  }
  if (!joinable.includes(volume.status)) {
    throw refuse(`volume is in an invalid state: ${volume.status}. Valid states are: ${words(joinable)}.`);
  }
  await tx.volume.update({ where: { id: volume.id }, data: { groupId: group.id } });
}

async function leave(tx: Transaction, principal: Principal, group: Group, volumeId: string): Promise<void> {
  const volume = await lockForGroup(tx, principal, volumeId);
  const refuse = (why: string) =>
    new InvalidError("volume", `Cannot remove volume ${volumeId} from group ${group.id} because ${why}`);
  if (volume?.groupId !== group.id) throw refuse("it is not in the group.");
  if (!leavable.includes(volume.status)) {
    throw refuse(`volume is in an invalid state: ${volume.status}. Valid states are: ${words(leavable)}.`);
  }
  await tx.volume.update({ where: { id: volume.id }, data: { groupId: null } });
}

/**
 * Deletes a group as Cinder does. Its volumes must have left before, whatever Cinder's `delete-volumes` says: here they are deleted one by
 * one.
 *
 * @throws InvalidError with members or snapshots, or in another status; NotFoundError
 */
export async function deleteGroup(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const group = await lockGroupAndQuota(tx, principal, id);
    if (!["available", "error"].includes(group.status)) {
      const text = `Group status must be available or error, but current status is: ${group.status}`;
      throw new InvalidError("group", text);
    }
    if (group.volumes.length > 0) {
      const text = `Group ${group.id} still contains volumes. They must be removed from it, or deleted, before.`;
      throw new InvalidError("group", text);
    }
    if ((await tx.groupSnapshot.count({ where: { groupId: group.id } })) > 0) {
      throw new InvalidError("group", `Group ${group.id} still has group snapshots.`);
    }
    refuseBusy(group);
    await tx.group.delete({ where: { id: group.id } });
    await releaseGroupQuota(tx, group);
  });
}

/** Deletes an instance group: the instance and its volumes stay as they are. @throws as removeGroup; NotFoundError */
export async function deleteInstanceGroup(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const group = await lockGroupAndQuota(tx, principal, id);
    assertInstanceGroup(group);
    await removeGroup(tx, group);
    await releaseGroupQuota(tx, group);
  });
}

/** Locks a group that must be of an instance. @throws InvalidError when it is of another type; NotFoundError */
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

/** By id or name. @throws NotFoundError */
export async function getGroupType(database: Database | Transaction, wanted: string): Promise<GroupType> {
  const row = await database.groupType.findFirst({ where: isUuid(wanted) ? { id: wanted } : { name: wanted } });
  if (!row) throw new NotFoundError("Group type", wanted);
  return row;
}

export type GroupTypeSortKey = "id" | "name" | "createdAt" | "updatedAt" | "isPublic" | "description";

/** One page; those that are not public for admins only. */
export async function listGroupTypes(
  database: Database,
  query: { isPublic: boolean | null; page: Page<GroupTypeSortKey> },
): Promise<GroupType[]> {
  const { isPublic, page } = query;
  if (page.marker !== undefined) await getGroupType(database, page.marker);
  const where = isPublic === null ? {} : { isPublic };
  return database.groupType.findMany({ where, orderBy: orderOf(page), ...windowOf(page) });
}

export interface NewGroupType {
  name: string;
  description: string | null;
  isPublic: boolean;
  groupSpecs: Record<string, string>;
}

/** @throws InvalidError when the name is taken */
export async function createGroupType(database: Database, type: NewGroupType): Promise<GroupType> {
  const [row] = await database.groupType.createManyAndReturn({
    data: [{ ...type, id: randomUUID() }],
    skipDuplicates: true,
  });
  if (!row) throw new InvalidError("request", `Group Type ${type.name} already exists.`);
  return row;
}

/** The type of instance groups is part of the service: it can be looked at only. @throws InvalidError */
function refuseReserved(id: string): void {
  if (id !== instanceGroupType) return;
  throw new InvalidError("request", "The group type instance_group_type is reserved.");
}

/** Changes what is named. @throws InvalidError when the name is taken or the type is reserved; NotFoundError */
export async function updateGroupType(
  database: Database,
  id: string,
  change: Partial<NewGroupType>,
): Promise<GroupType> {
  return inTransaction(database, async (tx) => {
    const { id: found } = await getGroupType(tx, id);
    refuseReserved(found);
    const taken = change.name === undefined ? null : await tx.groupType.findUnique({ where: { name: change.name } });
    if (taken && taken.id !== found) throw new InvalidError("request", `Group Type ${change.name} already exists.`);
    const data: Prisma.GroupTypeUpdateInput = { ...change, updatedAt: new Date() };
    return tx.groupType.update({ where: { id: found }, data });
  });
}

/** @throws InvalidError while groups have it, or it is reserved; NotFoundError */
export async function deleteGroupType(database: Database, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { id: found } = await getGroupType(tx, id);
    refuseReserved(found);
    if ((await tx.group.count({ where: { groupTypeId: found } })) > 0) {
      throw new InvalidError("request", "Target group type is still in use.");
    }
    await tx.groupType.delete({ where: { id: found } });
  });
}
