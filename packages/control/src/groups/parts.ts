import type { Database, Transaction } from "../db/database.ts";
import { InvalidError } from "../errors.ts";
import { lockOperation, type OperationRow } from "../queue/operations.ts";
import { lockBackup } from "../rows/backups.ts";
import { lockGroup } from "../rows/groups.ts";
import { lockVolume } from "../rows/volumes.ts";

/**
 * Locks the parts of a group operation in the lock order: the group, the parts' volumes and backups, the parts. The group operation itself
 * comes after.
 *
 * @returns the parts, by id
 */
export async function lockParts(
  tx: Transaction,
  operation: { id: string; groupId: string | null },
): Promise<OperationRow[]> {
  if (operation.groupId) await lockGroup(tx, operation.groupId);
  const seen = await readParts(tx, operation.id);
  for (const id of [...new Set(seen.flatMap((part) => part.volumeId ?? []))].sort()) await lockVolume(tx, id);
  for (const id of [...new Set(seen.flatMap((part) => part.backupId ?? []))].sort()) await lockBackup(tx, id);
  const parts: OperationRow[] = [];
  for (const { id } of seen) parts.push(await lockOperation(tx, id));
  return parts;
}

/** The operations that are parts of a group operation, by id. */
export async function readParts(database: Database | Transaction, operationId: string): Promise<OperationRow[]> {
  const rows = await database.operation.findMany({ where: { parentId: operationId }, orderBy: { id: "asc" } });
  return rows as OperationRow[];
}

const whats: Readonly<Record<string, string>> = {
  "backup-create": "Backup",
  "backup-restore": "Restore",
  "backup-delete": "Deletion of the backup",
};

/** @throws InvalidError that names the part that failed, if one did */
export function assertPartsDone(parts: readonly OperationRow[]): void {
  const failed = parts.find(({ state }) => state === "failed") ?? parts.find(({ state }) => state !== "succeeded");
  if (!failed) return;
  const why = failed.failReason ?? "it was given up";
  throw new InvalidError("request", `${whats[failed.kind] ?? failed.kind} of volume ${failed.volumeId} failed: ${why}`);
}
