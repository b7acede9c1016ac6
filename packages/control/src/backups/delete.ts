import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import { giveReason, transactionTime } from "../db/actor.ts";
import { type Database, inTransaction, lockRepository, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { isStoredBackup, liveStates, storedBackups } from "../db/live.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { notifyBackup } from "../events/notifications.ts";
import type { Principal } from "../principal.ts";
import { waitForWorkers } from "../queue/blocked.ts";
import { completeOperation, lockLiveOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { needToWrite } from "../queue/workers.ts";
import type { Backup } from "../rows/backups.ts";
import { getBackup, lockBackup, lockHidden } from "../rows/backups.ts";
import { move, override } from "../rows/move.ts";
import { lockQuota, releaseQuota } from "../rows/quotas.ts";
import { cancelReaders } from "./verify.ts";

/** Nothing is being done to a backup in these. */
const deletable = ["available", "error", "error_restoring", "error_deleting"] as const;

const needed = "Backup status must be available or error";
const statusRefusal = () => new InvalidError("backup", needed);
const requestable: readonly string[] = ["available", "error", "error_restoring"];

/** What a request to delete it would be refused with now; null: nothing, as far as its row tells. */
export function whyNotDeleted(
  backup: { status: string; holdUntil: Date | null; hasDependents: boolean },
  now: Date,
): string | null {
  if (!requestable.includes(backup.status)) return needed;
  if (backup.holdUntil !== null && backup.holdUntil > now)
    return `Backup is held until ${backup.holdUntil.toISOString()}`;
  return backup.hasDependents ? dependents : null;
}

/**
 * Accepts a deletion: the backup is removed, or hidden for the deletion delay of its policy or repository.
 *
 * @throws NotFoundError; InvalidError in a wrong status, while it is held, or with live incrementals
 */
export async function requestBackupDelete(
  database: Database,
  config: Config,
  principal: Principal,
  id: string,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await getBackup(tx, principal, id);
    const backup = await lockBackup(tx, id);
    if (!backup) throw new NotFoundError("Backup", id);
    if (!requestable.includes(backup.status)) throw statusRefusal();
    await deleteLocked(tx, config, principal, backup);
  });
}

/** Deletes the locked backup as a request does. @returns whether it is hidden, or removed. @throws InvalidError as requestBackupDelete */
export async function deleteLocked(
  tx: Transaction,
  config: Config,
  principal: Principal,
  backup: Backup,
): Promise<"hidden" | "deleting"> {
  const children = await readChildren(tx, backup.id);
  if (await hideBackup(tx, config, backup, children)) return "hidden";
  await startBackupDelete(tx, principal, backup, { children });
  return "deleting";
}

/**
 * Sets the locked backup to `deleting` and adds the operation that removes it; part of the operation `parentId` where there is one. Nothing
 * is removed before the last worker of any operation cancelled for it has let go. With `force`, its status does not matter.
 *
 * @returns the operation's id
 * @throws InvalidError while something is done to it, while it is held, or with incrementals, counted over all projects: live ones, and
 *   deleted ones that can be brought back
 */
export async function startBackupDelete(
  tx: Transaction,
  principal: Pick<Principal, "userId" | "requestId">,
  backup: Backup,
  { parentId = null, force = false, children }: { parentId?: string | null; force?: boolean; children?: Children } = {},
): Promise<string> {
  await refuseHeld(tx, backup);
  const { live, hiddenUntil } = children ?? (await readChildren(tx, backup.id));
  if (live > 0) throw new InvalidError("backup", dependents);
  if (hiddenUntil !== null) throw new InvalidError("backup", hiddenDependents);
  await cancelReaders(tx, backup.id);
  const moved = force
    ? await override(tx, "backup", { id: backup.id }, "deleting")
    : await move(tx, "backup", { id: backup.id }, { from: deletable, to: "deleting" });
  if (moved !== 1) throw statusRefusal();
  await notifyBackup(tx, "backup.delete.start", backup.id);
  return startRemoval(tx, principal, backup, parentId);
}

