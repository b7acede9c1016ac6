import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isUuid, orderOf, type Page, windowOf } from "../db/listing.ts";
import { InvalidError } from "../errors.ts";
import { type Principal, projectOf, visibleTo } from "../principal.ts";
import type { Group } from "../rows/groups.ts";
import {
  addGroup,
  assertInstanceGroup,
  type GroupRow,
  getGroup,
  instanceGroupType,
  lockChangeable,
  lockGroupAndQuota,
  type NewGroup,
  refuseBusy,
  releaseGroupQuota,
  removeGroup,
} from "../rows/groups.ts";
import { reserveQuota } from "../rows/quotas.ts";
import type { Volume } from "../rows/volumes.ts";
import { getGroupType } from "./group-types.ts";

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

/** A group created by a user. @throws NotFoundError for an unknown type; QuotaExceededError */
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

/**
 * Changes a group's name, description and members, with Cinder's error messages.
 *
 * @throws InvalidError unless the group is available and held by no operation, or for a volume that cannot join or leave; NotFoundError
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
 * Deletes a group as Cinder does. Its volumes must have left it before, despite Cinder's `delete-volumes`: here they are deleted one by
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
