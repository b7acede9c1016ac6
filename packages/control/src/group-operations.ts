import { unreachable } from "./backup-state.ts";
import { ChangedMeanwhileError, type Database, inTransaction, type Transaction } from "./database.ts";
import { failGroupBackup } from "./group-backup.ts";
import { failGroupDelete } from "./group-delete.ts";
import { lockParts } from "./group-parts.ts";
import { failGroupRestore } from "./group-restore.ts";
import { getGroupSnapshot } from "./group-snapshots.ts";
import type { GroupEnd } from "./groups.ts";
import { isLive, lockOperation, type OperationKind, type OperationRow } from "./operations.ts";
import type { Principal } from "./principal.ts";

export type GroupOperationKind = Extract<OperationKind, `group-${string}`>;

export const isGroupOperation = (kind: string): kind is GroupOperationKind => kind.startsWith("group-");

/** The whole is given up, and with it every part that is not done. The rows are locked. */
export async function failGroupOperation(
  tx: Transaction,
  operation: OperationRow & { kind: GroupOperationKind },
  parts: readonly OperationRow[],
  end: GroupEnd,
): Promise<void> {
  switch (operation.kind) {
    case "group-snapshot":
    case "group-backup":
      return failGroupBackup(tx, operation, parts, end);
    case "group-restore":
      return failGroupRestore(tx, operation, parts, end);
    case "group-delete":
      return failGroupDelete(tx, operation, end);
    default:
      return unreachable(operation.kind);
  }
}

/**
 * An admin's word on a group snapshot, whatever it was. A backup or restore of the group that is going on is cancelled by it as one; a
 * creation only by another status than the one that it becomes anyhow. A deletion goes on.
 *
 * @throws NotFoundError
 */
export async function resetGroupSnapshot(
  database: Database,
  principal: Principal,
  id: string,
  status: string,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const snapshot = await getGroupSnapshot(tx, principal, id);
    const live = { groupSnapshotId: snapshot.id, state: { in: ["queued", "running"] } };
    const seen = await tx.operation.findFirst({ where: live });
    const parts = seen ? await lockParts(tx, seen) : [];
    const operation = seen && (await lockOperation(tx, seen.id));
    if (operation && isLive(operation) && isGroupOperation(operation.kind) && operation.kind !== "group-delete") {
      const { kind } = operation;
      if (kind !== "group-restore" && status === "available") return;
      const reason = "Cancelled by an administrator, who reset the status of the group snapshot.";
      await failGroupOperation(tx, { ...operation, kind }, parts, { state: "cancelled", reason });
    }
    await tx.groupSnapshot.updateMany({ where: { id: snapshot.id }, data: { status, updatedAt: new Date() } });
    // Whoever begins something has the lock of this row: somebody may have been faster.
    const added = await tx.operation.count({ where: { ...live, id: { notIn: seen ? [seen.id] : [] } } });
    if (added > 0) throw new ChangedMeanwhileError();
  });
}