const dependents = "Incremental backups exist for this backup.";
const hiddenDependents = "Deleted incremental backups that can still be brought back exist for this backup.";

/** What builds on a backup, in any project: how many live ones, and until when the last of the deleted ones can be brought back. */
interface Children {
  live: number;
  hiddenUntil: Date | null;
}

async function readChildren(tx: Transaction, id: string): Promise<Children> {
  const [children] = await tx.$queryRaw<[Children]>`
    SELECT (count(*) FILTER (WHERE deleted_at IS NULL))::int AS live, max(undelete_until) AS "hiddenUntil"
    FROM backups WHERE parent_id = ${id}::uuid AND ${isStoredBackup("backups")}`;
  return children;
}

/** Adds the operation that removes the objects of a backup which is `deleting`. @returns its id */
async function startRemoval(
  tx: Transaction,
  principal: Pick<Principal, "userId" | "requestId">,
  backup: Backup,
  parentId: string | null = null,
): Promise<string> {
  const operationId = await startOperation(tx, principal, {
    kind: "backup-delete",
    projectId: backup.projectId,
    backupId: backup.id,
    volumeId: backup.volumeId,
    parentId,
    task: { kind: "remove-backup", needs: [needToWrite(backup.repository)] },
  });
  await waitForWorkers(tx, operationId);
  return operationId;
}

const hideable = ["available", "error_restoring"] as const;

/**
 * Where a deletion delay applies to the locked backup: nobody sees it any more, its objects stay and count against the quota, and it can be
 * brought back until the delay is over. It stays no less long than what builds on it. A backup that was never completed is not hidden.
 *
 * @returns false where no delay applies; nothing is changed then
 * @throws InvalidError while it is held, or with live incrementals, counted over all projects
 */
export async function hideBackup(
  tx: Transaction,
  config: Config,
  backup: Backup,
  children?: Children,
): Promise<boolean> {
  if (!(hideable as readonly string[]).includes(backup.status)) return false;
  const { live, hiddenUntil } = children ?? (await readChildren(tx, backup.id));
  const until = await undeleteUntil(tx, config, backup, hiddenUntil);
  if (until === null) return false;
  await refuseHeld(tx, backup);
  if (live > 0) throw new InvalidError("backup", dependents);
  await cancelReaders(tx, backup.id);
  const columns = { deletedAt: await transactionTime(tx), undeleteUntil: until };
  const moved = await move(tx, "backup", { id: backup.id }, { from: hideable, to: "deleted" }, columns);
  if (moved !== 1) throw statusRefusal();
  await notifyBackup(tx, "backup.delete.start", backup.id);
  return true;
}

/** When the deletion delay of a backup that is deleted now is over; null: no delay applies. */
async function undeleteUntil(
  tx: Transaction,
  config: Config,
  backup: Backup,
  hiddenUntil: Date | null,
): Promise<Date | null> {
  const configured = config.repositories.find(({ name }) => name === backup.repository)?.deletion_delay_hours ?? 0;
  const hours = (backup.policyId === null ? null : await policyDelayHours(tx, backup.policyId)) ?? configured;
  const own = hours > 0 ? (await transactionTime(tx)).getTime() + hours * 3_600_000 : 0;
  const until = Math.max(own, hiddenUntil?.getTime() ?? 0);
  return until > 0 ? new Date(until) : null;
}

/** Of the policy that made a backup; null where it does not say, or is gone. */
async function policyDelayHours(tx: Transaction, policyId: string): Promise<number | null> {
  const [policy] = await tx.$queryRaw<{ hours: number | null }[]>`
    SELECT (retention->>'deletion_delay_hours')::int AS hours FROM policies WHERE id = ${policyId}::uuid`;
  return policy?.hours ?? null;
}

