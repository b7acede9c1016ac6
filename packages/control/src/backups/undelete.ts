import { transactionTime } from "../db/actor.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { InvalidError } from "../errors.ts";
import { notifyBackup } from "../events/notifications.ts";
import { type Principal, visibleTo } from "../principal.ts";
import type { Backup } from "../rows/backups.ts";
import { lockHidden } from "../rows/backups.ts";
import { move } from "../rows/move.ts";

/**
 * Brings a deleted backup back, with the deleted ones that it builds on: without them it could not be restored.
 *
 * @returns the ids of all that have been brought back, from the oldest on
 * @throws NotFoundError where there is none; InvalidError when the delay is over, or its chain is not there any more
 */
export async function undeleteBackup(database: Database, principal: Principal, id: string): Promise<string[]> {
  return inTransaction(database, async (tx) => {
    const chain = await lockHiddenChain(tx, principal, id);
    const now = await transactionTime(tx);
    const back: string[] = [];
    for (const backup of chain.toReversed()) {
      if (backup.undeleteUntil === null || backup.undeleteUntil <= now) throw new InvalidError("backup", over);
      const columns = { deletedAt: null, undeleteUntil: null };
      const moved = await move(tx, "backup", { id: backup.id }, { from: "deleted", to: "available" }, columns);
      if (moved !== 1) throw new InvalidError("backup", over);
      await notifyBackup(tx, "backup.undelete", backup.id);
      back.push(backup.id);
    }
    return back;
  });
}

const over = "The deletion delay is over: the backup, or one that it builds on, is being removed.";

/** The backup and the hidden ones that it builds on, newest first, all locked. */
async function lockHiddenChain(tx: Transaction, principal: Principal, id: string): Promise<Backup[]> {
  const hidden = [await lockHidden(tx, principal, id)];
  for (let at = hidden[0]?.parentId ?? null; at !== null; at = hidden.at(-1)?.parentId ?? null) {
    const parent = await tx.backup.findUnique({ where: { id: at } });
    if (parent?.deletedAt === null) break;
    if (parent?.undeleteUntil == null || parent.status !== "deleted" || parent.projectId !== hidden[0]?.projectId) {
      throw new InvalidError("backup", `Backup ${at}, which this one builds on, has been removed.`);
    }
    hidden.push(await lockHidden(tx, principal, at));
  }
  return hidden;
}

/** Deleted backups that can be brought back, the last deleted first; of the caller's project, unless an admin asks. */
export async function listHidden(
  database: Database,
  principal: Principal,
  { id, volumeId, limit }: { id?: string | undefined; volumeId?: string | undefined; limit: number },
): Promise<Backup[]> {
  const of = { ...(id !== undefined && { id }), ...(volumeId !== undefined && { volumeId }) };
  return database.backup.findMany({
    where: { ...visibleTo(principal), undeleteUntil: { not: null }, ...of },
    orderBy: [{ deletedAt: "desc" }, { id: "asc" }],
    take: limit,
  });
}
