import { sayWhy } from "../db/actor.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import type { Principal } from "../principal.ts";
import type { OperationRow } from "../queue/operations.ts";
import { endWork } from "../rows/endings.ts";
import { startSnapshotDelete } from "../volumes/snapshot-delete.ts";
import { notifyCancelled } from "./resets.ts";

/**
 * Accepts the deletion of a snapshot in any status. Operations on it are cancelled; nothing is removed before the last worker has let go.
 *
 * @throws NotFoundError; InvalidError for a snapshot of a group
 */
export function forceDeleteSnapshot(database: Database, principal: Principal, id: string): Promise<void> {
  const reason = "Cancelled by an administrator, who deleted the snapshot.";
  return inTransaction(database, (tx) =>
    startSnapshotDelete(tx, principal, id, (within, operations) => cancelSnapshotWork(within, operations, reason)),
  );
}

/** Ends the operations that hold the snapshot's status; the caller sets its new status. */
export async function cancelSnapshotWork(
  tx: Transaction,
  operations: readonly OperationRow[],
  reason: string,
): Promise<void> {
  for (const operation of operations) {
    await sayWhy(tx, { reason, operation });
    await endWork(tx, operation, { state: "cancelled", reason, subjectLeft: operation.kind !== "backup-create" });
    await notifyCancelled(tx, [operation]);
  }
}
