import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import { transactionTime } from "../db/actor.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { ImageTransferError, NotFoundError } from "../errors.ts";
import { type Principal, visibleTo } from "../principal.ts";
import { type Backup, getBackup, lockBackup } from "../rows/backups.ts";
import { readChain } from "../rows/chains.ts";
import {
  addImageTransfer,
  cancelledPhases,
  type ImageServerRow,
  type ImageTransferRow,
  isIn,
  liveTransferOf,
  lockImageTransfer,
  pausedPhases,
  servedPhases,
  withoutTicket,
} from "../rows/image-transfers.ts";
import { move } from "../rows/move.ts";
import { lockVolume, type VolumeRow } from "../rows/volumes.ts";
import { formatIn } from "../volume-backends.ts";
import { imageServerFor } from "./servers.ts";
import { ticketKey, ticketOf } from "./ticket.ts";

export type TimeoutPolicy = "legacy" | "pause" | "cancel";

interface AnyTransferRequest {
  direction: "download" | "upload";
  /** `raw`: what a guest sees; `cow`: the bytes of a qcow2 image; null: the volume's own format, and of a stored backup `raw`. */
  format: "raw" | "cow" | null;
  timeoutPolicy: TimeoutPolicy;
  /** Seconds without a request; 0: forever; null: as configured. */
  inactivityTimeout: number | null;
  /** The host that should serve it. */
  host: string | null;
}

export interface ImageTransferRequest extends AnyTransferRequest {
  volumeId: string;
}

export interface BackupTransferRequest extends AnyTransferRequest {
  backupId: string;
  /** The volume that it is a backup of; null: whichever that is. */
  volumeId: string | null;
}

/** A transfer, with the URL that is its client's right to the bytes; null while there is no such right. */
export type ImageTransfer = ImageTransferRow & { url: string | null };

const shownAs = ({ id, name }: VolumeRow): string => name ?? id;

/** A volume's machines that are not shut off; users of other kinds are never known to be. */
async function runningWith(tx: Transaction, { projectId, attachments }: VolumeRow): Promise<string[]> {
  const ids = attachments.flatMap(({ serverId }) => (serverId !== null && isUuid(serverId) ? [serverId] : []));
  const machines = await tx.instance.findMany({ where: { projectId, id: { in: ids } } });
  const shutOff = new Set(machines.flatMap(({ id, powerState }) => (powerState === "SHUTOFF" ? [id] : [])));
  const names = new Map(machines.map(({ id, name }) => [id, name]));
  const users = attachments.filter(({ serverId }) => serverId === null || !shutOff.has(serverId));
  return users.map(({ id, serverId }) => names.get(serverId ?? "") ?? serverId ?? id);
}

/** @throws ImageTransferError unless nobody else uses the volume or changes it */
async function requireFree(tx: Transaction, volume: VolumeRow): Promise<void> {
  const disk = shownAs(volume);
  const machines = await runningWith(tx, volume);
  if (machines.length > 0) throw new ImageTransferError("disk-plugged", { disk, machines });
  if ((await liveTransferOf(tx, volume.id)) !== null) throw new ImageTransferError("disk-transferring", { disk });
  if (volume.status === "available" || volume.status === "in-use") return;
  throw new ImageTransferError(volume.status.startsWith("error") ? "disk-illegal" : "disk-locked", { disk });
}

/**
 * Begins a transfer: the volume is `uploading` (a download) or `downloading` (an upload) until it ends, and a process that can open the
 * volume's backend prepares it. Its phase tells when the client may begin.
 *
 * @throws ImageTransferError
 */
