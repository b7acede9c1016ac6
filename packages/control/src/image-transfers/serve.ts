import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import {
  cancelledPhases,
  type ImageTransferRow,
  isIn,
  lockImageTransfer,
  pausedPhases,
  withoutTicket,
} from "../rows/image-transfers.ts";
import { move } from "../rows/move.ts";
import { releaseTransferred } from "../rows/release.ts";
import { lockVolume } from "../rows/volumes.ts";
import type { ImageTransferPhase } from "../states.ts";
import { startVolumeDelete } from "../volumes/delete.ts";
import { hashOfTicket } from "./ticket.ts";

/** What the processes that serve transfers do with them. */

/** What a process has to serve, close, or bring to an end. */
export function transfersOf(database: Database, serverId: string): Promise<ImageTransferRow[]> {
  return database.imageTransfer.findMany({ where: { serverId, endedAt: null }, orderBy: { createdAt: "asc" } });
}

/** The transfer that a ticket gives a right to, if this process serves it. */
export function transferByTicket(
  database: Database,
  serverId: string,
  ticket: string,
): Promise<ImageTransferRow | null> {
  const which = { ticketHash: hashOfTicket(ticket), serverId, status: "transferring", endedAt: null };
  return database.imageTransfer.findFirst({ where: which });
}

/** A process takes a transfer: what it writes from now on has another name than what others have written. @returns null when it is not its own */
export async function claimTransfer(
  database: Database,
  serverId: string,
  id: string,
): Promise<ImageTransferRow | null> {
  return inTransaction(database, async (tx) => {
    const row = await lockImageTransfer(tx, id);
    if (row === null || row.serverId !== serverId || row.endedAt !== null) return null;
    return tx.imageTransfer.update({ where: { id }, data: { claim: { increment: 1 } } });
  });
}

/** What an upload is written to from now on; `inPlace`: it is the volume itself. @returns false when another process has taken it */
export async function nameDraft(
  database: Database,
  { id, claim, serverId }: ImageTransferRow,
  { draft, inPlace }: { draft: string; inPlace: boolean },
): Promise<boolean> {
  const which = { id, claim, endedAt: null };
  const data = { draft, inPlace, draftServerId: serverId };
  return (await database.imageTransfer.updateMany({ where: which, data })).count === 1;
}

/** Its client may begin. A transfer that was taken over goes on with the ticket that its client has. @returns false when it has been ended or paused meanwhile */
export async function openTransfer(
  database: Database,
  { id, claim, ticketHash }: ImageTransferRow,
  opened: { sizeBytes: number; layout: string | null; ticketNonce: string; ticketHash: string },
): Promise<boolean> {
  const { sizeBytes, ...ticket } = opened;
  return inTransaction(database, async (tx) => {
    const which = { id, claim };
    if (ticketHash !== null) {
      const still = await tx.imageTransfer.count({ where: { ...which, status: "transferring" } });
      if (still === 1) return true;
    }
    const now = await tx.$queryRaw<[{ now: Date }]>`SELECT now()`;
    const columns = { ...ticket, sizeBytes: BigInt(sizeBytes), lastActiveAt: now[0].now };
    const from = ["initializing", "resuming"] as const;
    return (await move(tx, "imageTransfer", which, { from, to: "transferring" }, columns)) === 1;
  });
}

export interface Activity {
  id: string;
  claim: number;
  /** Whether a request came, or bytes did, since this was last told. */
  wasAlive: boolean;
  active: boolean;
  /** Bytes since this was last told. */
  transferred: number;
}

/** What clients have done, and what time they had: a client that was silent for too long is treated by its transfer's policy. */
export async function noteActivity(database: Database, activity: readonly Activity[]): Promise<void> {
  if (activity.length === 0) return;
  await database.$executeRaw`
    UPDATE image_transfers t SET active = a.active, transferred = t.transferred + a.transferred,
      last_active_at = CASE WHEN a.was_alive THEN now() ELSE t.last_active_at END
    FROM jsonb_to_recordset(${JSON.stringify(
      activity.map(({ wasAlive: was_alive, ...rest }) => ({ ...rest, was_alive })),
    )}::jsonb) AS a(id uuid, claim int, was_alive boolean, active boolean, transferred bigint)
    WHERE t.id = a.id AND t.claim = a.claim AND t.ended_at IS NULL`;
}

const isPausedInSilence = ({ timeoutPolicy, direction }: ImageTransferRow): boolean =>
  timeoutPolicy !== "cancel" && direction === "upload";

const silentOnes = (database: Database, serverId: string): Promise<{ id: string }[]> =>
  database.$queryRaw<{ id: string }[]>`
    SELECT id FROM image_transfers WHERE server_id = ${serverId}::uuid AND status = 'transferring' AND inactivity_timeout > 0
      AND last_active_at < now() - inactivity_timeout * interval '1 second'`;

