import type { Database, Transaction } from "../db/database.ts";
import { isUuid, orderOf, type Page, windowOf } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { type Principal, projectOf, seesAll, visibleTo } from "../principal.ts";
import type { Json } from "../queue/tasks.ts";
import type { Backup } from "../rows/backups.ts";
import type { GroupSnapshot } from "../rows/groups.ts";
import type { Snapshot } from "../rows/snapshots.ts";

export type GroupSnapshotRow = GroupSnapshot;

/** What is kept about a machine with each of its backups: its description, and its disks, boot disk first. */
export interface InstanceRecord {
  id: string;
  name: string;
  power_state: string;
  boot_volume_id: string | null;
  configuration: Json;
  disks: { volume_id: string; device: string | null }[];
}

/** A volume of a group snapshot with its snapshot and its backup, as far as these still exist. */
export interface GroupMember {
  volumeId: string;
  device: string | null;
  snapshot: Snapshot | null;
  backup: (Backup & { dependents: number }) | null;
}

/** A group snapshot with its members, boot disk first. */
export type GroupBackupRow = GroupSnapshot & { members: GroupMember[] };

/** @throws NotFoundError for an unknown id or another project's */
export async function getGroupSnapshot(
  database: Database | Transaction,
  principal: Principal,
  id: string,
): Promise<GroupSnapshotRow> {
  const row = isUuid(id) ? await database.groupSnapshot.findFirst({ where: { id, ...visibleTo(principal) } }) : null;
  if (!row) throw new NotFoundError("GroupSnapshot", id);
  return row;
}

export type GroupSnapshotSortKey = "id" | "createdAt" | "name" | "status" | "updatedAt";

export interface GroupSnapshotFilter {
  id?: string;
  name?: string;
  status?: string;
  groupId?: string;
  groupTypeId?: string;
  projectId?: string;
}

/** One page. @throws NotFoundError when the marker is unknown or another project's */
export async function listGroupSnapshots(
  database: Database,
  principal: Principal,
  query: { filter: GroupSnapshotFilter; allProjects: boolean; page: Page<GroupSnapshotSortKey> },
): Promise<GroupSnapshotRow[]> {
  const { filter, page } = query;
  if (page.marker !== undefined) await getGroupSnapshot(database, principal, page.marker);
  if ([filter.id, filter.groupId, filter.groupTypeId].some((id) => id !== undefined && !isUuid(id))) return [];
  const where = { ...filter, ...projectOf(principal, query.allProjects) };
  return database.groupSnapshot.findMany({ where, orderBy: orderOf(page), ...windowOf(page) });
}

/**
 * Reads the members of group snapshots. Their rows are found by the group, so that an admin's backup of a group counts as the group's, too.
 */
export async function withMembers(
  database: Database | Transaction,
  rows: readonly GroupSnapshot[],
): Promise<GroupBackupRow[]> {
  const of = { groupSnapshotId: { in: rows.map((row) => row.id) } };
  const order = [{ createdAt: "asc" as const }, { id: "asc" as const }];
  const snapshots = await database.snapshot.findMany({ where: of, orderBy: order });
  const backups = await database.backup.findMany({ where: { ...of, deletedAt: null }, orderBy: order });
  const counts = await database.backup.groupBy({
    by: ["parentId"],
    where: { parentId: { in: backups.map((backup) => backup.id) }, deletedAt: null },
    _count: true,
  });
  const dependents = new Map(counts.map((count) => [count.parentId, count._count]));
  return rows.map((row) => {
    const own = { snapshots: snapshots.filter((s) => s.groupSnapshotId === row.id) };
    const made = backups.filter((b) => b.groupSnapshotId === row.id);
    const disks = (row.instance as unknown as InstanceRecord | null)?.disks ?? [];
    const known = disks.map((disk) => ({ volumeId: disk.volume_id, device: disk.device }));
    const others = [...own.snapshots, ...made].filter(({ volumeId }) => !known.some((k) => k.volumeId === volumeId));
    const unnamed = [...new Set(others.map(({ volumeId }) => volumeId))].map((volumeId) => ({
      volumeId,
      device: null,
    }));
    const members = [...known, ...unnamed].map((disk) => {
      const backup = made.find((b) => b.volumeId === disk.volumeId);
      return {
        ...disk,
        snapshot: own.snapshots.find((s) => s.volumeId === disk.volumeId) ?? null,
        backup: backup ? { ...backup, dependents: dependents.get(backup.id) ?? 0 } : null,
      };
    });
    return { ...row, members };
  });
}

/** All backups of an instance group, newest first. */
export async function listGroupBackups(database: Database, groupId: string): Promise<GroupBackupRow[]> {
  const rows = await database.groupSnapshot.findMany({
    where: { groupId, ovf: null },
    orderBy: [{ createdAt: "desc" }, { id: "desc" }],
  });
  return withMembers(database, rows);
}

/**
 * The status of a group's backup, derived from the statuses of its parts: errors take precedence, then whatever is in progress. A backup
 * that has lost a part is in error.
 */
export function groupBackupStatus({ status, members }: Pick<GroupBackupRow, "status" | "members">): string {
  const statuses = [status, ...members.flatMap(({ backup }) => backup?.status ?? [])];
  const lost = status !== "deleting" && members.some(({ backup }) => backup === null);
  if (lost || statuses.some((s) => s.startsWith("error"))) return "error";
  return ["deleting", "restoring", "creating"].find((s) => statuses.includes(s)) ?? "available";
}

/** Locks a group snapshot of the group. @throws NotFoundError for an unknown id; InvalidError when it is of another group */
export async function lockGroupBackup(
  tx: Transaction,
  principal: Principal,
  groupId: string,
  id: string,
): Promise<GroupBackupRow> {
  // The group's users find it through the group: a backup of the group made by an admin belongs to the admin's project.
  const mine = seesAll(principal) ? { id } : { id, OR: [{ groupId }, { projectId: principal.projectId }] };
  const isKnown = isUuid(id) && (await tx.groupSnapshot.count({ where: mine })) > 0;
  if (isKnown) await tx.$queryRaw`SELECT id FROM group_snapshots WHERE id = ${id}::uuid FOR NO KEY UPDATE`;
  const row = isKnown ? await tx.groupSnapshot.findFirst({ where: mine }) : null;
  if (!row) throw new NotFoundError("GroupSnapshot", id);
  if (row.groupId !== groupId) {
    throw new InvalidError("request", `Group snapshot ${id} could not be found in instance group ${groupId}.`);
  }
  const [backup] = await withMembers(tx, [row]);
  return backup as GroupBackupRow;
}
