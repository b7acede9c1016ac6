import { randomUUID } from "node:crypto";
import { type Config, defaultVolumeBackend } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isUuid, nilUuid } from "../db/listing.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import type { Attachment, Volume } from "../generated/client.ts";
import { lockForNewVolume, lockGroupOf, settleGroup } from "../groups/groups.ts";
import { type Principal, visibleTo } from "../principal.ts";
import { completeOperation, startOperation } from "../queue/operations.ts";
import type { TaskOperation, TaskResult } from "../queue/tasks.ts";
import { reserveQuota } from "../rows/quotas.ts";
import type { volumeTransitions } from "../states.ts";

export type { Attachment };
export type VolumeRow = Volume & { attachments: Attachment[] };

export const GiB = 1024 ** 3;
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

export interface VolumeChange {
  name?: string | null;
  description?: string | null;
  /** The whole set. */
  metadata?: Record<string, string>;
  bootable?: boolean;
}

/** Changes what a user may say about a volume, in whatever status it is. @throws NotFoundError */
export async function updateVolume(
  database: Database,
  principal: Principal,
  id: string,
  change: VolumeChange,
): Promise<VolumeRow> {
  const seen = await getVolume(database, principal, id);
  if (Object.keys(change).length === 0) return seen;
  const updatedAt = new Date();
  const { count } = await database.volume.updateMany({ where: { id }, data: { ...change, updatedAt } });
  if (count === 0) throw new NotFoundError("Volume", id);
  return { ...seen, ...change, updatedAt };
}

export interface NewVolume {
  name: string | null;
  description: string | null;
  metadata: Record<string, string>;
  availabilityZone?: string | null;
  bootable?: boolean;
  /** The group that it is in from the start. */
  groupId?: string | null;
}

const baseRow = (config: Config, principal: Principal, volume: NewVolume) => ({
  id: randomUUID(),
  projectId: principal.projectId,
  userId: principal.userId,
  name: volume.name,
  description: volume.description,
  metadata: volume.metadata,
  bootable: volume.bootable ?? false,
  groupId: volume.groupId ?? null,
  backend: defaultVolumeBackend(config).name,
  availabilityZone: volume.availabilityZone ?? config.availability_zone,
});

/** Where a volume's first bytes come from. A new volume lies on its source's backend. */
export type VolumeSource = { snapshotId: string } | { volumeId: string };

/**
 * A new volume of `sizeGib`, empty or with the bytes of a source: quota, row and the task that makes the file commit together. With a
 * source the size may be null, and is the source's then.
 *
 * @throws NotFoundError, InvalidError for a source in another status or too large; QuotaExceededError
 */
export async function requestVolume(
  database: Database,
  config: Config,
  principal: Principal,
  volume: NewVolume & { sizeGib: number | null; source: VolumeSource | null },
): Promise<VolumeRow> {
  return inTransaction(database, async (tx) => {
    const source = volume.source && (await readSource(tx, principal, volume.source));
    const sizeGib = volume.sizeGib ?? source?.sizeGib ?? 0;
    if (source && sizeGib < source.sizeGib) throw new InvalidError("input", source.tooSmall(sizeGib));
    await reserveQuota(tx, config, principal.projectId, { volumes: 1, gigabytes: sizeGib });
    if (volume.groupId) await lockForNewVolume(tx, principal, volume.groupId);
    return startVolume(tx, config, principal, { ...volume, sizeGib, source });
  });
}

/** The row and the task that makes its file. Its quota has been taken, and its group is locked. */
export async function startVolume(
  tx: Transaction,
  config: Config,
  principal: Principal,
  volume: NewVolume & { sizeGib: number; source: SourceOfVolume | null },
): Promise<VolumeRow> {
  const { source, sizeGib } = volume;
  const sizeBytes = BigInt(sizeGib) * BigInt(GiB);
  const row = await tx.volume.create({
    data: {
      ...baseRow(config, principal, volume),
      ...source?.columns,
      ...(volume.availabilityZone && { availabilityZone: volume.availabilityZone }),
      status: "creating",
      sizeGib,
      // A source of odd length is copied as it is; only a volume that shall be larger is as long as its size says.
      sizeBytes: source && sizeGib === source.sizeGib ? source.sizeBytes : sizeBytes,
    },
    include: { attachments: true },
  });
  await startOperation(tx, principal, {
    kind: "volume-create",
    projectId: row.projectId,
    volumeId: row.id,
    bytesTotal: source?.sizeBytes ?? 0n,
    input: source?.input ?? {},
    task: { kind: source ? "clone-volume" : "provision-volume", needs: [`backend:${row.backend}`] },
  });
  return row;
}

