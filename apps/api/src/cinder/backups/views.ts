import { type BackupField, type BackupRow, nilUuid } from "@tephra/control";
import { toldContainer } from "@tephra/format";
import { may } from "../../http/policy.ts";
import type { Call } from "../../openstack/call.ts";
import { resourceLinks } from "../../openstack/links.ts";
import { type Microversion, since } from "../../openstack/microversions.ts";
import { timeOrNull, timeText } from "../../openstack/times.ts";

export const summaryFields = ["id", "name"] as const satisfies readonly BackupField[];

export function backupSummary(call: Call, row: { id: string; name: string | null }): Record<string, unknown> {
  return { id: row.id, name: row.name, links: resourceLinks(call.place, "backups", row.id) };
}

const detailFields = [
  "id",
  "status",
  "sizeGib",
  "objectCount",
  "availabilityZone",
  "container",
  "createdAt",
  "updatedAt",
  "name",
  "description",
  "failReason",
  "volumeId",
  "parentId",
  "hasDependents",
  "snapshotId",
  "dataTimestamp",
  "metadata",
  "projectId",
  "userId",
  "encryptionKeyId",
] as const satisfies readonly BackupField[];

type DetailField = (typeof detailFields)[number];

/** Those of a version: metadata are not read below the one that shows them. */
export const detailFieldsOf = (version: Microversion): readonly DetailField[] =>
  version >= since.backupMetadata ? detailFields : fieldsWithoutMetadata;

const fieldsWithoutMetadata = detailFields.filter((field) => field !== "metadata");

/** Keys and their order as in Cinder (cinder-api 6.1); clients reject any other key. */
export function backupDetail(call: Call, row: Pick<BackupRow, DetailField>): Record<string, unknown> {
  const admin = may(call.principal, "backup:backup_project_attribute");
  // Until a worker has read an imported record, nothing is known about its backup; the volume id is set at that point.
  const unread = row.volumeId === nilUuid;
  return {
    id: row.id,
    status: row.status,
    size: unread ? 0 : row.sizeGib,
    object_count: row.objectCount,
    availability_zone: row.availabilityZone,
    container: toldContainer(row.container),
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
