import type { Prisma } from "../db/database.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { nilUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { notifyBackup } from "../events/notifications.ts";
import { documentVersion } from "../queue/document-version.ts";
import { documents, type RestoreInput, type RestorePlan } from "../queue/documents.ts";
import {
  completeOperation,
  countDown,
  fixPlan,
  lockLiveOperation,
  planInForce,
  startPhase,
} from "../queue/operations.ts";
import { restoreNeeds, restoreTidyNeeds } from "../queue/plan-needs.ts";
import { finishTask, type TaskOperation, type TaskResult } from "../queue/tasks.ts";
import type { Backup } from "../rows/backups.ts";
import { lockBackup } from "../rows/backups.ts";
import { wholeChain } from "../rows/chains.ts";
import { move } from "../rows/move.ts";
import { releaseBackup } from "../rows/release.ts";
import type { Volume } from "../rows/volumes.ts";
import { GiB, lockVolume, restoring, type VolumeRow } from "../rows/volumes.ts";
import { restoredColumns } from "./volume-meta.ts";

/**
 * The private file of one claim of the plan task: a late worker of one claim cannot touch another's. Claim 0 is the copy that is published
 * where claims of ranges were lost.
 */
export const restoreTargetOf = (operationId: string, claim: number): string => `${operationId}-${claim}`;

/**
 * Fixes the plan of a restore, unless there is one already.
 *
 * @throws NotFoundError when a parent of the chain is gone; OperationEndedError
 */
export async function planRestore(
  database: Database,
  operation: TaskOperation,
  options: { rangeBytes: number },
): Promise<RestorePlan> {
  if (operation.plan !== null) return documents.restorePlan(operation.plan);
  const backup = await database.backup.findUniqueOrThrow({ where: { id: operation.backupId ?? nilUuid } });
  const chain = await wholeChain(database, backup.id);
  const input = documents.restoreInput(operation.input);
  const { newVolume } = input;
  const volume = input.beside === undefined ? await findTarget(database, operation) : targetOf(input);
  const plan: RestorePlan = {
    version: documentVersion,
    backupId: backup.id,
    volumeId: volume.id,
    backend: volume.backend,
    chain,
    keepTail: !newVolume,
    targetBytes: newVolume
      ? Math.max(Number(backup.volumeBytes ?? 0n), Number(volume.sizeBytes))
      : Number(volume.sizeBytes),
    rangeBytes: options.rangeBytes,
    target: null,
    stored: null,
    ...(input.hold !== undefined && { held: { hold: input.hold, isNew: newVolume } }),
  };
  return inTransaction(database, async (tx) => {
    if (!(await fixPlan(tx, operation.id, plan))) return documents.restorePlan(await planInForce(tx, operation.id));
    await notifyBackup(tx, "backup.restore.start", backup.id);
    return plan;
  });
}

/** Where another service has the volume. @throws InvalidError where the request has not come so far as to reserve it */
function targetOf({ beside = "", volume, hold }: RestoreInput): Pick<Volume, "id" | "backend" | "sizeBytes"> {
  if (volume && hold !== undefined) return { id: volume.id, backend: beside, sizeBytes: BigInt(volume.sizeGib * GiB) };
  throw new InvalidError("volume", "The request ended before the volume was reserved for the restore.");
}

async function findTarget(database: Database, operation: TaskOperation): Promise<Volume> {
  const volume = await database.volume.findUnique({ where: { id: operation.volumeId ?? nilUuid } });
  if (!volume) throw new NotFoundError("Volume", operation.volumeId ?? nilUuid);
  return volume;
}

