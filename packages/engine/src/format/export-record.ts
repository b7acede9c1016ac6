import { type JsonValue, pythonJson } from "./python-json.ts";

/** The variable contents of a record; everything else in it is null or fixed. */
export interface ExportRecordInput {
  id: string;
  userId: string | null;
  projectId: string | null;
  volumeId: string;
  container: string;
  /** service_metadata in the record. */
  prefix: string;
  parentId: string | null;
  /** In GiB, rounded up. */
  sizeGib: number;
  name: string | null;
  description: string | null;
  service: string;
  objects: number;
  dependents: number;
  snapshotId: string | null;
  dataAt: Date | null;
  createdAt: Date;
  updatedAt: Date | null;
  host: string | null;
  availabilityZone: string | null;
  metadata: Readonly<Record<string, string>>;
  /** Id of an encrypted volume's key in its key manager; only the id is carried. */
  encryptionKeyId?: string | null;
}

/** The `backup_url` that Cinder's import accepts: base64 of a JSON document with all of Cinder's keys, in Cinder's order. */
export function encodeExportRecord(input: ExportRecordInput): string {
  const record: { [key: string]: JsonValue } = {
    driver_info: {},
    id: input.id,
    user_id: input.userId,
    project_id: input.projectId,
    volume_id: input.volumeId,
    host: input.host,
    availability_zone: input.availabilityZone,
    container: input.container,
    parent_id: input.parentId,
    status: "available",
    fail_reason: null,
    size: input.sizeGib,
    display_name: input.name,
    display_description: input.description,
    service_metadata: input.prefix,
    service: input.service,
    object_count: input.objects,
    temp_volume_id: null,
    temp_snapshot_id: null,
    num_dependent_backups: input.dependents,
    snapshot_id: input.snapshotId,
    data_timestamp: recordDate(input.dataAt),
    restore_volume_id: null,
    metadata: { ...input.metadata },
    encryption_key_id: input.encryptionKeyId ?? null,
    created_at: recordDate(input.createdAt),
    updated_at: recordDate(input.updatedAt),
    deleted_at: null,
    deleted: false,
  };
  return Buffer.from(pythonJson(record), "utf8").toString("base64");
}

/** Whole seconds, with Z. */
function recordDate(date: Date | null): string | null {
  return date === null ? null : `${date.toISOString().slice(0, 19)}Z`;
}
