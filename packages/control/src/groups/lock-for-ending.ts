import type { Transaction } from "../db/database.ts";
import { isUuid, nilUuid } from "../db/listing.ts";
import { NotFoundError } from "../errors.ts";
import { isGroupOperation, lockOperation, type OperationRow } from "../queue/operations.ts";
import { lockBackup } from "../rows/backups.ts";
import { lockGroup, lockGroupOf } from "../rows/groups.ts";
import { lockQuota } from "../rows/quotas.ts";
import { lockVolume } from "../rows/volumes.ts";
import { lockParts } from "./parts.ts";

/** Locks all that the end of an operation may change, in the lock order. @throws NotFoundError */
export async function lockForEnding(
  tx: Transaction,
  operationId: string,
): Promise<{ operation: OperationRow; parts: OperationRow[] }> {
  const seen = await tx.operation.findUnique({ where: { id: isUuid(operationId) ? operationId : nilUuid } });
  if (!seen) throw new NotFoundError("Operation", operationId);
  if (seen.kind === "volume-extend") await lockQuota(tx, seen.projectId);
  if (seen.kind === "volume-create" && seen.volumeId) await lockGroupOf(tx, seen.volumeId);
  if (seen.volumeId) await lockVolume(tx, seen.volumeId);
  if (seen.kind === "group-revert") {
    if (seen.groupId) await lockGroup(tx, seen.groupId);
    const disks = await tx.snapshot.findMany({
      where: { groupSnapshotId: seen.groupSnapshotId ?? nilUuid },
      orderBy: { volumeId: "asc" },
    });
    for (const { volumeId } of disks) await lockVolume(tx, volumeId);
  }
  if (seen.backupId) await lockBackup(tx, seen.backupId);
  const parts = isGroupOperation(seen.kind) ? await lockParts(tx, seen) : [];
  return { operation: await lockOperation(tx, operationId), parts };
}
