import { randomUUID } from "node:crypto";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isUuid, orderOf, type Page, windowOf } from "../db/listing.ts";
import { AttachmentNotFoundError, InvalidError } from "../errors.ts";
import { type Principal, projectOf, visibleTo } from "../principal.ts";
import type { Json } from "../queue/tasks.ts";
import { move } from "../rows/move.ts";
import type { Attachment } from "../rows/volumes.ts";
import { addAttachment, adminMetadataOf, lockVisible, lockVolume, moveIdle, type VolumeRow } from "../rows/volumes.ts";
import { attachmentTransitions, originsOf } from "../states.ts";
import { joinInstanceGroup, removeAttachments } from "./attach.ts";

export type AttachMode = "rw" | "ro";

/** A server's description of the machine that the volume is attached to, as far as it is understood here. The whole of it is stored. */
export interface Connector {
  host: string | null;
  mountpoint: string | null;
  mode: AttachMode | null;
  whole: { [key: string]: Json };
}

/** A record with the volume's backend, which tells where its bytes are. */
export type AttachmentRow = Attachment & { volume: { backend: string } };

const withBackend = { volume: { select: { backend: true } } } as const;

/** @throws AttachmentNotFoundError for an unknown id or another project's */
export async function getAttachment(
  database: Database | Transaction,
  principal: Principal,
  id: string,
): Promise<AttachmentRow> {
  const row = isUuid(id)
    ? await database.attachment.findFirst({ where: { id, ...visibleTo(principal) }, include: withBackend })
    : null;
  if (!row) throw new AttachmentNotFoundError(id);
  return row;
}

export type AttachmentSortKey = "id" | "createdAt" | "volumeId" | "serverId" | "status" | "attachedAt" | "device";

export interface AttachmentFilter {
  id?: string;
  volumeId?: string;
  serverId?: string;
  status?: string;
  projectId?: string;
}

/** One page. @throws AttachmentNotFoundError when the marker is unknown or another project's */
export async function listAttachments(
  database: Database,
  principal: Principal,
  query: { filter: AttachmentFilter; allProjects: boolean; page: Page<AttachmentSortKey> },
): Promise<AttachmentRow[]> {
  const { filter, page } = query;
  if (page.marker !== undefined) await getAttachment(database, principal, page.marker);
  if ([filter.id, filter.volumeId].some((id) => id !== undefined && !isUuid(id))) return [];
  return database.attachment.findMany({
    where: { ...filter, ...projectOf(principal, query.allProjects) },
    orderBy: orderOf(page),
    ...windowOf(page),
    include: withBackend,
  });
}

const inError = (doing: "created" | "updated", { id, status }: VolumeRow): InvalidError =>
  new InvalidError(
    "volume",
    `Volume attachments can not be ${doing} if the volume is in an error state. The Volume ${id} currently has a status of: ${status} `,
  );

/**
 * Reserves a volume for a server, and with a connector also connects it: the attachment then waits for `completeAttachment`. A volume that
 * a server already has may be reserved for the same server once more, as a migration to another host does.
 *
 * @throws InvalidError unless the volume is available; NotFoundError
 */
export async function createAttachment(
  database: Database,
  principal: Principal,
  request: { volumeId: string; serverId: string | null; connector: Connector | null; mode: AttachMode | null },
): Promise<AttachmentRow> {
  return inTransaction(database, async (tx) => {
    const { volumeId, serverId, connector, mode } = request;
    const volume = await lockVisible(tx, principal, volumeId);
    if (volume.status.includes("error")) throw inError("created", volume);
    const again = serverId !== null && volume.attachments.some((a) => a.serverId === serverId);
    const free = volume.status === "available";
    if (!free && !(again && (volume.status === "in-use" || volume.status === "reserved"))) {
      const text = `Volume ${volumeId} status must be available or downloading to reserve, but the current status is ${volume.status}.`;
      throw new InvalidError("volume", text);
    }
    if (free) await move(tx, "volume", { id: volumeId }, { from: "available", to: "reserved" });
    const readOnly = adminMetadataOf(volume)["readonly"] === "True";
    const record = { id: randomUUID(), projectId: volume.projectId, volumeId, serverId, attachedAt: null };
    const row = await addAttachment(tx, { ...record, mode: readOnly ? "ro" : mode }, "reserved");
    if (connector) await connect(tx, row, connector);
    return getAttachment(tx, principal, row.id);
  });
}

/** The machine is known: the record now waits to be completed. The volume is locked. */
async function connect(tx: Transaction, { id, mode, volumeId }: Attachment, connector: Connector): Promise<void> {
  const inForce = mode ?? connector.mode ?? "rw";
  const step = { from: originsOf(attachmentTransitions, "attaching"), to: "attaching" } as const;
  await move(tx, "attachment", { id }, step, {
    connector: { ...connector.whole, mode: inForce },
    mode: inForce,
    hostName: connector.host ?? "",
    device: connector.mountpoint ?? "na",
    attachedAt: new Date(),
  });
  await moveIdle(tx, volumeId, "attaching");
}

/** Locks the volume of a record that the caller may see, and reads both. @throws AttachmentNotFoundError */
async function lockAttachment(
  tx: Transaction,
  principal: Principal,
  id: string,
): Promise<{ attachment: Attachment; volume: VolumeRow }> {
  const seen = await getAttachment(tx, principal, id);
  const volume = await lockVolume(tx, seen.volumeId);
  const attachment = volume?.attachments.find((a) => a.id === seen.id);
  if (!volume || !attachment) throw new AttachmentNotFoundError(id);
  return { attachment, volume };
}

/** Sets where a reserved volume is attached. @throws InvalidError in an error status, or while another record has a connection */
export async function updateAttachment(
  database: Database,
  principal: Principal,
  id: string,
  connector: Connector,
): Promise<AttachmentRow> {
  return inTransaction(database, async (tx) => {
    const { attachment, volume } = await lockAttachment(tx, principal, id);
    if (volume.status.includes("error")) throw inError("updated", volume);
    if (volume.attachments.length > 1 && volume.attachments.some((a) => a.connector !== null)) {
      throw new InvalidError("volume", `duplicate connectors detected on volume ${volume.id}`);
    }
    await connect(tx, attachment, connector);
    return getAttachment(tx, principal, id);
  });
}

/** The server has the volume: it is in use. A volume of an instance joins the instance's group. @throws InvalidError in an error status */
export async function completeAttachment(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const { attachment, volume } = await lockAttachment(tx, principal, id);
    if (volume.status.includes("error")) throw inError("updated", volume);
    const from = originsOf(attachmentTransitions, "attached");
    await move(tx, "attachment", { id }, { from, to: "attached" });
    await moveIdle(tx, volume.id, "in-use");
    if (attachment.serverId) await joinInstanceGroup(tx, volume.projectId, attachment.serverId);
  });
}

/** Ends a record, in any state. @returns the volume's other records */
export async function deleteAttachment(database: Database, principal: Principal, id: string): Promise<AttachmentRow[]> {
  return inTransaction(database, async (tx) => {
    const { attachment, volume } = await lockAttachment(tx, principal, id);
    await removeAttachments(tx, volume, [attachment]);
    return tx.attachment.findMany({
      where: { volumeId: volume.id },
      orderBy: [{ createdAt: "asc" }, { id: "asc" }],
      include: withBackend,
    });
  });
}
