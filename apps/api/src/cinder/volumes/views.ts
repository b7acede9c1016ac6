import type { Attachment, SnapshotRow, VolumeRow } from "@tephra/control";
import { may } from "../../http/policy.ts";
import type { Call } from "../../openstack/call.ts";
import { resourceLinks } from "../../openstack/links.ts";
import { since } from "../../openstack/microversions.ts";
import { timeOrNull, timeText } from "../../openstack/times.ts";

/** Cinder's volume type ids are uuids; there is one type here, so its id is a constant. */
export const defaultVolumeType = { id: "7c9e2d6a-3f0b-4a53-9d51-2f6f6a1b8c40", name: "__DEFAULT__" } as const;

export function volumeSummary(call: Call, row: VolumeRow): Record<string, unknown> {
  return { id: row.id, name: row.name, links: resourceLinks(call.place, "volumes", row.id) };
}

const attachmentView = (call: Call, row: Attachment): Record<string, unknown> => ({
  id: row.volumeId,
  attachment_id: row.id,
  volume_id: row.volumeId,
  server_id: row.serverId,
  host_name: may(call.principal, "volume_extension:volume_host_attribute") ? row.hostName : null,
  device: row.device,
  attached_at: timeOrNull(row.attachedAt),
});

/**
 * Response of creating and updating a volume: the keys of `volumeDetail` without those added by Cinder's extensions, and only the user's
 * own metadata. For the exact length in bytes, see `/ops/volumes/{id}`.
 */
export function volumeCore(call: Call, row: VolumeRow): Record<string, unknown> {
  const { version } = call;
  const admin = call.principal.isAdmin;
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
    snapshot_id: row.snapshotId,
    source_volid: row.sourceVolumeId,
    metadata: row.metadata,
    links: resourceLinks(call.place, "volumes", row.id),
    user_id: row.userId,
    bootable: String(row.bootable),
    encrypted: false,
    replication_status: null,
    consistencygroup_id: null,
    multiattach: false,
    attachments: row.attachments
      .filter(({ status }) => status === "attached")
      .map((attachment) => attachmentView(call, attachment)),
    ...(admin && { migration_status: null }),
    ...(version >= since.volumeGroupId && { group_id: row.groupId }),
    ...(version >= since.volumeProviderId && admin && { provider_id: null }),
    ...(version >= since.volumeSharedTargets && { shared_targets: false, service_uuid: null }),
    ...(version >= since.volumeClusterName && admin && { cluster_name: null }),
    ...(version >= since.volumeTypeId && { volume_type_id: defaultVolumeType.id }),
    ...(version >= since.consumesQuota && { consumes_quota: true }),
  };
}

/** A volume's location as Cinder's schedulers name it: host, backend and pool. */
export const poolName = (backend: string): string => `tephra@${backend}#${backend}`;

/** A volume in detail (cinder-api 7.1). Admin metadata that users may see is merged with the user's own. */
export function volumeDetail(call: Call, row: VolumeRow): Record<string, unknown> {
  return {
    ...volumeCore(call, row),
    metadata: { ...(row.metadata as object), ...(row.adminMetadata as object) },
    ...(may(call.principal, "volume_extension:volume_host_attribute") && {
      "os-vol-host-attr:host": poolName(row.backend),
    }),
    ...(may(call.principal, "volume_extension:volume_tenant_attribute") && {
      "os-vol-tenant-attr:tenant_id": row.projectId,
    }),
    ...(may(call.principal, "volume_extension:volume_mig_status_attribute") && {
      "os-vol-mig-status-attr:migstat": null,
      "os-vol-mig-status-attr:name_id": null,
    }),
  };
}

/** `metadata` maps each key to all of its values. */
export function volumesSummary(
  call: Call,
  sums: { count: number; sizeGib: number; metadata: Record<string, string[]> },
): Record<string, unknown> {
  const metadata = call.version >= since.volumeSummaryMetadata && { metadata: sums.metadata };
  return { "volume-summary": { total_count: sums.count, total_size: sums.sizeGib, ...metadata } };
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

/** Response of creating and updating a snapshot: `snapshotDetail` without the keys added by Cinder's extension. */
export function snapshotCore(call: Call, row: SnapshotRow): Record<string, unknown> {
  return {
    ...snapshotSummary(call, row),
    ...(call.version >= since.snapshotGroupId && { group_snapshot_id: row.groupSnapshotId }),
    ...(call.version >= since.snapshotUserId && { user_id: row.userId }),
    ...(call.version >= since.consumesQuota && { consumes_quota: true }),
  };
}

/** A snapshot in detail (cinder-api 7.5). */
export function snapshotDetail(call: Call, row: SnapshotRow): Record<string, unknown> {
  return {
    ...snapshotCore(call, row),
    "os-extended-snapshot-attributes:project_id": row.projectId,
    "os-extended-snapshot-attributes:progress": row.progress ?? (row.status === "creating" ? "0%" : "100%"),
  };
}

/** A volume type (cinder-api 7.6). Cinder's access extension adds nothing to the type requested as `default`. */
export function volumeTypeDetail(call: Call, { asDefault = false } = {}): Record<string, unknown> {
  return {
    ...defaultVolumeType,
    is_public: true,
    description: "Default Volume Type",
    ...(may(call.principal, "volume_extension:access_types_extra_specs") && { extra_specs: {} }),
    ...(may(call.principal, "volume_extension:access_types_qos_specs_id") && { qos_specs_id: null }),
    ...(!asDefault && { "os-volume-type-access:is_public": true }),
  };
}
