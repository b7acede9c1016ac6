import { randomUUID } from "node:crypto";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { moveLocked } from "../rows/move.ts";
import {
  addAttachment,
  adminMetadataOf,
  changeVolume,
  idle,
  lockVisible,
  moveVolume,
  type VolumeRow,
} from "../rows/volumes.ts";

export interface NewAttachment {
  serverId: string | null;
  hostName: string | null;
  device: string;
  mode: "rw" | "ro";
}

/**
 * Records that a server or host uses the volume, which is `in-use` from then on. Idempotent for the same one.
 *
 * @throws InvalidError unless the volume is available or attaching; for a read-write attachment of a read-only one
 */
export async function attachVolume(
  database: Database,
  principal: Principal,
  id: string,
  attachment: NewAttachment,
): Promise<void> {
  await inTransaction(database, (tx) => attachWithin(tx, principal, id, attachment));
}

/** As `attachVolume`, in the caller's transaction. A volume of an instance joins the instance's group. */
export async function attachWithin(
  tx: Transaction,
  principal: Principal,
  id: string,
  { mode, ...attachment }: NewAttachment,
): Promise<void> {
  const volume = await lockVisible(tx, principal, id);
  const { serverId, hostName } = attachment;
  const attached = volume.attachments.filter((a) => a.status === "attached");
  const known = attached.some((a) => (serverId ? a.serverId === serverId : a.hostName === hostName));
  if (known) return;
  const metadata = { readonly: "False", ...adminMetadataOf(volume) };
  if (metadata.readonly === "True" && mode !== "ro") {
    throw new InvalidError("request", `Invalid attaching mode '${mode}' for volume ${id}.`);
  }
  await moveVolume(tx, id, ["available", "attaching"], "in-use", (status) => {
    const reason =
      status === "in-use"
        ? "volume is already attached and multiple attachments are not enabled"
        : `volume status must be available to attach, but the current status is ${status}`;
    return new InvalidError("request", `Error attaching volume - InvalidVolume: Invalid volume: ${reason}`);
  });
  await changeVolume(tx, id, { adminMetadata: { ...metadata, attached_mode: mode } });
  const { projectId } = volume;
  await addAttachment(tx, { id: randomUUID(), projectId, volumeId: id, mode, ...attachment }, "attached");
  if (serverId) await joinInstanceGroup(tx, projectId, serverId);
}

/** The disks of a project's instance become members of its group, unless they are in another. */
export async function joinInstanceGroup(tx: Transaction, projectId: string, serverId: string): Promise<void> {
  await tx.$executeRaw`
    UPDATE volumes v SET group_id = g.id FROM groups g, attachments a
    WHERE g.project_id = ${projectId} AND v.project_id = ${projectId} AND g.instance_id::text = ${serverId}
      AND a.server_id = ${serverId} AND a.status = 'attached' AND v.id = a.volume_id AND v.group_id IS NULL`;
}

/** A volume that is no longer attached to its instance leaves the instance's group. */
export async function leaveInstanceGroup(tx: Transaction, volumeId: string): Promise<void> {
  await tx.$executeRaw`
    UPDATE volumes v SET group_id = NULL FROM groups g
    WHERE v.id = ${volumeId}::uuid AND g.id = v.group_id AND g.instance_id IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM attachments a WHERE a.volume_id = v.id AND a.server_id = g.instance_id::text)`;
}

/**
 * Ends one attachment, or the only one; after the last one the volume becomes available. One that does not exist has ended already.
 *
 * @throws InvalidError when there are several and none was named
 */
export async function detachVolume(
  database: Database,
  principal: Principal,
  id: string,
  attachmentId: string | null,
): Promise<void> {
  await inTransaction(database, (tx) => detachWithin(tx, principal, id, attachmentId));
}

