import { giveReason, transactionTime } from "../db/actor.ts";
import { type Database, inTransaction } from "../db/database.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { getBackup, lockBackup } from "../rows/backups.ts";

/**
 * Holds a backup: until then nobody deletes it, whoever asks, and by whichever API; not even by force. Holding it again replaces the time
 * and the reason.
 *
 * @throws NotFoundError; InvalidError for a time that is past, or a backup that is being deleted
 */
export async function holdBackup(
  database: Database,
  principal: Principal,
  id: string,
  { until, reason }: { until: Date; reason: string },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await getBackup(tx, principal, id);
    const backup = await lockBackup(tx, id);
    if (!backup) throw new NotFoundError("Backup", id);
    if (until <= (await transactionTime(tx))) {
      throw new InvalidError("request", "Invalid input received: hold.until: is not in the future");
    }
    if (backup.status === "deleting") throw new InvalidError("backup", "The backup is being deleted.");
    await giveReason(tx, `held until ${until.toISOString()}: ${reason}`);
    await tx.backup.updateMany({ where: { id }, data: { holdUntil: until, holdReason: reason } });
  });
}

/** Lets go of a held backup; of one that nobody holds there is nothing to do. @throws NotFoundError */
export async function releaseHold(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    await getBackup(tx, principal, id);
    await lockBackup(tx, id);
    await giveReason(tx, "no longer held");
    await tx.backup.updateMany({ where: { id }, data: { holdUntil: null, holdReason: null } });
  });
}
