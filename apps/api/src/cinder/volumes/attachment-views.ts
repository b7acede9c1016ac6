import { type AttachmentRow, devicePath } from "@tephra/control";
import type { Context } from "../../context.ts";
import { timeText } from "../../openstack/times.ts";

export const attachmentSummary = (row: AttachmentRow): Record<string, unknown> => ({
  id: row.id,
  status: row.status,
  instance: row.serverId,
  volume_id: row.volumeId,
});

/**
 * Connection information for os-brick's `local` connector: the client machine has the volume's file at the same path. Empty until there
 * is a connector, and where a volume is not a file of raw bytes.
 */
function connectionInfo({ config }: Context, row: AttachmentRow): Record<string, unknown> {
  const backend = config.volume_backends.find(({ name }) => name === row.volume.backend);
  const path = backend ? devicePath(backend, row.volumeId) : null;
  if (row.connector === null || path === null) return {};
  return {
    driver_volume_type: "local",
    device_path: path,
    access_mode: row.mode ?? "rw",
    encrypted: false,
    qos_specs: null,
    cacheable: false,
    attachment_id: row.id,
  };
}

/** Like Cinder: an empty string for a missing time, and the string `null` for an unset mode. */
export const attachmentDetail = (context: Context, row: AttachmentRow): Record<string, unknown> => ({
  ...attachmentSummary(row),
  attached_at: row.attachedAt === null ? "" : timeText(row.attachedAt),
  detached_at: "",
  attach_mode: row.mode ?? "null",
  connection_info: connectionInfo(context, row),
});
