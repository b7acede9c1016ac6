import type { Transaction } from "../db/database.ts";
import type { OperationKind, OperationRow } from "../queue/operations.ts";
import type { GroupEnd } from "../rows/groups.ts";
import { unreachable } from "../states.ts";
import { failGroupBackup } from "./backup.ts";
import { failGroupDelete } from "./delete.ts";
import { failGroupRestore } from "./restore.ts";

export type GroupOperationKind = Extract<OperationKind, `group-${string}`>;

export const isGroupOperation = (kind: string): kind is GroupOperationKind => kind.startsWith("group-");

/** Gives up the group operation, and with it every part that has not finished. The rows are locked. */
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
      return failGroupDelete(tx, operation, parts, end);
    default:
      return unreachable(operation.kind);
  }
}
