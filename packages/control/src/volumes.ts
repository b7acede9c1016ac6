import { randomUUID } from "node:crypto";
import { originsOf, volumeTransitions } from "./backup-state.ts";
import { type Config, defaultVolumeBackend } from "./config.ts";
import { type Database, inTransaction, type Transaction } from "./database.ts";
import { InvalidError, NotFoundError } from "./errors.ts";
import type { Attachment, Prisma, Volume } from "./generated/client.ts";
import { isUuid, nilUuid, orderOf, type Page, windowOf } from "./listing.ts";
import { completeOperation, startOperation } from "./operations.ts";
import { type Principal, projectOf, visibleTo } from "./principal.ts";
import { releaseQuota, reserveQuota } from "./quotas.ts";
import type { TaskOperation, TaskResult } from "./tasks.ts";

export type { Attachment };
export type VolumeRow = Volume & { attachments: Attachment[] };
export type VolumeSortKey =
  | "id"
  | "createdAt"
  | "updatedAt"
  | "name"
  | "status"
  | "sizeGib"
  | "availabilityZone"
  | "bootable";

const GiB = 1024 ** 3;
export const gibOf = (bytes: number): number => Math.max(1, Math.ceil(bytes / GiB));

/** Locks a volume and reads it. First after the quota in the lock order. */
export async function lockVolume(tx: Transaction, id: string): Promise<VolumeRow | null> {
  await tx.$queryRaw`SELECT id FROM volumes WHERE id = ${id}::uuid FOR UPDATE`;
  return tx.volume.findUnique({ where: { id }, include: { attachments: true } });
}

/** The row alone, without attachments. @throws NotFoundError for an unknown id or another project's */
export async function findVolume(database: Database | Transaction, principal: Principal, id: string): Promise<Volume> {
  const row = isUuid(id) ? await database.volume.findFirst({ where: { id, ...visibleTo(principal) } }) : null;
  if (!row) throw new NotFoundError("Volume", id);
  return row;
}

/** @throws NotFoundError for an unknown id or another project's */
export async function getVolume(
  database: Database | Transaction,
  principal: Principal,
  id: string,
): Promise<VolumeRow> {
  const row = isUuid(id)
    ? await database.volume.findFirst({ where: { id, ...visibleTo(principal) }, include: { attachments: true } })
    : null;
  if (!row) throw new NotFoundError("Volume", id);
  return row;
}

export interface VolumeFilter {
  name?: string;
  status?: string;
  ids?: readonly string[];
  sizeGib?: number;
  bootable?: boolean;
  availabilityZone?: string;
  /** For an admin who lists all projects; otherwise the caller's own counts. */
  projectId?: string;
}

/** One page; `count` of all pages only where asked for. @throws NotFoundError when the marker is unknown or another project's */
export async function listVolumes(
  database: Database,
  principal: Principal,
  query: { filter: VolumeFilter; allProjects: boolean; withCount: boolean; page: Page<VolumeSortKey> },
): Promise<{ rows: VolumeRow[]; count: number }> {
  const { filter, page } = query;
  if (page.marker !== undefined) await getVolume(database, principal, page.marker);
  const { ids, ...columns } = filter;
  const where: Prisma.VolumeWhereInput = {
    ...columns,
    ...projectOf(principal, query.allProjects),
    ...(ids && { id: { in: ids.filter(isUuid) } }),
  };
  const [rows, count] = await Promise.all([
    database.volume.findMany({ where, orderBy: orderOf(page), ...windowOf(page), include: { attachments: true } }),
    query.withCount ? database.volume.count({ where }) : 0,
  ]);
  return { rows, count };
}

export interface NewVolume {
  name: string | null;
  description: string | null;
  metadata: Record<string, string>;
  availabilityZone?: string | null;
  bootable?: boolean;
}

const baseRow = (config: Config, principal: Principal, volume: NewVolume) => ({
  id: randomUUID(),
  projectId: principal.projectId,
  userId: principal.userId,
  name: volume.name,
  description: volume.description,
  metadata: volume.metadata,
  bootable: volume.bootable ?? false,
  backend: defaultVolumeBackend(config).name,
  availabilityZone: volume.availabilityZone ?? config.availability_zone,
});

/**
 * A new empty volume of `sizeGib`: quota, row and the task that makes the file commit together.
 *
 * @throws QuotaExceededError
 */
