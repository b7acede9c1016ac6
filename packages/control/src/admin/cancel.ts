import { sayWhy } from "../db/actor.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { RefusedError } from "../errors.ts";
import { lockForEnding } from "../groups/lock-for-ending.ts";
import type { Principal } from "../principal.ts";
import { getOperation } from "../queue/list-operations.ts";
import { isLive, isPublishing, type OperationKind, type OperationRow } from "../queue/operations.ts";
import { endWork } from "../rows/endings.ts";
import { notifyCancelled } from "./resets.ts";

const deletion = "A deletion is not taken back half-way.";

/** Who may cancel operations of each kind, or the sentence that says why nobody may. */
const cancellers: Readonly<Record<OperationKind, "owner" | "admin" | { why: string }>> = {
  "backup-create": "owner",
  "backup-restore": "owner",
  "backup-squash": "owner",
  "volume-create": "owner",
  "snapshot-create": "owner",
  "group-snapshot": "owner",
  "group-backup": "owner",
  "group-restore": "owner",
  "group-revert": "owner",
  "group-freeze": "owner",
  "group-plug": { why: "The hypervisor does it within moments, and may have done it already." },
  "backup-import": "admin",
  "backup-verify": "admin",
  "repository-rescan": "admin",
  "repository-reap": "admin",
  "volume-import": "admin",
  "volume-adopt": "admin",
  "volume-export": "admin",
  "volume-extend": { why: "An extension ends within moments, and may have been made already." },
  "backup-delete": { why: deletion },
  "volume-delete": { why: deletion },
  "snapshot-delete": { why: deletion },
  "group-delete": { why: deletion },
};

type Cancellable = Pick<OperationRow, "id" | "kind" | "state" | "parentId" | "plan">;

/** Why this caller cannot cancel the operation now, in a sentence; null: it can be cancelled. */
export async function whyNotCancelled(
  tx: Database | Transaction,
  principal: Principal,
  operation: Cancellable,
): Promise<string | null> {
  const { id, kind, state, parentId } = operation;
  if (!isLive(operation)) return `It has ended: ${state}.`;
  if (parentId !== null) return `It is a part of the operation ${parentId}: cancel that.`;
  const canceller = cancellers[kind];
  if (typeof canceller === "object") return canceller.why;
  if (canceller === "admin" && !principal.isAdmin) return "Only an admin may cancel it.";
  const publishing =
    kind === "group-restore" || kind === "group-revert"
      ? isPublishing(operation)
      : kind === "backup-restore" && (await tx.task.count({ where: { operationId: id, kind: "publish" } })) > 0;
  return publishing ? "What was restored is being put in its place." : null;
}

/**
 * Ends a live operation on request, as a failure would: a source gets its status back; a backup that was being made is in `error`, to be
 * deleted, and so is the target of a restore. Workers learn of it at their next heartbeat.
 *
 * @throws NotFoundError; RefusedError with the sentence of `whyNotCancelled`
 */
export async function cancelOperation(database: Database, principal: Principal, id: string): Promise<void> {
  const seen = await getOperation(database, principal, id);
  await inTransaction(database, async (tx) => {
    const { operation, parts } = await lockForEnding(tx, seen.id);
    const why = await whyNotCancelled(tx, principal, operation);
    if (why !== null) throw new RefusedError("not-cancellable", why);
    const reason = "Cancelled on request.";
    await sayWhy(tx, { reason, operation });
    await endWork(tx, operation, { state: "cancelled", reason }, parts);
    await notifyCancelled(tx, [operation, ...parts.filter(isLive)]);
  });
}
