import type { Database, Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { backupColumns, lockRow } from "../db/lock-row.ts";
import { readRows } from "../db/read.ts";
import { NotFoundError } from "../errors.ts";
import { type Backup, Prisma } from "../generated/client.ts";
import { mayLook, type Principal } from "../principal.ts";

export type { Backup };

/** A live backup with a field derived from other rows. */
export type BackupRow = Backup & { hasDependents: boolean };

/** A backup that is about to be made. */
export function addBackup(tx: Transaction, backup: Omit<Prisma.BackupUncheckedCreateInput, "status">): Promise<Backup> {
  return tx.backup.create({ data: { ...backup, status: "creating" } });
}

/** A backup that exists already, as found in a repository; one without a status is still to be looked at. */
export type FoundBackup = Omit<Prisma.BackupCreateManyInput, "status"> & { status?: "available" | "error" };

/** Enters backups whose ids have no row. @returns those that were entered */
export function addFoundBackups(
  tx: Transaction,
  backups: readonly FoundBackup[],
): Promise<{ projectId: string; sizeGib: number }[]> {
  return tx.backup.createManyAndReturn({
    data: backups.map((backup) => ({ ...backup, status: backup.status ?? "creating" })),
    skipDuplicates: true,
    select: { projectId: true, sizeGib: true },
  });
}

/** Number of live incrementals that build on a backup, in any project and status. */
export async function countDependents(database: Database | Transaction, id: string): Promise<number> {
  return database.backup.count({ where: { parentId: id, deletedAt: null } });
}

/** Locks a backup row and reads it; after its volume, and after its parent, in the lock order. Tombstones are not found. */
export async function lockBackup(tx: Transaction, id: string): Promise<Backup | null> {
  const backup = await lockRow(tx, "backup", id);
  return backup?.deletedAt === null ? backup : null;
}

/** Locks a deleted backup that can be brought back. @throws NotFoundError also for another project's, and while it is being removed */
export async function lockHidden(tx: Transaction, principal: Principal, id: string): Promise<Backup> {
  const row = isUuid(id) ? await lockRow(tx, "backup", id) : null;
  const isHidden = row?.undeleteUntil != null && row.status === "deleted";
  if (!row || !isHidden || !mayLook(principal, row)) throw new NotFoundError("Deleted backup", id);
  return row;
}

/** @throws NotFoundError for an unknown id or another project's */
export async function getBackup(
  database: Database | Transaction,
  principal: Principal,
  id: string,
): Promise<BackupRow> {
  const [backup] = isUuid(id)
    ? await readRows<BackupRow>(
        database,
        Prisma.sql`SELECT ${backupColumns},
          EXISTS (SELECT FROM backups child WHERE child.parent_id = backups.id AND child.deleted_at IS NULL) AS "hasDependents"
        FROM backups WHERE id = ${id}::uuid AND deleted_at IS NULL`,
      )
    : [];
  if (!backup || !mayLook(principal, backup)) throw new NotFoundError("Backup", id);
  return backup;
}
