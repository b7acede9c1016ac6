import type { GroupRow, GroupSnapshotRow, GroupType } from "@tephra/control";
import { may } from "../../http/policy.ts";
import type { Call } from "../../openstack/call.ts";
import { since } from "../../openstack/microversions.ts";
import { timeText } from "../../openstack/times.ts";
import { defaultVolumeType } from "../volumes/views.ts";

export const groupSummary = (_call: Call, row: { id: string; name: string | null }): Record<string, unknown> => ({
  id: row.id,
  name: row.name,
});

/** Keys and their order as in Cinder. */
export function groupDetail(call: Call, row: GroupRow): Record<string, unknown> {
  const { version } = call;
  const listed = version >= since.groupVolumeList && call.query.get("list_volume")?.toLowerCase() === "true";
  return {
    id: row.id,
    status: row.status,
    availability_zone: row.availabilityZone,
    created_at: timeText(row.createdAt),
    name: row.name,
    description: row.description,
    group_type: row.groupTypeId,
    volume_types: [defaultVolumeType.id],
    ...(version >= since.groupSnapshots && {
      group_snapshot_id: row.groupSnapshotId,
      source_group_id: row.sourceGroupId,
    }),
    ...(listed && { volumes: row.volumes.map((volume) => volume.id) }),
    ...(version >= since.groupReplication && { replication_status: "disabled" }),
    ...(version >= since.groupProjectId &&
      may(call.principal, "group:group_project_attribute") && { project_id: row.projectId }),
  };
}

export function groupSnapshotDetail(call: Call, row: GroupSnapshotRow): Record<string, unknown> {
  return {
    id: row.id,
    group_id: row.groupId,
    group_type_id: row.groupTypeId,
    status: row.status,
    created_at: timeText(row.createdAt),
    name: row.name,
    description: row.description,
    ...(call.version >= since.groupProjectId &&
      may(call.principal, "group:group_snapshot_project_attribute") && { project_id: row.projectId }),
  };
}

export const groupTypeView = (call: Call, row: GroupType): Record<string, unknown> => ({
  id: row.id,
  name: row.name,
  description: row.description,
  is_public: row.isPublic,
  ...(may(call.principal, "group:access_group_types_specs") && { group_specs: row.groupSpecs }),
});