/** @throws InvalidError while somebody holds the backup */
async function refuseHeld(tx: Transaction, backup: Backup): Promise<void> {
  if (!(await isHeld(tx, backup))) return;
  const { holdUntil, holdReason } = backup;
  const why = holdReason === null ? "" : `: ${holdReason}`;
  throw new InvalidError("backup", `Backup is held until ${holdUntil?.toISOString()}${why}`);
}

const isHeld = async (tx: Transaction, { holdUntil }: Pick<Backup, "holdUntil">): Promise<boolean> =>
  holdUntil !== null && holdUntil > (await transactionTime(tx));

export interface Removal {
  repository: string;
  container: string;
  prefix: string;
}

/**
 * Called before the first object is removed. Returns what a deletion may remove from the repository: null when nothing was ever named, or
 * when another row that is live, or can be brought back, shares the objects (an imported twin), since they go with the last of these rows. A row that is being deleted as
 * well does not count; otherwise two simultaneous deletions would each leave the objects to the other. From then on no row of these objects
 * ever becomes `available` again.
 *
 * @throws OperationEndedError
 */
export async function beginBackupDelete(database: Database, operation: TaskOperation): Promise<Removal | null> {
  return inTransaction(database, async (tx) => {
    const backup = await tx.backup.findUnique({ where: { id: operation.backupId ?? nilUuid } });
    const { repository, container, serviceMetadata: prefix } = backup ?? {};
    if (!repository || !container || !prefix) return null;
    await lockRepository(tx, repository);
    const sharing = await tx.$queryRaw<{ id: string; status: string }[]>`
      SELECT id, status FROM backups WHERE repository = ${repository} AND container = ${container} AND service_metadata = ${prefix}
        AND ${isStoredBackup("backups")} ORDER BY id FOR UPDATE`;
    await lockLiveOperation(tx, operation.id);
    if (sharing.some(({ id, status }) => id !== operation.backupId && status !== "deleting")) return null;
    const ids = sharing.map(({ id }) => id);
    await tx.backup.updateMany({
      where: { id: { in: ids }, removalBegunAt: null },
      data: { removalBegunAt: new Date() },
    });
    return { repository, container, prefix };
  });
}

/**
 * The objects are gone: the row becomes a tombstone and its quota is released.
 *
 * @returns whether it had been merged into another backup, so that what it was built on may go now: see letGoOfMerged
 */
export async function finishBackupDelete(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<boolean> {
  return inTransaction(database, async (tx) => {
    const live = { id: operation.backupId ?? nilUuid, ...storedBackups };
    // Two deletions may end at once, one of them forced: the row is read under the lock, so that only one of them releases the quota.
    await lockQuota(tx, operation.projectId);
    const row = await tx.backup.findFirst({ where: live });
    if (row) await releaseQuota(tx, row.projectId, { backups: 1, backup_gigabytes: row.sizeGib });
    // Whatever the status says, the objects are gone.
    if (row) await override(tx, "backup", { id: row.id }, "deleted", { deletedAt: new Date(), undeleteUntil: null });
    if (row) await notifyBackup(tx, "backup.delete.end", row.id);
    await completeOperation(tx, operation, result);
    return row !== null && row.squashedInto !== null;
  });
}

/** A deletion whose delay is over removes so many at once. */
const removedAtOnce = 50;

/**
 * Removes hidden backups whose delay is over, one batch; a parent after what builds on it.
 *
 * @returns whether there may be more
 */
export async function removeHidden(
  database: Database,
  principalOf: (projectId: string) => Principal,
): Promise<boolean> {
  return inTransaction(database, async (tx) => {
    const due = await tx.$queryRaw<{ id: string }[]>`
      SELECT id FROM backups b WHERE b.undelete_until <= now() AND b.status = 'deleted'
        AND NOT EXISTS (SELECT FROM backups c WHERE c.parent_id = b.id AND ${isStoredBackup("c")})
      ORDER BY b.undelete_until LIMIT ${removedAtOnce} FOR UPDATE SKIP LOCKED`;
    for (const { id } of due) await removeHiddenBackup(tx, principalOf, id);
    return due.length === removedAtOnce;
  });
}

async function removeHiddenBackup(
  tx: Transaction,
  principalOf: (projectId: string) => Principal,
  id: string,
): Promise<void> {
  const backup = await tx.backup.findUniqueOrThrow({ where: { id } });
  const moved = await move(tx, "backup", { id, undeleteUntil: { not: null } }, { from: "deleted", to: "deleting" });
  if (moved === 1) await startRemoval(tx, principalOf(backup.projectId), backup);
}

/**
 * An admin removes a hidden backup before its delay is over.
 *
 * @throws NotFoundError where there is none; InvalidError while others that can be brought back build on it
 */
export async function requestHiddenRemoval(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    await lockHidden(tx, principal, id);
    if ((await readChildren(tx, id)).hiddenUntil !== null) throw new InvalidError("backup", hiddenDependents);
    await giveReason(tx, "An administrator removed the deleted backup before its delay was over.");
    await removeHiddenBackup(tx, () => principal, id);
  });
}