/** As `detachVolume`, in the caller's transaction. A volume of an instance leaves the instance's group. */
export async function detachWithin(
  tx: Transaction,
  principal: Principal,
  id: string,
  attachmentId: string | null,
): Promise<void> {
  const volume = await lockVisible(tx, principal, id);
  if (volume.attachments.length > 1 && attachmentId === null) {
    const reason = "Detach volume failed: More than one attachment, but no attachment_id provided.";
    throw new InvalidError("request", `Error detaching volume - InvalidVolume: Invalid volume: ${reason}`);
  }
  const ended = volume.attachments.filter((a) => attachmentId === null || a.id === attachmentId);
  await removeAttachments(tx, volume, ended);
}

/** A volume's status according to its attachment records: the most advanced one counts. */
const statusByRecord = [
  ["attached", "in-use"],
  ["attaching", "attaching"],
  ["reserved", "reserved"],
] as const;

/**
 * Ends attachment records of a locked volume. After the last of them the volume is available; otherwise its status follows from the
 * remaining ones. While an operation of ours is live the volume keeps its status, and is released when that ends.
 */
export async function removeAttachments(
  tx: Transaction,
  volume: VolumeRow,
  ended: readonly { id: string }[],
): Promise<void> {
  await tx.attachment.deleteMany({ where: { id: { in: ended.map((a) => a.id) } } });
  await leaveInstanceGroup(tx, volume.id);
  const left = volume.attachments.filter((a) => !ended.some((e) => e.id === a.id));
  // A volume that was reserved through its status only, without a record, is released by whoever reserved it.
  const held = ended.length > 0 ? idle : (["in-use", "detaching"] as const);
  const [, to = "available"] = statusByRecord.find(([status]) => left.some((a) => a.status === status)) ?? [];
  if (left.length > 0) {
    if (to !== volume.status) await moveLocked(tx, "volume", volume, { from: held, to });
    return;
  }
  const { attached_mode: _mode, ...adminMetadata } = adminMetadataOf(volume);
  await changeVolume(tx, volume.id, { adminMetadata });
  if (await moveLocked(tx, "volume", volume, { from: held, to })) return;
  // A backup or an extension is under way: the volume is released when that ends.
  if (volume.previousStatus === "in-use") await changeVolume(tx, volume.id, { previousStatus: "available" });
}

/** A server is about to attach it. @throws InvalidError unless the volume is available */
export async function reserveVolume(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volume = await lockVisible(tx, principal, id);
    if (await moveLocked(tx, "volume", volume, { from: ["available"], to: "attaching" })) return;
    const text = `Volume status must be available to reserve, but the status is ${volume.status}.`;
    throw new InvalidError("volume", text);
  });
}

/** Undoes `reserveVolume`; of a volume that is not reserved it changes nothing. */
export async function unreserveVolume(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volume = await lockVisible(tx, principal, id);
    const to = volume.attachments.length > 0 ? "in-use" : "available";
    await moveLocked(tx, "volume", volume, { from: ["attaching"], to });
  });
}

/** A server is about to detach it. @throws InvalidError unless the volume is in use */
export async function beginDetaching(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volume = await lockVisible(tx, principal, id);
    const step = { from: ["in-use"], to: "detaching" } as const;
    if (volume.attachments.length > 0 && (await moveLocked(tx, "volume", volume, step))) return;
    const text =
      "Unable to detach volume. Volume status must be 'in-use' and attach_status must be 'attached' to detach.";
    throw new InvalidError("volume", text);
  });
}

/** Undoes `beginDetaching`; of a volume that is not detaching it changes nothing. */
export async function rollDetaching(database: Database, principal: Principal, id: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volume = await lockVisible(tx, principal, id);
    await moveLocked(tx, "volume", volume, { from: ["detaching"], to: "in-use" });
  });
}

/** @throws InvalidError unless the volume is available */
export async function setVolumeReadOnly(
  database: Database,
  principal: Principal,
  id: string,
  readOnly: boolean,
): Promise<void> {
  await inTransaction(database, async (tx) => {
    const volume = await lockVisible(tx, principal, id);
    if (volume.status !== "available") {
      const text = `Volume ${id} status must be available to update readonly flag, but current status is: ${volume.status}.`;
      throw new InvalidError("volume", text);
    }
    const metadata = { ...adminMetadataOf(volume), readonly: readOnly ? "True" : "False" };
    await changeVolume(tx, id, { adminMetadata: metadata });
  });
}