/** Transfers of a process whose clients are silent: by their policies they are paused, or cancelled. A download cannot be paused. */
export async function endSilence(database: Database, serverId: string): Promise<void> {
  for (const { id } of await silentOnes(database, serverId)) {
    await inTransaction(database, async (tx) => {
      const row = await lockImageTransfer(tx, id);
      if (row?.status !== "transferring") return;
      const failReason = "Its client was silent for too long.";
      const columns = { ...withoutTicket, failReason };
      if (isPausedInSilence(row))
        await move(tx, "imageTransfer", { id }, { from: "transferring", to: "paused_system" }, columns);
      else await move(tx, "imageTransfer", { id }, { from: "transferring", to: "cancelled_system" }, columns);
    });
  }
}

/** How a transfer ends. */
export type TransferEnd =
  | { phase: "finished_success" }
  | { phase: "finished_failure" | "finished_cleanup"; reason: string };

const mayEnd = {
  finished_success: ["finalizing_success"],
  finished_failure: ["initializing", "transferring", "resuming", ...pausedPhases, "finalizing_success"],
  finished_cleanup: [...cancelledPhases],
} as const satisfies Record<TransferEnd["phase"], ImageTransferPhase[]>;

/**
 * Ends a transfer, and unlocks its volume. After an upload that has not succeeded the volume has the bytes that it had before, unless it
 * was written in place. One that nobody can have put anything else into is removed; one of a machine, or with bytes of both, is in error;
 * any other is as before. After a stored backup was read, there is nothing to unlock.
 *
 * @param claim of the process; null: the process is gone
 * @returns whether it ended now
 */
export async function endImageTransfer(
  database: Database,
  { id, volumeId, claim }: { id: string; volumeId: string; claim: number | null },
  end: TransferEnd,
): Promise<boolean> {
  return inTransaction(database, async (tx) => {
    await lockVolume(tx, volumeId);
    const row = await lockImageTransfer(tx, id);
    if (row === null || row.endedAt !== null || (claim !== null && row.claim !== claim)) return false;
    if (!isIn(row, mayEnd[end.phase])) return false;
    await moveToEnd(tx, row, end);
    if (row.storedBackupId !== null) return true;
    if (row.direction === "upload" && end.phase !== "finished_success") await giveUpVolume(tx, row);
    else if (row.snapshotId === null) await releaseTransferred(tx, volumeId);
    else await move(tx, "snapshot", { id: row.snapshotId }, { from: "backing-up", to: "available" });
    if (row.direction === "upload") await forgetOrigin(tx, volumeId);
    return true;
  });
}

async function moveToEnd(tx: Transaction, { id }: ImageTransferRow, end: TransferEnd): Promise<void> {
  const [{ now }] = await tx.$queryRaw<[{ now: Date }]>`SELECT now()`;
  const columns = { ...withoutTicket, draft: null, endedAt: now };
  const { phase } = end;
  if (phase === "finished_success")
    await move(tx, "imageTransfer", { id }, { from: mayEnd[phase], to: phase }, { ...columns, failReason: null });
  else if (phase === "finished_failure")
    await move(tx, "imageTransfer", { id }, { from: mayEnd[phase], to: phase }, { ...columns, failReason: end.reason });
  else
    await move(tx, "imageTransfer", { id }, { from: mayEnd[phase], to: phase }, { ...columns, failReason: end.reason });
}

/** The bytes are no longer those of a backup. */
async function forgetOrigin(tx: Transaction, volumeId: string): Promise<void> {
  await tx.volume.updateMany({ where: { id: volumeId }, data: { restoredFromId: null, restoredAt: null } });
}

async function giveUpVolume(tx: Transaction, row: ImageTransferRow): Promise<void> {
  const { volumeId, projectId, userId, requestId } = row;
  const volume = await tx.volume.findUnique({
    where: { id: volumeId },
    include: { attachments: true, snapshots: true },
  });
  if (volume === null) return;
  if (volume.attachments.length > 0 || row.inPlace) {
    await move(tx, "volume", { id: volumeId }, { from: "downloading", to: "error" });
    return;
  }
  const backups = await tx.backup.count({ where: { volumeId } });
  const uploads = await tx.imageTransfer.count({
    where: { volumeId, direction: "upload", status: "finished_success" },
  });
  const origins = [volume.snapshotId, volume.sourceVolumeId, volume.restoredFromId, volume.groupId];
  const mayHoldData = backups + uploads + volume.snapshots.length > 0 || origins.some((id) => id !== null);
  if (mayHoldData || volume.status !== "downloading") return releaseTransferred(tx, volumeId);
  await move(tx, "volume", { id: volumeId }, { from: "downloading", to: "error" });
  const principal = { projectId, userId, requestId, roles: [], isAdmin: false };
  await startVolumeDelete(tx, principal, volumeId, { cascade: false, cancelWork: null });
}
