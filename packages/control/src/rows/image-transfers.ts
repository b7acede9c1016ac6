import type { Database, Transaction } from "../db/database.ts";
import { lockRow } from "../db/lock-row.ts";
import { RefusedError } from "../errors.ts";
import type { ImageServer, ImageTransfer, Prisma } from "../generated/client.ts";
import type { ImageTransferPhase } from "../states.ts";
import { move } from "./move.ts";

export type ImageServerRow = ImageServer;
export type ImageTransferRow = ImageTransfer;

/** A client of the session may be at work in these. */
export const servedPhases = ["initializing", "transferring", "resuming"] as const satisfies ImageTransferPhase[];
export const pausedPhases = ["paused_user", "paused_system"] as const satisfies ImageTransferPhase[];
export const cancelledPhases = ["cancelled_user", "cancelled_system"] as const satisfies ImageTransferPhase[];

export const isIn = (row: { status: string }, phases: readonly ImageTransferPhase[]): boolean =>
  phases.some((phase) => phase === row.status);

/**
 * The transfer that locks a volume, or a snapshot, if there is one: at most one has not ended. What is read of a volume's backups
 * locks nothing.
 */
export function liveTransferOf(
  database: Database | Transaction,
  what: { volumeId: string } | { snapshotId: string },
): Promise<ImageTransferRow | null> {
  return database.imageTransfer.findFirst({
    where: { snapshotId: null, storedBackupId: null, ...what, endedAt: null },
  });
}

/** @throws RefusedError when one of a group snapshot's snapshots, whose row is locked, is being read by a client */
export async function refuseTransferredSnapshot(tx: Transaction, { id }: { id: string }): Promise<void> {
  const snapshots = await tx.snapshot.findMany({ where: { groupSnapshotId: id }, include: { volume: true } });
  const live = { snapshotId: { in: snapshots.map((snapshot) => snapshot.id) }, endedAt: null };
  const read = new Set((await tx.imageTransfer.findMany({ where: live })).map(({ snapshotId }) => snapshotId));
  const disks = snapshots.filter((each) => read.has(each.id)).map(({ volume }) => volume.name ?? volume.id);
  if (disks.length === 0) return;
  const text = `Disks of snapshot ${id} are being transferred: ${disks.join(", ")}.`;
  throw new RefusedError("disks-locked", text, { disks: disks.join(", ") });
}

export const lockImageTransfer = (tx: Transaction, id: string): Promise<ImageTransferRow | null> =>
  lockRow(tx, "imageTransfer", id);

/** A transfer that a process is about to begin. The volume is locked, and in no other transfer, unless a stored backup is read. */
export function addImageTransfer(
  tx: Transaction,
  transfer: Omit<Prisma.ImageTransferUncheckedCreateInput, "status">,
): Promise<ImageTransferRow> {
  return tx.imageTransfer.create({ data: { ...transfer, status: "initializing" } });
}

/** What no client may use any more. */
export const withoutTicket = { ticketNonce: null, ticketHash: null, active: false };

/** Whoever reads a backup where it is stored has to stop. */
export async function cancelBackupTransfers(tx: Transaction, backupId: string): Promise<void> {
  const which = { storedBackupId: backupId, endedAt: null };
  const columns = { ...withoutTicket, failReason: "The backup was deleted." };
  await move(tx, "imageTransfer", which, { from: servedPhases, to: "cancelled_system" }, columns);
}
