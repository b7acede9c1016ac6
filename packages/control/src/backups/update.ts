import type { Database } from "../db/database.ts";
import { NotFoundError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { type BackupRow, getBackup } from "../rows/backups.ts";

export interface BackupChange {
  name?: string | null;
  description?: string | null;
  /** Replaces the whole set. */
  metadata?: Record<string, string>;
}

/** Changes a backup's user-editable fields, in any status. @throws NotFoundError */
export async function updateBackup(
  database: Database,
  principal: Principal,
  id: string,
  change: BackupChange,
): Promise<BackupRow> {
  const seen = await getBackup(database, principal, id);
  if (Object.keys(change).length === 0) return seen;
  const { count } = await database.backup.updateMany({
    where: { id, deletedAt: null },
    data: { ...change, updatedAt: new Date() },
  });
  if (count === 0) throw new NotFoundError("Backup", id);
  return { ...seen, ...change };
}
