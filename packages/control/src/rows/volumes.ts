import { randomUUID } from "node:crypto";
import { type Config, defaultVolumeBackend } from "../config.ts";
import type { Database, Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { NotFoundError } from "../errors.ts";
import type { Attachment, Prisma, Transfer, Volume } from "../generated/client.ts";
import { type Principal, visibleTo } from "../principal.ts";
import type { volumeTransitions } from "../states.ts";

/** Locks a volume that the caller may see. @throws NotFoundError */
export async function lockVisible(tx: Transaction, principal: Principal, id: string): Promise<VolumeRow> {
  await getVolume(tx, principal, id);
  const volume = await lockVolume(tx, id);
  if (!volume) throw new NotFoundError("Volume", id);
  return volume;
}

export const adminMetadataOf = (volume: VolumeRow) => volume.adminMetadata as Record<string, string>;

/** Changes a volume that is already locked. */
export async function changeVolume(tx: Transaction, id: string, data: Prisma.VolumeUpdateInput): Promise<void> {
  await tx.volume.update({ where: { id }, data: { ...data, updatedAt: new Date() } });
}

export type { Attachment, Transfer, Volume };

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

export interface NewVolume {
  name: string | null;
  description: string | null;
  metadata: Record<string, string>;
  availabilityZone?: string | null;
  bootable?: boolean;
  /** The group that it is created in. */
  groupId?: string | null;
}

export const baseRow = (config: Config, principal: Principal, volume: NewVolume) => ({
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

/** Moves a volume to `to` if it is in one of `from`, in one statement; otherwise throws the error that `refuse` makes from its status. */
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