export async function requestImageTransfer(
  database: Database,
  config: Config,
  principal: Principal,
  request: ImageTransferRequest,
): Promise<ImageTransfer> {
  const row = await inTransaction(database, async (tx) => {
    const { volumeId, direction } = request;
    const seen = isUuid(volumeId)
      ? await tx.volume.findFirst({ where: { id: volumeId, ...visibleTo(principal) }, select: { id: true } })
      : null;
    const volume = seen === null ? null : await lockVolume(tx, seen.id);
    if (!volume || volume.status === "deleting") throw new ImageTransferError("disk-unknown", { disk: volumeId });
    const own = formatIn(config.volume_backends, volume.backend);
    const format = request.format ?? own;
    if (format === "cow" && own === "raw") throw new ImageTransferError("format-not-applicable");
    await requireFree(tx, volume);
    const server = await imageServerFor(tx, config, { backend: volume.backend }, { host: request.host });
    if (server === null) throw new ImageTransferError("no-server", { disk: shownAs(volume) });
    const to = direction === "upload" ? "downloading" : "uploading";
    await move(
      tx,
      "volume",
      { id: volume.id },
      { from: ["available", "in-use"], to },
      { previousStatus: volume.status },
    );
    return addImageTransfer(tx, {
      ...commonColumns(config, principal, request, server),
      projectId: volume.projectId,
      volumeId: volume.id,
      backend: volume.backend,
      format,
    });
  });
  return { ...row, url: null };
}

const commonColumns = (
  config: Config,
  { userId, requestId }: Principal,
  request: AnyTransferRequest,
  server: ImageServerRow,
) => ({
  id: randomUUID(),
  userId,
  requestId,
  direction: request.direction,
  inactivityTimeout: request.inactivityTimeout ?? config.image_transfers?.inactivity_seconds ?? 60,
  timeoutPolicy: request.timeoutPolicy,
  serverId: server.id,
  serverHost: server.host,
});

/**
 * Begins a download of a backup from where it is stored, at once and without a restore. Nothing is locked: a deletion of the backup ends
 * it.
 *
 * @throws ImageTransferError
 */
export async function requestBackupTransfer(
  database: Database,
  config: Config,
  principal: Principal,
  request: BackupTransferRequest,
): Promise<ImageTransfer> {
  const row = await inTransaction(database, async (tx) => {
    const backup = await lockSeenBackup(tx, principal, request.backupId);
    if (backup === null || (request.volumeId ?? backup.volumeId) !== backup.volumeId)
      throw new ImageTransferError("backup-unknown");
    const chain = await readChain(tx, backup.id);
    const isWhole = chain.at(-1)?.parentId === null;
    if (!isWhole || !["available", "restoring"].includes(backup.status))
      throw new ImageTransferError("backup-not-ready");
    if (request.direction === "upload") throw new ImageTransferError("backup-read-only");
    const repositories = [...new Set(chain.map(({ repository }) => repository))];
    const server = await imageServerFor(tx, config, { repositories }, { host: request.host });
    if (server === null) throw new ImageTransferError("no-server");
    return addImageTransfer(tx, {
      ...commonColumns(config, principal, request, server),
      projectId: backup.projectId,
      volumeId: backup.volumeId,
      storedBackupId: backup.id,
      backend: backup.repository,
      format: request.format ?? "raw",
    });
  });
  return { ...row, url: null };
}

async function lockSeenBackup(tx: Transaction, principal: Principal, id: string): Promise<Backup | null> {
  try {
    await getBackup(tx, principal, id);
  } catch (error) {
    if (error instanceof NotFoundError) return null;
    throw error;
  }
  return lockBackup(tx, id);
}

const urlOf = (config: Config, row: ImageTransferRow, server: ImageServerRow | null): string | null => {
  const ticket = row.status === "transferring" && server !== null ? ticketOf(ticketKey(config), row) : null;
  return ticket === null ? null : `${server?.url}/images/${ticket}`;
};

/** @throws NotFoundError for an unknown id or another project's */
export async function getImageTransfer(
  database: Database | Transaction,
  config: Config,
  principal: Principal,
  id: string,
): Promise<ImageTransfer> {
  const row = isUuid(id) ? await database.imageTransfer.findFirst({ where: { id, ...visibleTo(principal) } }) : null;
  if (!row) throw new NotFoundError("Image transfer", id);
  const server = row.serverId && (await database.imageServer.findUnique({ where: { id: row.serverId } }));
  return { ...row, url: urlOf(config, row, server || null) };
}

