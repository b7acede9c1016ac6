import {
  type Attachment,
  type BackupRow,
  nilUuid,
  type QuotaLine,
  type QuotaResource,
  type SnapshotRow,
  type VolumeRow,
} from "@tephra/control";
import { may } from "../policy.ts";
import type { Call } from "./call.ts";
import { resourceLinks } from "./links.ts";
import { since } from "./microversions.ts";

/** UTC, no zone, always six digits: gophercloud cannot parse anything else (API spec 1.5). */
export const timeText = (time: Date): string => `${time.toISOString().slice(0, -1)}000`;
const timeOrNull = (time: Date | null): string | null => (time === null ? null : timeText(time));

/** Cinder's id of a volume type is a uuid; there is one type here, so the id is a constant. */
export const defaultVolumeType = { id: "7c9e2d6a-3f0b-4a53-9d51-2f6f6a1b8c40", name: "__DEFAULT__" } as const;

export function backupSummary(call: Call, row: { id: string; name: string | null }): Record<string, unknown> {
  return { id: row.id, name: row.name, links: resourceLinks(call.place, "backups", row.id) };
}

/** Keys and their order as Cinder emits them (API spec 6.0); clients refuse any other key. */
export function backupDetail(call: Call, row: BackupRow): Record<string, unknown> {
  const admin = may(call.principal, "backup:backup_project_attribute");
  // An import tells nothing of its backup before a worker has read the record: then it has a volume.
  const unread = row.volumeId === nilUuid;
  return {
    id: row.id,
    status: row.status,
    size: unread ? 0 : row.sizeGib,
    object_count: row.objectCount,
    availability_zone: row.availabilityZone,
    container: row.container,
    created_at: timeText(row.createdAt),
    updated_at: timeOrNull(row.updatedAt),
    name: row.name,
    description: row.description,
    fail_reason: row.failReason,
    volume_id: row.volumeId,
    links: resourceLinks(call.place, "backups", row.id),
    is_incremental: row.parentId !== null,
    has_dependent_backups: row.hasDependents,
    snapshot_id: row.snapshotId,
    data_timestamp: unread ? null : timeText(row.dataTimestamp),
    ...(call.version >= since.backupMetadata && { metadata: row.metadata }),
    ...(call.version >= since.backupProjectAttribute &&
      admin && { "os-backup-project-attr:project_id": row.projectId }),
    ...(call.version >= since.backupUserId && admin && { user_id: row.userId }),
    ...(call.version >= since.encryptionKeyId && row.encryptionKeyId && { encryption_key_id: row.encryptionKeyId }),
  };
}

export function volumeSummary(call: Call, row: VolumeRow): Record<string, unknown> {
  return { id: row.id, name: row.name, links: resourceLinks(call.place, "volumes", row.id) };
}

const attachmentView = (row: Attachment): Record<string, unknown> => ({
  id: row.volumeId,
  attachment_id: row.id,
  volume_id: row.volumeId,
  server_id: row.serverId,
  host_name: row.hostName,
  device: row.device,
  attached_at: timeText(row.attachedAt),
});

/** API spec 7.1. The exact length in bytes is not here: it is at `/ops/volumes/{id}`. */
export function volumeDetail(call: Call, row: VolumeRow): Record<string, unknown> {
  const { version } = call;
  const admin = may(call.principal, "volume_extension:volume_admin_attributes");
  return {
    id: row.id,
    status: row.status,
    size: row.sizeGib,
    availability_zone: row.availabilityZone,
    created_at: timeText(row.createdAt),
    updated_at: timeOrNull(row.updatedAt),
    name: row.name,
    description: row.description,
    volume_type: defaultVolumeType.name,
    snapshot_id: null,
    source_volid: null,
    metadata: row.metadata,
    links: resourceLinks(call.place, "volumes", row.id),
    user_id: row.userId,
    bootable: String(row.bootable),
    encrypted: false,
    replication_status: null,
    consistencygroup_id: null,
    multiattach: false,
    attachments: row.attachments.map(attachmentView),
    ...(admin && {
      migration_status: null,
      "os-vol-host-attr:host": `tephra@${row.backend}#${row.backend}`,
      "os-vol-mig-status-attr:migstat": null,
      "os-vol-mig-status-attr:name_id": null,
    }),
    "os-vol-tenant-attr:tenant_id": row.projectId,
    ...(version >= since.volumeGroupId && { group_id: null }),
    ...(version >= since.volumeProviderId && admin && { provider_id: null }),
    ...(version >= since.volumeSharedTargets && { shared_targets: false, service_uuid: null }),
    ...(version >= since.volumeClusterName && admin && { cluster_name: null }),
    ...(version >= since.volumeTypeId && { volume_type_id: defaultVolumeType.id }),
    ...(version >= since.consumesQuota && { consumes_quota: true }),
  };
}

export function snapshotSummary(_call: Call, row: SnapshotRow): Record<string, unknown> {
  return {
    id: row.id,
    created_at: timeText(row.createdAt),
    updated_at: timeOrNull(row.updatedAt),
    name: row.name,
    description: row.description,
    volume_id: row.volumeId,
    status: row.status,
    size: row.sizeGib,
    metadata: row.metadata,
  };
}

/** API spec 7.5. */
export function snapshotDetail(call: Call, row: SnapshotRow): Record<string, unknown> {
  return {
    ...snapshotSummary(call, row),
    "os-extended-snapshot-attributes:project_id": row.projectId,
    "os-extended-snapshot-attributes:progress": row.status === "creating" ? "0%" : "100%",
    ...(call.version >= since.snapshotGroupId && { group_snapshot_id: null }),
    ...(call.version >= since.snapshotUserId && { user_id: row.userId }),
    ...(call.version >= since.consumesQuota && { consumes_quota: true }),
  };
}

/** Keys of a quota set, in Cinder's order; those that nothing here counts show Cinder's defaults. */
export const quotaKeys = [
  "volumes",
  "per_volume_gigabytes",
  "snapshots",
  "gigabytes",
  "backups",
  "backup_gigabytes",
  "volumes___DEFAULT__",
  "gigabytes___DEFAULT__",
  "snapshots___DEFAULT__",
  "groups",
] as const;

/** Limits that cannot be changed, because nothing here enforces them. */
export const fixedQuotas: Readonly<Record<string, number>> = {
  per_volume_gigabytes: -1,
  volumes___DEFAULT__: -1,
  gigabytes___DEFAULT__: -1,
  snapshots___DEFAULT__: -1,
  groups: 10,
};

/** API spec 7.10. With `usage` every value says what is in use, too. */
export function quotaSet(lines: Readonly<Record<QuotaResource, QuotaLine>>, usage: boolean): Record<string, unknown> {
  const lineOf = (key: string): QuotaLine => lines[key as QuotaResource] ?? { limit: fixedQuotas[key] ?? -1, inUse: 0 };
  return Object.fromEntries(
    quotaKeys.map((key) => {
      const { limit, inUse } = lineOf(key);
      return [key, usage ? { limit, in_use: inUse, reserved: 0 } : limit];
    }),
  );
}
