import { randomUUID } from "node:crypto";
import { type Config, defaultVolumeBackend } from "../config.ts";
import type { Database, Transaction } from "../db/database.ts";
import { isUuid } from "../db/listing.ts";
import { lockRow, volumeColumns } from "../db/lock-row.ts";
import { readRows } from "../db/read.ts";
import { InvalidError, NotFoundError } from "../errors.ts";
import { type Attachment, Prisma, type Transfer, type Volume } from "../generated/client.ts";
import { mayLook, type Principal, visibleTo } from "../principal.ts";
import type { OriginOf, StatusOf } from "../states.ts";
import { provisions } from "../volume-backends.ts";

/** Locks a volume that the caller may see. @throws NotFoundError */
export async function lockVisible(tx: Transaction, principal: Principal, id: string): Promise<VolumeRow> {
  await getVolume(tx, principal, id);
  const volume = await lockVolume(tx, id);
  if (!volume) throw new NotFoundError("Volume", id);
  return volume;
}

export const adminMetadataOf = (volume: VolumeRow) => volume.adminMetadata as Record<string, string>;

/** Changes a volume that is already locked, but for its status. */
export async function changeVolume(
  tx: Transaction,
  id: string,
  data: Omit<Prisma.VolumeUpdateInput, "status">,
): Promise<void> {
  await tx.volume.update({ where: { id }, data: { ...data, updatedAt: new Date() } });
}

export type { Attachment, Transfer, Volume };

export type VolumeRow = Volume & { attachments: Attachment[] };

export const GiB = 1024 ** 3;

export const gibOf = (bytes: number): number => Math.max(1, Math.ceil(bytes / GiB));

/** Locks a volume and reads it. First after the quota in the lock order. */
export async function lockVolume(tx: Transaction, id: string): Promise<VolumeRow | null> {
  const volume = await lockRow(tx, "volume", id);
  return volume === null ? null : { ...volume, attachments: await tx.attachment.findMany({ where: { volumeId: id } }) };
}

/** The row alone, without attachments. @throws NotFoundError for an unknown id or another project's */
export async function findVolume(database: Database | Transaction, principal: Principal, id: string): Promise<Volume> {
  const [row] = isUuid(id)
    ? await readRows<Volume>(database, Prisma.sql`SELECT ${volumeColumns} FROM volumes WHERE id = ${id}::uuid`)
    : [];
  if (!row || !mayLook(principal, row)) throw new NotFoundError("Volume", id);
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
  /** One that nothing has or had; if omitted, a new one. */
  id?: string;
  /** The name of a configured backend; if omitted, the default one. */
  backend?: string;
  /** Whether machines' backups of it may ask what has changed. */
  tracksChanges?: boolean;
}

/** Whether volumes and snapshots can be made in a backend. One that is no longer configured is left to workers that know it. */
export function canProvision(config: Config, backend: string): boolean {
  const settings = config.volume_backends.find(({ name }) => name === backend);
  return settings === undefined || provisions(settings);
}

/** Why the backend cannot do this; null: it can. */
export function provisioningRefusal(config: Config, backend: string, operation: string): string | null {
  if (canProvision(config, backend)) return null;
  const why = "has volumes that exist already and are adopted";
  return `Operation not supported: ${operation}. Volume backend ${backend} ${why}.`;
}

/** @throws InvalidError where the backend cannot do this, beginning as Cinder's NotSupportedOperation does */
export function requireProvisioning(config: Config, backend: string, operation: string): string {
  const refused = provisioningRefusal(config, backend, operation);
  if (refused !== null) throw new InvalidError("request", refused);
  return backend;
}

export const baseRow = (config: Config, principal: Principal, volume: NewVolume) => ({
  id: volume.id ?? randomUUID(),
  projectId: principal.projectId,
  userId: principal.userId,
  name: volume.name,
  description: volume.description,
  metadata: volume.metadata,
  bootable: volume.bootable ?? false,
  groupId: volume.groupId ?? null,
  backend: requireProvisioning(config, volume.backend ?? defaultVolumeBackend(config).name, "create volume"),
  tracksChanges: volume.tracksChanges ?? false,
  availabilityZone: volume.availabilityZone ?? config.availability_zone,
});

