import { type AcceptedGroupOperation, type GroupBackupRow, type GroupRow, groupBackupStatus } from "@tephra/control";

type Member = GroupBackupRow["members"][number];

/** UTC, with a precision of seconds. */
const timeText = (time: Date): string => time.toISOString().slice(0, 19).replace("T", " ");

/** The API's keys come first, in its order. */
function metadataView(metadata: unknown): Record<string, string> {
  const all = metadata as Record<string, string>;
  const first = ["instance_group_id", "group_snapshot_id", "instance_id", "mountpoint"];
  const known = first.flatMap((key) => (all[key] === undefined ? [] : [[key, all[key]] as const]));
  return { ...Object.fromEntries(known), ...all };
}

/** Keys and their order as in the API: those of Cinder's database record, not of its REST API. */
function backupView({ volumeId, snapshot, backup }: Member & { backup: NonNullable<Member["backup"]> }) {
  return {
    id: backup.id,
    user_id: backup.userId,
    project_id: backup.projectId,
    volume_id: volumeId,
    availability_zone: backup.availabilityZone,
    container: backup.container,
    parent_id: backup.parentId,
    parent: null,
    status: backup.status,
    fail_reason: backup.failReason,
    size: backup.sizeGib,
    display_name: backup.name,
    display_description: backup.description,
    service_metadata: backup.serviceMetadata,
    service: backup.service,
    object_count: backup.objectCount,
    temp_volume_id: null,
    temp_snapshot_id: null,
    num_dependent_backups: backup.dependents,
    snapshot_id: snapshot?.id ?? null,
    data_timestamp: timeText(backup.dataTimestamp),
    restore_volume_id: backup.restoreVolumeId,
    metadata: metadataView(backup.metadata),
    encryption_key_id: backup.encryptionKeyId,
    created_at: timeText(backup.createdAt),
  };
}

/** One backup of an instance, with the backups of its volumes. */
export const groupBackupView = (row: GroupBackupRow): Record<string, unknown> => ({
  id: row.id,
  group_id: row.groupId,
  project_id: row.projectId,
  user_id: row.userId,
  name: row.name,
  description: row.description,
  status: groupBackupStatus(row),
  group_type_id: row.groupTypeId,
  backups: row.members.flatMap((member) =>
    member.backup === null ? [] : [backupView({ ...member, backup: member.backup })],
  ),
  created_at: timeText(row.createdAt),
});

export const groupView = (row: GroupRow): Record<string, unknown> => ({
  id: row.id,
  name: row.name,
  instance_id: row.instanceId,
  status: row.status,
  volume_id: row.volumes.map((volume) => volume.id),
  created_at: timeText(row.createdAt),
});

const common = (operation: string, done: AcceptedGroupOperation) => ({
  operation,
  success: true,
  instance_id: done.instanceId,
  group_id: done.groupId,
  group_snapshot_id: done.groupSnapshotId,
});

/** The three lists are parallel: equal positions refer to the same volume. */
export const backedUpView = (done: AcceptedGroupOperation): Record<string, unknown> => ({
  ...common("backup", done),
  volume_id: done.volumeIds,
  volume_snapshot_id: done.snapshotIds,
  backup_id: done.backupIds,
});

export const restoredView = (done: AcceptedGroupOperation): Record<string, unknown> => ({
  ...common("restore", done),
  backup_id: done.backupIds,
  volume_id: done.volumeIds,
});

export const deletedView = (done: AcceptedGroupOperation): Record<string, unknown> => ({
  ...common("delete_backup", done),
  backup_id: done.backupIds,
});
