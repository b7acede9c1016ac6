import { sayWhy } from "../db/actor.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { addMessage, type MessageAction, type MessageDetail } from "../events/messages.ts";
import { notifyBackup } from "../events/notifications.ts";
import { lockForEnding } from "../groups/lock-for-ending.ts";
import { isLive, type OperationRow } from "../queue/operations.ts";
import { failTask } from "../queue/tasks.ts";
import type { Damage } from "../rows/chains.ts";
import { endWork } from "../rows/endings.ts";

export interface Failure {
  reason: string;
  damage?: Damage;
  /** No worker was found to run it. */
  unplaced?: boolean;
  /** The task that failed; without one, the operation itself is given up (no worker, too many lost claims). */
  held?: { taskId: string; claim: number };
}

/**
 * Ends an operation as failed or cancelled: its rows get the statuses that its kind prescribes, its tasks stop, and what it left behind is
 * cleaned up. An operation that has ended already is left alone.
 *
 * @throws ClaimLostError when the failing task is no longer held: somebody else is running it, so nothing has failed
 */
export async function failOperation(
  database: Database,
  operationId: string,
  failure: Failure,
): Promise<OperationRow | null> {
  return inTransaction(database, async (tx) => {
    const { operation, parts } = await lockForEnding(tx, operationId);
    if (failure.held) await failTask(tx, failure.held, failure.reason);
    if (!isLive(operation)) return null;
    await sayWhy(tx, { reason: failure.reason, operation });
    const { reason, damage = null } = failure;
    await endWork(tx, operation, { state: "failed", reason, damage }, parts);
    if (operation.kind === "backup-create" && damage) await tellDamage(tx, operation, damage);
    await tellUsers(tx, operation, failure);
    return operation;
  });
}

/** Notifies the project that a backup which a new one was to build on is damaged. */
async function tellDamage(tx: Transaction, operation: OperationRow, { backupId }: Damage): Promise<void> {
  if (backupId === operation.backupId) return;
  const { projectId, requestId } = operation;
  await addMessage(tx, { projectId, requestId, backupId, action: "backup-verify", detail: "damaged" });
  await notifyBackup(tx, "backup.verify.end", backupId, { mode: "quick", damaged: 1 });
}

/** The user message about a failed backup operation, in addition to its row. Other failures show in their rows only, as in Cinder. */
async function tellUsers(tx: Transaction, operation: OperationRow, failure: Failure): Promise<void> {
  const { kind, projectId, requestId, backupId } = operation;
  if (backupId === null || !(kind in failureDetails)) return;
  const action = kind as keyof typeof failureDetails;
  const { unplaced, failed } = failureDetails[action];
  await addMessage(tx, { projectId, requestId, backupId, action, detail: failure.unplaced ? unplaced : failed });
}

const failureDetails = {
  "backup-create": { unplaced: "schedule-failed", failed: "create-failed" },
  "backup-restore": { unplaced: "service-down", failed: "restore-failed" },
  "backup-delete": { unplaced: "service-down", failed: "delete-failed" },
} as const satisfies Partial<Record<MessageAction, Record<string, MessageDetail>>>;
