import type { Database, Transaction } from "../db/database.ts";
import { isStoredBackup } from "../db/live.ts";
import { NotFoundError } from "../errors.ts";

export interface ChainLink {
  id: string;
  projectId: string;
  repository: string;
  container: string | null;
  serviceMetadata: string | null;
  parentId: string | null;
  storedBytes: bigint | null;
  damage: string | null;
}

/** The backup and its ancestors, newest first, as far as their rows are live. A cycle (which an import can forge) ends the walk. */
export async function readChain(database: Database | Transaction, backupId: string): Promise<ChainLink[]> {
  return database.$queryRaw<ChainLink[]>`
    WITH RECURSIVE chain AS (
      SELECT b.*, 0 AS depth FROM backups b WHERE b.id = ${backupId}::uuid AND b.deleted_at IS NULL
      UNION ALL
      SELECT b.*, c.depth + 1 FROM backups b JOIN chain c ON b.id = c.parent_id WHERE b.deleted_at IS NULL
    ) CYCLE id SET looped USING walked
    SELECT id, project_id AS "projectId", repository, container, service_metadata AS "serviceMetadata", parent_id AS "parentId",
      stored_bytes AS "storedBytes", damage
    FROM chain WHERE NOT looped ORDER BY depth`;
}

/** Backups whose objects are there that are any of these, or build on one, directly or not; in any project. */
export async function readFamily(tx: Transaction, ids: readonly string[]): Promise<string[]> {
  const rows = await tx.$queryRaw<{ id: string }[]>`
    WITH RECURSIVE family AS (
      SELECT id FROM backups WHERE id = ANY(${[...ids]}::uuid[]) AND ${isStoredBackup("backups")}
      UNION
      SELECT b.id FROM backups b JOIN family f ON b.parent_id = f.id WHERE ${isStoredBackup("b")}
    ) SELECT id FROM family`;
  return rows.map(({ id }) => id);
}

/** Where one member of a chain is stored. */
export interface StoredLink {
  backupId: string;
  repository: string;
  container: string;
  prefix: string;
}

/** A backup with everything that it builds on, newest first. @throws NotFoundError when a member is gone */
export async function wholeChain(database: Database, backupId: string): Promise<StoredLink[]> {
  const links = await readChain(database, backupId);
  const gone = missingLink(links, backupId);
  if (gone !== null) throw new NotFoundError("Backup", gone);
  return links.map(({ id, repository, container, serviceMetadata }) => {
    return { backupId: id, repository, container: container ?? "", prefix: serviceMetadata ?? "" };
  });
}

/** The member without which nothing of a chain can be read, since its row is gone or says nowhere; null when all are there. */
export function missingLink(links: readonly ChainLink[], backupId: string): string | null {
  const bottom = links.at(-1);
  if (bottom?.parentId !== null) return bottom?.parentId ?? backupId;
  return links.find(({ container, serviceMetadata }) => !container || !serviceMetadata)?.id ?? null;
}

/** A damaged object: `backupId` is the member of the chain that it belongs to. */
export interface Damage {
  backupId: string;
  object: string;
  reason: string;
}

/** Marks every row that shares the damaged objects: none of them is chosen as a parent any more. */
export async function markDamage(tx: Transaction, { backupId, object, reason }: Damage): Promise<void> {
  const row = await tx.backup.findUnique({ where: { id: backupId } });
  if (row === null) return;
  const { repository, container, serviceMetadata } = row;
  await tx.backup.updateMany({
    where: { repository, container, serviceMetadata, deletedAt: null },
    data: { damage: `${object}: ${reason}` },
  });
}

/** Members of a backup's chain, including itself, that are marked as damaged. */
export async function readDamage(
  database: Database | Transaction,
  backupId: string,
): Promise<{ id: string; damage: string }[]> {
  const links = await readChain(database, backupId);
  return links.flatMap(({ id, damage }) => (damage === null ? [] : [{ id, damage }]));
}

export async function chainRepositories(tx: Transaction, backupId: string): Promise<string[]> {
  const chain = await readChain(tx, backupId);
  return [...new Set(chain.map((c) => c.repository))].sort();
}