/** A volume that is about to get its bytes. */
export async function addVolume(
  tx: Transaction,
  volume: Omit<Prisma.VolumeUncheckedCreateInput, "status">,
  status: "creating" | "restoring-backup" = "creating",
): Promise<VolumeRow> {
  return { ...(await tx.volume.create({ data: { ...volume, status } })), attachments: [] };
}

/** A volume whose bytes are there already. @returns false when a volume has its id */
export async function addAdoptedVolume(
  tx: Transaction,
  volume: Omit<Prisma.VolumeCreateManyInput, "status">,
): Promise<boolean> {
  const { count } = await tx.volume.createMany({ data: [{ ...volume, status: "available" }], skipDuplicates: true });
  return count === 1;
}

/** A volume that a restore will fill, in `status` until then. Called inside the restore's transaction. */
export async function addRestoreVolume(
  tx: Transaction,
  config: Config,
  principal: Principal,
  volume: NewVolume & { status: "creating" | "restoring-backup"; sizeGib: number; sizeBytes: bigint },
): Promise<VolumeRow> {
  const { status, sizeGib, sizeBytes } = volume;
  return addVolume(tx, { ...baseRow(config, principal, volume), sizeGib, sizeBytes }, status);
}

/** An attachment record: `reserved` for a server, or of one that has the volume already. */
export function addAttachment(
  tx: Transaction,
  attachment: Omit<Prisma.AttachmentUncheckedCreateInput, "status">,
  status: "reserved" | "attached",
): Promise<Attachment> {
  return tx.attachment.create({ data: { ...attachment, status } });
}

/** An offer of a volume to another project. */
export function addTransfer(
  tx: Transaction,
  transfer: Omit<Prisma.TransferUncheckedCreateInput, "status">,
): Promise<Transfer> {
  return tx.transfer.create({ data: { ...transfer, status: "pending" } });
}

/** Statuses of a volume with an attachment, while no operation of ours is live on it. */
export const idle = ["reserved", "attaching", "in-use", "detaching"] as const;

/** Moves the volume according to an attachment, unless an operation of ours is live: the end of that one sets its status. */
export async function moveIdle(tx: Transaction, id: string, to: "attaching" | "in-use"): Promise<void> {
  await tx.$executeRaw`
    UPDATE volumes SET previous_status = status, status = ${to}, updated_at = now()
    WHERE id = ${id}::uuid AND status = ANY(${[...idle]}) AND status <> ${to}`;
}

/** The volume has a new length, and its previous status back. Its size in GiB is what was asked for, rounded up. */
export async function finishGrowth(
  tx: Transaction,
  id: string,
  { asked, sizeBytes }: { asked: number; sizeBytes: number },
): Promise<void> {
  await tx.$executeRaw`
    UPDATE volumes SET size_bytes = ${sizeBytes}::bigint, size_gib = ${gibOf(asked)}::int, updated_at = now(),
      status = CASE WHEN status = 'extending' THEN previous_status ELSE status END
    WHERE id = ${id}::uuid`;
}

/** Moves a volume to `to` if it is in one of `from`, in one statement; otherwise throws the error that `refuse` makes from its status. */
export async function moveVolume<const To extends StatusOf<"volume">>(
  tx: Transaction,
  id: string,
  from: readonly OriginOf<"volume", To>[],
  to: To,
  refuse: (status: string) => Error,
): Promise<void> {
  const moved = await tx.$executeRaw`
    UPDATE volumes SET previous_status = status, status = ${to}, updated_at = now()
    WHERE id = ${id}::uuid AND status = ANY(${[...from]})`;
  if (moved === 1) return;
  const row = await tx.volume.findUnique({ where: { id } });
  throw row ? refuse(row.status) : new NotFoundError("Volume", id);
}

/** A volume that is restored is in one of these. */
export const restoring = ["restoring-backup", "creating"] as const;

/** From now on nobody can use the volume, nor snapshots deleted with it. */
export async function markVolumeRemoval(tx: Transaction, volumeId: string): Promise<void> {
  const removalBegunAt = new Date();
  await tx.volume.updateMany({ where: { id: volumeId, removalBegunAt: null }, data: { removalBegunAt } });
  await tx.snapshot.updateMany({
    where: { volumeId, status: "deleting", removalBegunAt: null },
    data: { removalBegunAt },
  });
}