/** In these, a backup that was merged into another is deleted; one whose deletion failed is left to its owner. */
const idle = ["available", "error_restoring"];

/**
 * Deletes a backup that was merged into another one, as its owner would, unless it is held, somebody reads it, or another one builds on it: then
 * it stays until that has ended. Where a deletion delay hides it, what it was built on goes at once as well; otherwise when it is gone.
 */
export async function letGo(tx: Transaction, config: Config, id: string): Promise<void> {
  for (let next: string | null = id; next !== null; ) next = await letGoOfOne(tx, config, next);
}

/** @returns what may go next: null, unless the backup was hidden */
async function letGoOfOne(tx: Transaction, config: Config, id: string): Promise<string | null> {
  const backup = await lockBackup(tx, id);
  if (backup?.squashedInto == null || !idle.includes(backup.status) || (await isHeld(tx, backup))) return null;
  const reading = await tx.operation.count({ where: { backupId: id, state: liveStates } });
  const transfers = await tx.imageTransfer.count({ where: { storedBackupId: id, endedAt: null } });
  const children = await readChildren(tx, id);
  if (reading + transfers + children.live > 0) return null;
  const squash = await tx.operation.findFirst({
    where: { backupId: backup.squashedInto, kind: "backup-squash" },
    orderBy: { createdAt: "desc" },
  });
  await giveReason(tx, `It was merged into backup ${backup.squashedInto}.`);
  if (await hideBackup(tx, config, backup, children)) {
    // Who brings it back keeps it.
    await tx.backup.update({ where: { id }, data: { squashedInto: null } });
    return backup.parentId;
  }
  const asked = squash ?? { userId: backup.userId, requestId: `req-${randomUUID()}` };
  await startBackupDelete(tx, asked, backup, { children });
  return null;
}

/** Most backups that one look for those to be let go of takes. */
const letGoMax = 100;

/**
 * Backups that were merged into others, on which nothing builds any more: see letGo. Whatever kept one from being deleted has ended since.
 *
 * @param below only what this deleted backup was built on
 */
export async function letGoOfMerged(database: Database, config: Config, below: string | null = null): Promise<void> {
  const rows = await database.$queryRaw<{ id: string }[]>`
    SELECT id FROM backups b WHERE squashed_into IS NOT NULL AND deleted_at IS NULL AND status = ANY(${idle}::text[])
      AND (${below}::uuid IS NULL OR id = (SELECT parent_id FROM backups WHERE id = ${below}::uuid))
      AND NOT EXISTS (SELECT FROM backups c WHERE c.parent_id = b.id AND c.deleted_at IS NULL)
    ORDER BY squashed_into, id LIMIT ${letGoMax}`;
  for (const { id } of rows) await inTransaction(database, (tx) => letGo(tx, config, id));
}
