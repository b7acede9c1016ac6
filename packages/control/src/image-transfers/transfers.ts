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
import { lockMachineBackup, type MachineBackupRow } from "../rows/machine-backups.ts";
import { move } from "../rows/move.ts";
import { lockVolume, type VolumeRow } from "../rows/volumes.ts";
import { formatIn } from "../volume-backends.ts";
import { type ImagePlace, imageServerFor } from "./servers.ts";
import { ticketKey, ticketOf } from "./ticket.ts";

export type TimeoutPolicy = "legacy" | "pause" | "cancel";

/**
 * What is transferred: a volume; or in a download a snapshot of one, or a disk of a backup: of a machine's that is ready, or of one from where
 * it is stored, which has one disk alone, so that `volumeId` may be null.
 */
export type TransferSubject =
  | { volumeId: string }
  | { snapshotId: string }
  | { backupId: string; volumeId: string | null };

export interface ImageTransferRequest {
  subject: TransferSubject;
  direction: "download" | "upload";
  /**
   * `raw`: what a guest sees; `cow`: the bytes of a qcow2 image, of volumes that are kept as such and of backups; null: the volume's own
   * format, and of a backup `raw`.
   */
  format: "raw" | "cow" | null;
  timeoutPolicy: TimeoutPolicy;
  /** Seconds without a request; 0: forever; null: as configured. */
  inactivityTimeout: number | null;
  /** The host that should serve it. */
  host: string | null;
}

/** A transfer, with the URL that is its client's right to the bytes; null while there is no such right. */
export type ImageTransfer = ImageTransferRow & { url: string | null };

const shownAs = ({ id, name }: Pick<VolumeRow, "id" | "name">): string => name ?? id;

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
  if ((await liveTransferOf(tx, { volumeId: volume.id })) !== null)
    throw new ImageTransferError("disk-transferring", { disk });
  if (volume.status === "available" || volume.status === "in-use") return;
  throw new ImageTransferError(volume.status.startsWith("error") ? "disk-illegal" : "disk-locked", { disk });
}

/** What a transfer is of, and what can open it. */
interface Subject {
  columns: { projectId: string; volumeId: string; backend: string } & Partial<
    Record<"snapshotId" | "backupId" | "storedBackupId", string>
  >;
  /** Of a machine's backup: the host that has it open. */
  host?: string;
  /** The volume's name, or its id where it has none. */
  disk: string;
  place: ImagePlace;
}

/** Who wants what; `check`: of the format, before the states. */
interface Wanted {
  principal: Principal;
  direction: ImageTransferRequest["direction"];
  format: ImageTransferRequest["format"];
  check: (backend: string) => unknown;
}

/** A volume that is now in a transfer. @throws ImageTransferError */
async function lockSubjectVolume(
  tx: Transaction,
  { volumeId }: { volumeId: string },
  { principal, direction, check }: Wanted,
): Promise<Subject> {
  const seen = isUuid(volumeId)
    ? await tx.volume.findFirst({ where: { id: volumeId, ...visibleTo(principal) }, select: { id: true } })
    : null;
  const volume = seen === null ? null : await lockVolume(tx, seen.id);
  if (!volume || volume.status === "deleting") throw new ImageTransferError("disk-unknown", { disk: volumeId });
  check(volume.backend);
  await requireFree(tx, volume);
  const to = direction === "upload" ? "downloading" : "uploading";
  const before = { previousStatus: volume.status };
  await move(tx, "volume", { id: volume.id }, { from: ["available", "in-use"], to }, before);
  const { id, projectId, backend } = volume;
  return { columns: { projectId, volumeId: id, backend }, disk: shownAs(volume), place: { backend } };
}

/**
 * The volume of a snapshot that is now in a transfer: the volume itself is free, and its machine may run.
 *
 * @throws ImageTransferError
 */
async function lockSubjectSnapshot(
  tx: Transaction,
  { snapshotId }: { snapshotId: string },
  { principal, direction, check }: Wanted,
): Promise<Subject> {
  const seen = isUuid(snapshotId)
    ? await tx.snapshot.findFirst({ where: { id: snapshotId, ...visibleTo(principal) }, include: { volume: true } })
    : null;
  if (seen === null || seen.status === "deleting") throw new ImageTransferError("disk-unknown", { disk: snapshotId });
  if (direction === "upload") throw new ImageTransferError("snapshot-read-only");
  check(seen.volume.backend);
  const disk = shownAs(seen.volume);
  if (seen.groupSnapshotId !== null) {
    // Whoever deletes it looks for transfers under this lock.
    const [whole] = await tx.$queryRaw<{ status: string }[]>`
      SELECT status FROM group_snapshots WHERE id = ${seen.groupSnapshotId}::uuid FOR NO KEY UPDATE`;
    if (whole?.status !== "available") throw new ImageTransferError("disk-locked", { disk });
  }
  if ((await liveTransferOf(tx, { snapshotId: seen.id })) !== null) {
    throw new ImageTransferError("disk-transferring", { disk });
  }
  if ((await move(tx, "snapshot", { id: seen.id }, { from: "available", to: "backing-up" })) === 0) {
    throw new ImageTransferError(seen.status.startsWith("error") ? "disk-illegal" : "disk-locked", { disk });
  }
  const { backend } = seen.volume;
  const columns = { projectId: seen.projectId, volumeId: seen.volumeId, backend, snapshotId: seen.id };
  return { columns, disk, place: { backend } };
}

