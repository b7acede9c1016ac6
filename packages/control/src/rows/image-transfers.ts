import type { Database, Transaction } from "../db/database.ts";
import { lockRow } from "../db/lock-row.ts";
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

/** The transfer that locks a volume, if there is one: at most one has not ended. What is read of its backups does not lock it. */
export function liveTransferOf(database: Database | Transaction, volumeId: string): Promise<ImageTransferRow | null> {
  return database.imageTransfer.findFirst({ where: { volumeId, endedAt: null, storedBackupId: null } });
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