export async function requestVolume(
  database: Database,
  config: Config,
  principal: Principal,
  volume: NewVolume & { sizeGib: number },
): Promise<VolumeRow> {
  return inTransaction(database, async (tx) => {
    await reserveQuota(tx, config, principal.projectId, { volumes: 1, gigabytes: volume.sizeGib });
    const row = await tx.volume.create({
      data: {
        ...baseRow(config, principal, volume),
        status: "creating",
        sizeGib: volume.sizeGib,
        sizeBytes: BigInt(volume.sizeGib) * BigInt(GiB),
      },
      include: { attachments: true },
    });
    await startOperation(tx, principal, {
      kind: "volume-create",
      projectId: row.projectId,
      volumeId: row.id,
      task: { kind: "provision-volume", needs: [`backend:${row.backend}`] },
    });
    return row;
  });
}

/** A volume that a restore will fill: it is `restoring-backup` from the start. Called inside the restore's transaction. */
export async function addRestoreVolume(
  tx: Transaction,
  config: Config,
  principal: Principal,
  volume: NewVolume & { sizeGib: number; sizeBytes: bigint },
): Promise<VolumeRow> {
  return tx.volume.create({
    data: {
      ...baseRow(config, principal, volume),
      status: "restoring-backup",
      sizeGib: volume.sizeGib,
      sizeBytes: volume.sizeBytes,
    },
    include: { attachments: true },
  });
}

/**
 * A user's own file becomes a volume of exactly its length. The size is not known yet (only a worker reads bytes):
 * the worker reports it with `chargeImport` before it copies.
 */
export async function requestVolumeImport(
  database: Database,
  config: Config,
  principal: Principal,
  request: NewVolume & { path: string },
): Promise<{ volume: VolumeRow; operation: { id: string } }> {
  return inTransaction(database, async (tx) => {
    await reserveQuota(tx, config, principal.projectId, { volumes: 1 });
    const volume = await tx.volume.create({
      data: { ...baseRow(config, principal, request), status: "creating", sizeGib: 0, sizeBytes: 0n },
      include: { attachments: true },
    });
    const id = await startOperation(tx, principal, {
      kind: "volume-import",
      projectId: volume.projectId,
      volumeId: volume.id,
      input: { path: request.path },
      task: { kind: "import-volume", needs: [`backend:${volume.backend}`] },
    });
    return { volume, operation: { id } };
  });
}

/** The worker's word on how long the file is, before it copies: charged to the quota once, however often it is said. */
export async function chargeImport(
  database: Database,
  config: Config,
  operation: TaskOperation,
  sizeBytes: number,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const sizeGib = gibOf(sizeBytes);
    const before = await tx.volume.findUniqueOrThrow({ where: { id: operation.volumeId ?? nilUuid } });
    if (sizeGib > before.sizeGib) {
      await reserveQuota(tx, config, before.projectId, { gigabytes: sizeGib - before.sizeGib });
    }
    await tx.volume.update({
      where: { id: before.id },
      data: { sizeGib: Math.max(sizeGib, before.sizeGib), sizeBytes: BigInt(sizeBytes) },
    });
    await tx.operation.update({ where: { id: operation.id }, data: { bytesTotal: BigInt(sizeBytes) } });
  });
}

/**
 * A volume's bytes go out to a file. The volume is `uploading` meanwhile.
 *
 * @throws InvalidError unless the volume is available
 */
export async function requestVolumeExport(
  database: Database,
  principal: Principal,
  request: { volumeId: string; path: string },
): Promise<{ id: string }> {
  return inTransaction(database, async (tx) => {
    const volume = await getVolume(tx, principal, request.volumeId);
    await moveVolume(tx, volume.id, ["available"], "uploading", (status) => {
      return new InvalidError(
        "volume",
        `Volume to be exported must be available, but the current status is "${status}".`,
      );
    });
    const id = await startOperation(tx, principal, {
      kind: "volume-export",
      projectId: volume.projectId,
      volumeId: volume.id,
      input: { path: request.path },
      bytesTotal: volume.sizeBytes,
      task: { kind: "export-volume", needs: [`backend:${volume.backend}`] },
    });
    return { id };
  });
}