/** A backup that can be read where it is stored. Nothing is locked: a deletion of it ends the transfer. @throws ImageTransferError */
async function findStoredBackup(
  tx: Transaction,
  { backupId, volumeId }: { backupId: string; volumeId: string | null },
  { principal, direction }: Wanted,
): Promise<Subject> {
  const backup = await lockSeenBackup(tx, principal, backupId);
  if (backup === null || (volumeId ?? backup.volumeId) !== backup.volumeId)
    throw new ImageTransferError("backup-unknown");
  if (direction === "upload") throw new ImageTransferError("backup-upload");
  const chain = await readChain(tx, backup.id);
  const isWhole = chain.at(-1)?.parentId === null;
  if (!isWhole || !["available", "restoring"].includes(backup.status))
    throw new ImageTransferError("backup-not-ready", { phase: backup.status });
  const { id, projectId, repository } = backup;
  const columns = { projectId, volumeId: backup.volumeId, backend: repository, storedBackupId: id };
  const repositories = [...new Set(chain.map((link) => link.repository))];
  return { columns, disk: backup.volumeId, place: { repositories } };
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

/** A disk of a machine's backup, which keeps the volume locked as long as that lasts. @throws ImageTransferError */
async function findMachineBackupDisk(
  tx: Transaction,
  backup: Omit<MachineBackupRow, "disks">,
  volumeId: string | null,
  { direction, format }: Wanted,
): Promise<Subject> {
  const known = volumeId !== null && isUuid(volumeId) ? volumeId : null;
  const seen = known && (await tx.volume.findFirst({ where: { id: known, projectId: backup.projectId } }));
  if (!seen) throw new ImageTransferError("disk-unknown", { disk: volumeId ?? "" });
  if (format === "cow") throw new ImageTransferError("backup-format");
  if (direction !== "download") throw new ImageTransferError("backup-upload");
  const part = await tx.machineBackupDisk.count({ where: { backupId: backup.id, volumeId: seen.id } });
  if (part === 0) throw new ImageTransferError("backup-lacks-disk", { disk: shownAs(seen) });
  if (backup.status !== "ready") throw new ImageTransferError("backup-not-ready", { phase: backup.status });
  const volume = await lockVolume(tx, seen.id);
  if (volume === null) throw new ImageTransferError("disk-unknown", { disk: seen.id });
  const disk = shownAs(volume);
  if ((await liveTransferOf(tx, { volumeId: volume.id })) !== null)
    throw new ImageTransferError("disk-transferring", { disk });
  const { id, projectId, backend } = volume;
  const columns = { projectId, volumeId: id, backend, backupId: backup.id };
  return { columns, disk, place: { backend }, host: backup.workerHost };
}

async function findSubjectBackup(
  tx: Transaction,
  subject: { backupId: string; volumeId: string | null },
  wanted: Wanted,
): Promise<Subject> {
  const ofMachine = isUuid(subject.backupId) ? await lockMachineBackup(tx, subject.backupId) : null;
  if (ofMachine === null) return findStoredBackup(tx, subject, wanted);
  if (ofMachine.projectId !== wanted.principal.projectId) throw new ImageTransferError("backup-unknown");
  return findMachineBackupDisk(tx, ofMachine, subject.volumeId, wanted);
}

function lockSubject(tx: Transaction, subject: TransferSubject, wanted: Wanted): Promise<Subject> {
  if ("backupId" in subject) return findSubjectBackup(tx, subject, wanted);
  return "snapshotId" in subject ? lockSubjectSnapshot(tx, subject, wanted) : lockSubjectVolume(tx, subject, wanted);
}

/**
 * Begins a transfer: the volume is `uploading` (a download) or `downloading` (an upload) until it ends, a snapshot `backing-up`, and a
 * process that can open what it is of prepares it. Its phase tells when the client may begin.
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
    const { subject, direction, format, timeoutPolicy, inactivityTimeout, host } = request;
    const formatFor = (backend: string): "raw" | "cow" => {
      const own = formatIn(config.volume_backends, backend);
      if (format === "cow" && own === "raw") throw new ImageTransferError("format-not-applicable");
      return format ?? own;
    };
    const wanted = { principal, direction, format, check: formatFor };
    const { columns, disk, place, host: only } = await lockSubject(tx, subject, wanted);
    const server = await imageServerFor(tx, config, place, { host: only ?? host });
    // What is read of a machine's backup is a socket of its host.
    if (server === null || (only !== undefined && server.host !== only))
      throw new ImageTransferError("no-server", { disk });
    return addImageTransfer(tx, {
      ...columns,
      id: randomUUID(),
      userId: principal.userId,
      requestId: principal.requestId,
      direction,
      format: "backupId" in subject ? (format ?? "raw") : formatFor(columns.backend),
      inactivityTimeout: inactivityTimeout ?? config.image_transfers?.inactivity_seconds ?? 60,
      timeoutPolicy,
      serverId: server.id,
      serverHost: server.host,
    });
  });
  return { ...row, url: null };
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
