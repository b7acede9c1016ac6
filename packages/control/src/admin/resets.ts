import type { Transaction } from "../db/database.ts";
import { liveStates } from "../db/live.ts";
import { InvalidError, type InvalidSubject } from "../errors.ts";
import { notifyBackup } from "../events/notifications.ts";
import type { OperationKind, OperationRow } from "../queue/operations.ts";

/** Statuses of volumes and snapshots in which nothing is in progress. All others mean that somebody is working on them. */
const resting: readonly string[] = ["available", "in-use", "reserved", "awaiting-transfer", "maintenance"];

const isError = (status: string): boolean => status.startsWith("error");

/** The state of a row whose status an admin resets. */
export interface ResetScene {
  subject: InvalidSubject;
  /** The requested status. */
  status: string;
  /** The kind of an operation that is live on the row; null where there is none. */
  working: OperationKind | null;
  /** A worker has begun to remove the row's bytes: they may be gone. */
  removalBegun: boolean;
  /** A worker that has not yet heard of the end of its operation may still write to the row, or replace its file. */
  writing: boolean;
}

/**
 * Which status a row may be reset to: a usable one only when its bytes are there and nobody writes to them; an in-progress one only where
 * no operation would end it unexpectedly.
 *
 * @throws InvalidError
 */
export function checkReset({ subject, status, working, removalBegun, writing }: ResetScene): void {
  if (isError(status)) return;
  const refuse = (why: string) => new InvalidError(subject, `Cannot reset-state to ${status}: ${why}`);
  if (removalBegun) throw refuse("its removal has begun, so it can only be reset to an error, or deleted.");
  if (working && !resting.includes(status)) throw refuse(`an operation is at work on it (${working}).`);
  if (writing)
    throw refuse("a worker may still be writing to it. Reset it to an error first, or try again in a while.");
}

/** Notifies of the end of cancelled operations, once the backup is in its final state. */
export async function notifyCancelled(
  tx: Transaction,
  operations: readonly Pick<OperationRow, "kind" | "backupId">[],
): Promise<void> {
  for (const { kind, backupId } of operations) {
    if (backupId === null) continue;
    if (kind === "backup-create") await notifyBackup(tx, "backup.create.end", backupId);
    if (kind === "backup-restore") await notifyBackup(tx, "backup.restore.end", backupId);
  }
}

/** @throws InvalidError, since the row's operation is part of one on its whole group */
export function refusePartOf(subject: InvalidSubject, status: string, kind: string): never {
  const text = `Cannot reset-state to ${status}: it is part of an operation on its group (${kind}). Reset the group snapshot.`;
  throw new InvalidError(subject, text);
}

/** The kind of the operation on a group snapshot as a whole that is live; null where there is none. */
export async function liveWhole(tx: Transaction, groupSnapshotId: string | null): Promise<string | null> {
  if (groupSnapshotId === null) return null;
  const whole = await tx.operation.findFirst({
    where: { groupSnapshotId, kind: { startsWith: "group-" }, state: liveStates },
    select: { kind: true },
  });
  return whole?.kind ?? null;
}

/** Whether a worker is running a task of `kinds` right now, whatever became of the operation. */
export async function isRunning(
  tx: Transaction,
  of: { volumeId: string } | { snapshotId: string },
  kinds: readonly OperationKind[],
): Promise<boolean> {
  const operation = { ...of, kind: { in: [...kinds] } };
  return (await tx.task.count({ where: { state: "running", kind: { not: "tidy" }, operation } })) > 0;
}
