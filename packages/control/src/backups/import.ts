import { type Config, defaultRepository } from "../config.ts";
import { type Database, inTransaction, lockRepository, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { storedBackups } from "../db/live.ts";
import { InvalidError, NoServiceError, OperationEndedError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { completeOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { liveQueues } from "../queue/workers.ts";
import type { Backup } from "../rows/backups.ts";
import { addFoundBackups } from "../rows/backups.ts";
import { type ChainLink, readChain } from "../rows/chains.ts";
import { move } from "../rows/move.ts";
import { reserveQuota } from "../rows/quotas.ts";

/** What an export record shows at first sight; the worker checks the rest. */
export interface NewImport {
  /** The class path of the requested driver, or its beginning; empty for any. */
  service: string;
  /** The record in strict base64. */
  url: string;
  id: string;
  parentId: string | null;
  sizeGib: number;
}

/** @throws NoServiceError when no live worker could run an import */
export async function assertImportable(database: Database, config: Config, service: string): Promise<void> {
  if ((await liveQueues(database, config.worker.down_ms)).length === 0) throw new NoServiceError(service);
}

/**
 * Accepts an export record (cinder-api 6.9). The row is the caller's, is charged to its quota, and gets its contents when a worker has
 * checked what the record names. A tombstone with the same id is replaced.
 *
 * @throws InvalidError when a live row of any project has the id, or the parent cannot be one; QuotaExceededError
 */
export async function requestBackupImport(
  database: Database,
  config: Config,
  principal: Principal,
  request: NewImport,
): Promise<{ id: string; name: string | null }> {
  const { id, parentId, sizeGib } = request;
  const { projectId } = principal;
  await inTransaction(database, async (tx) => {
    await reserveQuota(tx, config, projectId, { backups: 1, backup_gigabytes: sizeGib });
    await tx.backup.deleteMany({ where: { id, deletedAt: { not: null }, undeleteUntil: null } });
    const now = new Date();
    const row = {
      ...{ id, projectId, userId: principal.userId, volumeId: nilUuid, sizeGib },
      ...{ repository: defaultRepository(config).name, dataTimestamp: now, createdAt: now },
    };
    if ((await addFoundBackups(tx, [row])).length === 0)
      throw new InvalidError("backup", "Backup already exists in database.");
    await readParents(tx, { id, projectId, parentId });
    await startOperation(tx, principal, {
      kind: "backup-import",
      projectId,
      backupId: id,
      input: { service: request.service, url: request.url },
      // Any worker: which repository has the objects is not known until one has looked.
      task: { kind: "import-backup", needs: [] },
    });
  });
  return { id, name: null };
}

/** Where the objects of an imported backup are. */
export interface ImportPlace {
  repository: string;
  container: string;
  prefix: string;
}

/**
 * Records where the objects are before they are checked: from then on a deletion of another row that shares them leaves them alone. One
 * that was already under way may not have seen this row, so the import yields to it.
 *
 * @throws OperationEndedError when the row is no longer being imported; InvalidError when the objects are being deleted or reaped
 */
export async function nameImport(database: Database, operation: TaskOperation, place: ImportPlace): Promise<void> {
  const named = { repository: place.repository, container: place.container, serviceMetadata: place.prefix };
  await inTransaction(database, async (tx) => {
    await lockRepository(tx, place.repository);
    const { count } = await tx.backup.updateMany({
      where: { id: operation.backupId ?? nilUuid, status: "creating", deletedAt: null },
      data: named,
    });
    if (count !== 1) throw new OperationEndedError(operation.id);
    const condemned = await tx.condemnedPlace.count({ where: { container: place.container, prefix: place.prefix } });
    if (condemned > 0) throw new InvalidError("backup", "The objects of the backup are being removed by a reaper.");
  });
  const gone = { OR: [{ status: "deleting" }, { removalBegunAt: { not: null } }] };
  const deleting = await database.backup.count({ where: { ...named, AND: [gone, storedBackups] } });
  if (deleting > 0) throw new InvalidError("backup", "The objects of the backup are being deleted.");
}

/** Everything that the row takes over; ids that are not UUIDs have been dropped. */
export type ImportedBackup = Pick<
  Backup,
  | "name"
  | "description"
  | "volumeId"
  | "snapshotId"
  | "parentId"
  | "sizeGib"
  | "volumeBytes"
  | "storedBytes"
  | "objectCount"
  | "blockBytes"
  | "service"
  | "host"
  | "availabilityZone"
  | "encryptionKeyId"
  | "dataTimestamp"
  | "createdAt"
> & {
  metadata: Record<string, string>;
  /** The parent according to the metadata object; undefined when it does not say. */
  statedParentId: string | null | undefined;
};

/**
 * What the record named is there: the backup becomes `available`.
 *
 * @throws InvalidError when it cannot build on the parent that the record names; OperationEndedError, ClaimLostError
 */
export async function finishBackupImport(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  imported: ImportedBackup,
): Promise<void> {
  const id = operation.backupId ?? nilUuid;
  const { statedParentId, ...columns } = imported;
  await inTransaction(database, async (tx) => {
    await checkParent(tx, { id, projectId: operation.projectId, parentId: imported.parentId }, statedParentId);
    const count = await move(tx, "backup", { id, deletedAt: null }, { from: "creating", to: "available" }, columns);
    if (count !== 1) throw new OperationEndedError(operation.id);
    await completeOperation(tx, operation, result);
  });
}

interface Descent {
  id: string;
  projectId: string;
  parentId: string | null;
}

/**
 * The chain that an imported backup builds on, as far as it is there: parents may be imported later. A chain belongs to one project,
 * because whoever may restore a backup reads everything that it builds on.
 *
 * @throws InvalidError when it closes a cycle or extends into another project
 */
async function readParents(tx: Transaction, { id, projectId, parentId }: Descent): Promise<ChainLink[]> {
  const chain = parentId === null ? [] : await readChain(tx, parentId);
  if (parentId === id || chain.some((link) => link.id === id || link.parentId === id)) {
    throw new InvalidError("backup", "The parents of the backup form a circle.");
  }
  const elsewhere = { parentId: id, projectId: { not: projectId }, deletedAt: null };
  if (chain.some((link) => link.projectId !== projectId) || (await tx.backup.count({ where: elsewhere })) > 0) {
    throw new InvalidError("backup", "The chain of the backup belongs to another project.");
  }
  return chain;
}

/**
 * Records can be written by hand: one that names another parent than its objects do is refused. A parent may have been imported under an id
 * other than the one in its objects.
 */
async function checkParent(tx: Transaction, descent: Descent, stated: string | null | undefined): Promise<void> {
  const { parentId } = descent;
  if (stated !== undefined && (stated === null) !== (parentId === null)) {
    throw new InvalidError(
      "backup",
      `The record names ${parentId ?? "no backup"} as parent, the metadata ${stated ?? "none"}.`,
    );
  }
  const [parent] = await readParents(tx, descent);
  const bears = parent?.serviceMetadata?.split("_backup_").at(-1);
  if (!parent || stated == null || stated === parent.id || stated === bears) return;
  throw new InvalidError("backup", `The record names ${parentId} as parent, the metadata ${stated}.`);
}
