import type { MessageRow, QuotaLimit, QuotaLimits, QuotaLine, ServiceRow } from "@tephra/control";
import type { Call } from "../../openstack/call.ts";
import { resourceLinks } from "../../openstack/links.ts";
import { since } from "../../openstack/microversions.ts";
import { quotaKeys } from "../../openstack/quota-keys.ts";
import { timeText } from "../../openstack/times.ts";

/** A message (cinder-api 9.6). */
export function messageDetail(call: Call, row: MessageRow, keptUntil: Date): Record<string, unknown> {
  return {
    id: row.id,
    event_id: row.eventId,
    user_message: row.userMessage,
    message_level: row.messageLevel,
    created_at: timeText(row.createdAt),
    guaranteed_until: timeText(keptUntil),
    request_id: row.requestId,
    links: resourceLinks(call.place, "messages", row.id),
    resource_type: row.resourceType,
    resource_uuid: row.resourceUuid,
  };
}

/** Cinder's limits under Cinder's keys (cinder-api 9.4). */
export const quotaLimits = (limits: QuotaLimits): Record<string, number> =>
  Object.fromEntries(Object.entries(quotaKeys).map(([key, limit]) => [key, limits[limit]]));

/** Like `quotaLimits`, with usage; nothing is ever reserved. */
export const quotaUsage = (lines: Readonly<Record<QuotaLimit, QuotaLine>>): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(quotaKeys).map(([key, name]) => {
      const { limit, inUse } = lines[name];
      return [key, { limit, in_use: inUse, reserved: 0 }];
    }),
  );

/** Limits and usage of a project (cinder-api 9.3). */
export function limitsView(lines: Readonly<Record<QuotaLimit, QuotaLine>>): Record<string, unknown> {
  const absolute = {
    maxTotalVolumes: lines.volumes.limit,
    maxTotalSnapshots: lines.snapshots.limit,
    maxTotalVolumeGigabytes: lines.gigabytes.limit,
    maxTotalBackups: lines.backups.limit,
    maxTotalBackupGigabytes: lines.backup_gigabytes.limit,
    totalVolumesUsed: lines.volumes.inUse,
    totalGigabytesUsed: lines.gigabytes.inUse,
    totalSnapshotsUsed: lines.snapshots.inUse,
    totalBackupsUsed: lines.backups.inUse,
    totalBackupGigabytesUsed: lines.backup_gigabytes.inUse,
  };
  return { rate: [], absolute };
}

/** A service (cinder-api 9.1). */
export function serviceView(call: Call, row: ServiceRow): Record<string, unknown> {
  const volume = row.binary === "cinder-volume";
  return {
    binary: row.binary,
    host: row.host,
    zone: row.zone,
    status: row.disabled ? "disabled" : "enabled",
    state: row.up ? "up" : "down",
    updated_at: timeText(row.updatedAt),
    ...(volume && call.version >= since.serviceBackendState && { backend_state: row.up ? "up" : "down" }),
    ...(call.version >= since.serviceCluster && { cluster: null }),
    disabled_reason: row.disabledReason,
    ...(volume && { replication_status: "not-capable", active_backend_id: null, frozen: false }),
  };
}