export interface SourceOfVolume {
  /** Itself, for the worker. */
  input: VolumeSource;
  sizeGib: number;
  sizeBytes: bigint;
  /** What the new row takes over. */
  columns: {
    backend: string;
    availabilityZone: string;
    bootable: boolean;
    snapshotId?: string;
    sourceVolumeId?: string;
  };
  tooSmall: (sizeGib: number) => string;
}

/** @throws NotFoundError for an unknown source; InvalidError for one that cannot be copied now */
export async function readSource(tx: Transaction, principal: Principal, source: VolumeSource): Promise<SourceOfVolume> {
  if ("volumeId" in source) {
    const volume = await findVolume(tx, principal, source.volumeId);
    const { backend, availabilityZone, bootable, sizeGib, sizeBytes } = volume;
    if (volume.status !== "available" && volume.status !== "in-use") {
      throw new InvalidError("volume", "Originating source volume status must be one of 'available, in-use' values");
    }
    return {
      input: source,
      sizeGib,
      sizeBytes,
      columns: { backend, availabilityZone, bootable, sourceVolumeId: volume.id },
      tooSmall: (size) =>
        `Volume size '${size}'GB cannot be smaller than original volume size  ${sizeGib}GB. They must be >= original volume size.`,
    };
  }
  const snapshot = await tx.snapshot.findFirst({
    where: { id: isUuid(source.snapshotId) ? source.snapshotId : nilUuid, ...visibleTo(principal) },
    include: { volume: true },
  });
  if (!snapshot) throw new NotFoundError("Snapshot", source.snapshotId);
  if (snapshot.status !== "available") {
    throw new InvalidError("snapshot", "Originating snapshot status must be one of 'available' values");
  }
  const { backend, availabilityZone, bootable } = snapshot.volume;
  return {
    input: source,
    sizeGib: snapshot.sizeGib,
    sizeBytes: snapshot.sizeBytes,
    columns: { backend, availabilityZone, bootable, snapshotId: snapshot.id },
    tooSmall: (size) =>
      `Volume size '${size}'GB cannot be smaller than the snapshot size ${snapshot.sizeGib}GB. They must be >= original snapshot size.`,
  };
}

/** A volume that a restore will fill, in `status` until then. Called inside the restore's transaction. */
export async function addRestoreVolume(
  tx: Transaction,
  config: Config,
  principal: Principal,
  volume: NewVolume & { status: "creating" | "restoring-backup"; sizeGib: number; sizeBytes: bigint },
): Promise<VolumeRow> {
  return tx.volume.create({
    data: {
      ...baseRow(config, principal, volume),
      status: volume.status,
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
 * A volume's bytes go out to a file, which may be there already only with `overwrite`. The volume is `uploading` meanwhile.
 *
 * @throws InvalidError unless the volume is available
 */
export async function requestVolumeExport(
  database: Database,
  principal: Principal,
  request: { volumeId: string; path: string; overwrite: boolean },
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
      input: { path: request.path, overwrite: request.overwrite },
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

/** The file is there: the volume becomes available, exactly as long as the worker says. */
export async function finishVolume(
  database: Database,
  operation: TaskOperation,
  result: TaskResult,
  sizeBytes: number,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volumeId = operation.volumeId ?? nilUuid;
    await lockGroupOf(tx, volumeId);
    await tx.$executeRaw`
      UPDATE volumes SET status = 'available', size_bytes = ${sizeBytes}::bigint, launched_at = now(), updated_at = now()
      WHERE id = ${volumeId}::uuid AND status = 'creating'`;
    await settleGroup(tx, volumeId);
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