/** Ends the plan task and releases the ranges. Each range carries where its slice of the merged map is staged. */
export async function startRestoreRanges(
  database: Database,
  operationId: string,
  result: TaskResult,
  restore: { plan: RestorePlan; ranges: readonly { offset: number; length: number; input: object }[] },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const operation = await lockLiveOperation(tx, operationId);
    await finishTask(tx, result);
    const { plan } = restore;
    await tx.operation.update({ where: { id: operationId }, data: { plan: plan as unknown as Prisma.InputJsonValue } });
    const needs = restoreNeeds(plan);
    const tasks = restore.ranges.map((r, ordinal) => ({
      kind: "restore" as const,
      ordinal,
      needs,
      range: { offset: r.offset, length: r.length },
      input: r.input,
    }));
    await startPhase(tx, operation, tasks.length > 0 ? tasks : [{ kind: "publish", ordinal: 0, needs }]);
  });
}

/** Finishes a range; finishing the last one adds the task that publishes the target. */
export async function finishRestoreRange(database: Database, operationId: string, result: TaskResult): Promise<void> {
  await inTransaction(database, async (tx) => {
    const operation = await lockLiveOperation(tx, operationId);
    await finishTask(tx, result);
    if ((await countDown(tx, operationId)) > 0) return;
    const plan = documents.restorePlan(operation.plan);
    await startPhase(tx, operation, [{ kind: "publish", ordinal: 0, needs: restoreNeeds(plan) }]);
  });
}

/** Whether any range was claimed twice: then an earlier worker may still hold the target open. */
export async function claimsWereLost(database: Database, operationId: string): Promise<boolean> {
  const count = await database.task.count({ where: { operationId, kind: "restore", claim: { gt: 1 } } });
  return count > 0;
}

/**
 * The target is published: volume and backup become `available`. The volume records where its bytes came from (cinder-api 6.11), and gets
 * the name, metadata and bootable flag that were stored with them.
 */
export async function finishRestore(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  plan: RestorePlan,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volume = await lockVolume(tx, plan.volumeId);
    const backup = await lockBackup(tx, plan.backupId);
    await applyRestored(tx, { volume, backup, plan });
    await completeOperation(tx, operation, result, { bytesStored: result.bytesStored, tidy: restoreTidyNeeds(plan) });
  });
}

/** The volume has the backup's bytes; updates its row and the backup's. Both are locked; either may be gone. */
export async function applyRestored(
  tx: Transaction,
  { volume, backup, plan }: { volume: VolumeRow | null; backup: Backup | null; plan: RestorePlan },
): Promise<void> {
  const now = new Date();
  if (volume) {
    const { stored } = plan;
    const metadata = stored?.metadata ?? (volume.metadata as Record<string, string>);
    const foreign = backup?.volumeId !== volume.id || (metadata["src_backup_id"] ?? plan.backupId) !== plan.backupId;
    const columns = {
      previousStatus: "restoring-backup",
      sizeBytes: BigInt(plan.targetBytes),
      restoredFromId: plan.backupId,
      restoredAt: now,
      launchedAt: volume.launchedAt ?? now,
      ...(stored && restoredColumns(volume, stored)),
      metadata: foreign ? { ...metadata, src_backup_id: plan.backupId } : metadata,
    };
    // Disks of a virtual machine that is shut off are restored while attached; a volume that is being created has no attachment.
    if (volume.attachments.length > 0) {
      await move(tx, "volume", { id: volume.id }, { from: "restoring-backup", to: "in-use" }, columns);
    } else await move(tx, "volume", { id: volume.id }, { from: restoring, to: "available" }, columns);
  }
  await releaseBackup(tx, plan.backupId);
  await notifyBackup(tx, "backup.restore.end", plan.backupId);
}

/** As part of a group restore: the private file `prepared` is complete and durable, and waits to be published with the others. */
export async function finishPreparedRestore(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  { plan, prepared }: { plan: RestorePlan; prepared: string },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await tx.operation.update({
      where: { id: operation.id },
      data: { plan: { ...plan, target: prepared } as unknown as Prisma.InputJsonValue },
    });
    await completeOperation(tx, operation, result, { bytesStored: result.bytesStored });
  });
}
