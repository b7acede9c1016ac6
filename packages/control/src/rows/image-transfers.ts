import { type Database, Prisma, type Transaction } from "../db/database.ts";
import { isLiveOperation } from "../db/live.ts";
import { lockRow } from "../db/lock-row.ts";
import { RefusedError } from "../errors.ts";
import type { ImageServer, ImageTransfer, Prisma as Rows } from "../generated/client.ts";
import type { ImageTransferPhase } from "../states.ts";

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
  transfer: Omit<Rows.ImageTransferUncheckedCreateInput, "status">,
): Promise<ImageTransferRow> {
  return tx.imageTransfer.create({ data: { ...transfer, status: "initializing" } });
}

/** What no client may use any more. */
export const withoutTicket = { ticketNonce: null, ticketHash: null, active: false };

/**
 * Whoever reads a backup where it is stored has to stop. In the same statement, since each deletion of a backup asks for both:
 *
 * @returns the ids of its live verifications and squashes, in ascending order
 */
export async function cancelBackupTransfers(tx: Transaction, backupId: string): Promise<string[]> {
  const rows = await tx.$queryRaw<{ id: string }[]>`
    WITH cancelled AS (
      UPDATE image_transfers SET status = 'cancelled_system', fail_reason = 'The backup was deleted.', updated_at = now(),
        ticket_nonce = NULL, ticket_hash = NULL, active = false
      WHERE stored_backup_id = ${backupId}::uuid AND ended_at IS NULL AND status IN (${Prisma.join([...servedPhases])}))
    SELECT id FROM operations o WHERE backup_id = ${backupId}::uuid AND kind IN ('backup-verify', 'backup-squash') AND ${isLiveOperation("o")}
    ORDER BY id`;
  return rows.map(({ id }) => id);
}