/** Moves a volume to `to` if it is in one of `from`, in one statement; else throws what `refuse` makes of its status. */
export async function moveVolume(
  tx: Transaction,
  id: string,
  from: readonly string[],
  to: keyof typeof volumeTransitions,
  refuse: (status: string) => Error,
): Promise<void> {
  const moved = await tx.$executeRaw`
    UPDATE volumes SET previous_status = status, status = ${to}, updated_at = now()
    WHERE id = ${id}::uuid AND status = ANY(${from as string[]})`;
  if (moved === 1) return;
  const row = await tx.volume.findUnique({ where: { id } });
  throw row ? refuse(row.status) : new NotFoundError("Volume", id);
}

const deleteRefusal =
  "Volume status must be available or error or error_restoring or error_extending or error_managing and must not be migrating, " +
  "attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated from snapshots after volume transfer.";

/** @throws InvalidError in a wrong status, attached, or with snapshots. Backups never stand in the way. */
export async function requestVolumeDelete(database: Database, principal: Principal, id: string): Promise<void> {
  return inTransaction(database, async (tx) => {
    await getVolume(tx, principal, id);
    const volume = await lockVolume(tx, id);
    if (!volume) throw new NotFoundError("Volume", id);
    const snapshots = await tx.snapshot.count({ where: { volumeId: id } });
    if (snapshots > 0 || volume.attachments.length > 0) throw new InvalidError("volume", deleteRefusal);
    const from = originsOf(volumeTransitions, "deleting");
    await moveVolume(tx, id, from, "deleting", () => new InvalidError("volume", deleteRefusal));
    await startOperation(tx, principal, {
      kind: "volume-delete",
      projectId: volume.projectId,
      volumeId: id,
      task: { kind: "remove-volume", needs: [`backend:${volume.backend}`] },
    });
  });
}

/** @throws InvalidError unless the volume is available */
export async function attachVolume(
  database: Database,
  principal: Principal,
  id: string,
  attachment: { serverId: string | null; hostName: string | null; device: string | null },
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await getVolume(tx, principal, id);
    await moveVolume(tx, id, ["available"], "in-use", (status) => {
      return new InvalidError(
        "volume",
        `Volume ${id} status must be available to attach, but the current status is ${status}.`,
      );
    });
    await tx.attachment.create({ data: { id: randomUUID(), volumeId: id, ...attachment } });
  });
}

/** Detaches one attachment, or the only one. @throws InvalidError when there is none such */
export async function detachVolume(
  database: Database,
  principal: Principal,
  id: string,
  attachmentId: string | null,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await getVolume(tx, principal, id);
    const volume = await lockVolume(tx, id);
    const found = volume?.attachments.find((a) => attachmentId === null || a.id === attachmentId);
    if (!volume || !found) throw new InvalidError("volume", `Volume ${id} has no such attachment.`);
    if (volume.attachments.length > 1 && attachmentId === null) {
      throw new InvalidError("volume", `Volume ${id} has several attachments: say which.`);
    }
    await tx.attachment.delete({ where: { id: found.id } });
    if (volume.attachments.length > 1) return;
    const back = volume.status === "in-use" ? { status: "available" } : { previousStatus: "available" };
    await tx.volume.update({ where: { id }, data: { ...back, updatedAt: new Date() } });
  });
}

/** The file is there: the volume becomes available, exactly as long as the worker says. */
export async function finishVolume(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  sizeBytes: number,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await tx.$executeRaw`
      UPDATE volumes SET status = 'available', size_bytes = ${sizeBytes}::bigint, launched_at = now(), updated_at = now()
      WHERE id = ${operation.volumeId}::uuid AND status = 'creating'`;
    await completeOperation(tx, operation, result, { bytesStored: result.bytesStored });
  });
}

/** The export is written: the volume is as it was. */
export async function finishVolumeExport(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    await tx.$executeRaw`
      UPDATE volumes SET status = 'available', previous_status = 'uploading', updated_at = now()
      WHERE id = ${operation.volumeId}::uuid AND status = 'uploading'`;
    await completeOperation(tx, operation, result, { bytesStored: result.bytesStored });
  });
}

/** The file is gone: the row and its quota go too. */
export async function finishVolumeDelete(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volume = await tx.volume.findUnique({ where: { id: operation.volumeId ?? nilUuid } });
    if (volume) await releaseQuota(tx, volume.projectId, { volumes: 1, gigabytes: volume.sizeGib });
    if (volume) await tx.volume.delete({ where: { id: volume.id } });
    await completeOperation(tx, operation, result);
  });
}