/** All of the caller's project, newest first. */
export async function listImageTransfers(
  database: Database,
  config: Config,
  principal: Principal,
): Promise<ImageTransfer[]> {
  const rows = await database.imageTransfer.findMany({
    where: { projectId: principal.projectId },
    orderBy: [{ createdAt: "desc" }, { id: "desc" }],
    take: config.list_max,
  });
  const ids = rows.flatMap(({ serverId }) => serverId ?? []);
  const servers = new Map((await database.imageServer.findMany({ where: { id: { in: ids } } })).map((s) => [s.id, s]));
  return rows.map((row) => ({ ...row, url: urlOf(config, row, servers.get(row.serverId ?? "") ?? null) }));
}

/** Runs `work` with the transfer's row locked. @throws NotFoundError */
async function changing(
  database: Database,
  principal: Principal,
  id: string,
  work: (tx: Transaction, row: ImageTransferRow) => Promise<void>,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const seen = isUuid(id) ? await tx.imageTransfer.findFirst({ where: { id, ...visibleTo(principal) } }) : null;
    const row = seen && (await lockImageTransfer(tx, id));
    if (!row) throw new NotFoundError("Image transfer", id);
    await work(tx, row);
  });
}

/** An upload waits until it is resumed: its ticket is void at once. @throws ImageTransferError, NotFoundError */
export async function pauseImageTransfer(database: Database, principal: Principal, id: string): Promise<void> {
  await changing(database, principal, id, async (tx, row) => {
    if (row.direction === "download") throw new ImageTransferError("download-cannot-pause");
    const moved = await move(tx, "imageTransfer", { id }, { from: servedPhases, to: "paused_user" }, withoutTicket);
    if (moved === 0) throw new ImageTransferError("not-pausable", { phase: row.status });
  });
}

/** A paused upload goes on, with another ticket. @throws ImageTransferError, NotFoundError */
export async function resumeImageTransfer(
  database: Database,
  config: Config,
  principal: Principal,
  id: string,
): Promise<void> {
  await changing(database, principal, id, async (tx, row) => {
    if (!isIn(row, pausedPhases)) throw new ImageTransferError("not-paused");
    const { backend, serverHost: host, serverId: before } = row;
    const server = await imageServerFor(tx, config, { backend }, { host, before });
    if (server === null) throw new ImageTransferError("no-server");
    const place = { serverId: server.id, serverHost: server.host };
    await move(tx, "imageTransfer", { id }, { from: pausedPhases, to: "resuming" }, place);
  });
}

/** Its client has transferred everything; what was uploaded is checked, and becomes the volume. @throws ImageTransferError, NotFoundError */
export async function finalizeImageTransfer(database: Database, principal: Principal, id: string): Promise<void> {
  await changing(database, principal, id, async (tx, row) => {
    if (row.status === "finalizing_success" || row.status === "finished_success") return;
    const from = ["transferring", ...pausedPhases] as const;
    const moved = await move(tx, "imageTransfer", { id }, { from, to: "finalizing_success" }, withoutTicket);
    if (moved === 0) throw new ImageTransferError("not-finalizable", { phase: row.status });
  });
}

/** Ends it without a result: see `endImageTransfer` for what becomes of the volume. @throws ImageTransferError, NotFoundError */
export async function cancelImageTransfer(database: Database, principal: Principal, id: string): Promise<void> {
  await changing(database, principal, id, async (tx, row) => {
    if (isIn(row, [...cancelledPhases, "finished_cleanup", "finished_failure"])) return;
    const from = [...servedPhases, ...pausedPhases] as const;
    const moved = await move(tx, "imageTransfer", { id }, { from, to: "cancelled_user" }, withoutTicket);
    if (moved === 0) throw new ImageTransferError("ended", { phase: row.status });
  });
}

/** Its client is given the whole time again before it counts as silent. @throws ImageTransferError, NotFoundError */
export async function extendImageTransfer(database: Database, principal: Principal, id: string): Promise<void> {
  await changing(database, principal, id, async (tx, row) => {
    if (row.endedAt !== null) throw new ImageTransferError("ended", { phase: row.status });
    await tx.imageTransfer.update({ where: { id }, data: { lastActiveAt: await transactionTime(tx) } });
  });
}
