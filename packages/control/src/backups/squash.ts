import type { Config } from "../config.ts";
import { transactionTime } from "../db/actor.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isLiveOperation } from "../db/live.ts";
import { InvalidError, NotFoundError, RefusedError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { startOperation } from "../queue/operations.ts";
import { squashNeeds } from "../queue/plan-needs.ts";
import { type Backup, getBackup, lockBackup } from "../rows/backups.ts";
import { type ChainLink, readChain, readDamage, readFamily } from "../rows/chains.ts";

/** What a squash may read, and be of: complete backups that nobody removes. */
const squashable: readonly string[] = ["available", "restoring"];

/**
 * Accepts a squash: the backup and everything that it builds on become one full backup that bears its id. It keeps its status, and may be
 * restored and built on meanwhile; its deletion ends the squash.
 *
 * @returns the operation's id
 * @throws NotFoundError; InvalidError for a full backup, and one of whose chain a member is damaged, held, not complete or gone; RefusedError while
 * another squash of the chain is going on
 */
export async function requestSquash(
  database: Database,
  config: Config,
  principal: Principal,
  request: { backupId: string },
): Promise<{ id: string }> {
  const id = await inTransaction(database, (tx) => requestSquashWithin(tx, config, principal, request));
  return { id };
}

/** @returns the operation's id @throws as requestSquash */
export async function requestSquashWithin(
  tx: Transaction,
  config: Config,
  principal: Principal,
  request: { backupId: string },
): Promise<string> {
  await getBackup(tx, principal, request.backupId);
  const backup = await lockBackup(tx, request.backupId);
  if (!backup) throw new NotFoundError("Backup", request.backupId);
  return startSquash(tx, config, principal, { backup });
}

/**
 * As requestSquash, for a backup that is locked.
 *
 * @returns the operation's id
 */
export async function startSquash(
  tx: Transaction,
  _config: Config,
  principal: Pick<Principal, "userId" | "requestId">,
  { backup }: { backup: Pick<Backup, "id" | "projectId" | "volumeBytes" | "parentId"> },
): Promise<string> {
  if (backup.parentId === null) {
    throw new InvalidError("backup", `Backup ${backup.id} is a full backup: there is nothing to squash.`);
  }
  const chain = await readChain(tx, backup.id);
  await checkMembers(tx, chain);
  await checkAlone(tx, chain);
  return startOperation(tx, principal, {
    kind: "backup-squash",
    projectId: backup.projectId,
    backupId: backup.id,
    bytesTotal: backup.volumeBytes ?? 0n,
    task: { kind: "plan-squash", needs: squashNeeds(chain) },
  });
}

/** @throws InvalidError */
async function checkMembers(tx: Transaction, chain: readonly ChainLink[]): Promise<void> {
  const [newest, bottom] = [chain[0], chain.at(-1)];
  const refuse = (why: string) => new InvalidError("backup", `Backup ${newest?.id} cannot be squashed: ${why}`);
  if (bottom?.parentId !== null) throw refuse(`backup ${bottom?.parentId}, on which it builds, is gone.`);
  const rows = await tx.backup.findMany({
    where: { id: { in: chain.map(({ id }) => id) } },
    select: { id: true, status: true, container: true, serviceMetadata: true, holdUntil: true },
  });
  const odd = rows.find((row) => !squashable.includes(row.status) || !row.container || !row.serviceMetadata);
  if (odd) throw refuse(`backup ${odd.id} must be ${squashable.join(" or ")}, and is ${odd.status}.`);
  const now = await transactionTime(tx);
  const held = rows.find(({ id, holdUntil }) => id !== newest?.id && holdUntil !== null && holdUntil > now);
  if (held) throw refuse(`backup ${held.id}, which would be deleted, is held until ${held.holdUntil?.toISOString()}.`);
  const [damage] = await readDamage(tx, newest?.id ?? "");
  if (damage) throw refuse(`backup ${damage.id} is damaged: ${damage.damage}`);
}

/** Of two squashes of one chain, the second would read what the first replaces. @throws RefusedError */
async function checkAlone(tx: Transaction, chain: readonly ChainLink[]): Promise<void> {
  const family = await readFamily(
    tx,
    chain.map(({ id }) => id),
  );
  const [running] = await tx.$queryRaw<{ id: string; backup: string }[]>`
    SELECT id, backup_id AS backup FROM operations o WHERE kind = 'backup-squash' AND backup_id = ANY(${family}::uuid[])
      AND ${isLiveOperation("o")} LIMIT 1`;
  if (!running) return;
  const text = `A squash of backup ${running.backup}, of the same chain, is going on (operation ${running.id}); try again later.`;
  throw new RefusedError("squash-going-on", text, { operation: running.id });
}
