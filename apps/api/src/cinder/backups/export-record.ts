import { type BackupRow, isUuid } from "@tephra/control";
import {
  columnMax,
  isContainer,
  isObjectPrefix,
  parseStrictJson,
  textCharactersMax,
  toldContainer,
} from "@tephra/format";
import { z } from "zod";
import { badRequest } from "../../http/refusals.ts";
import { isStorable, lengthOf } from "../../openstack/fields.ts";
import { malformedRequest } from "../../openstack/microversions.ts";
import { decodeBase64 } from "../../openstack/python-base64.ts";

/** Whole seconds with a `Z`, unlike the rest of the API (format 9). */
const recordTime = (time: Date | null): string | null => (time === null ? null : `${time.toISOString().slice(0, 19)}Z`);

/** The record with which another service imports the backup: exactly Cinder's keys, in Cinder's order (format 9). */
export function recordOf(row: BackupRow, dependents: number): Record<string, unknown> {
  const record = {
    driver_info: {},
    id: row.id,
    user_id: row.userId,
    project_id: row.projectId,
    volume_id: row.volumeId,
    host: row.host,
    availability_zone: row.availabilityZone,
    container: toldContainer(row.container),
    parent_id: row.parentId,
    status: row.status,
    fail_reason: row.failReason,
    size: row.sizeGib,
    display_name: row.name,
    display_description: row.description,
    service_metadata: row.serviceMetadata,
    service: row.service,
    object_count: row.objectCount,
    temp_volume_id: null,
    temp_snapshot_id: null,
    num_dependent_backups: dependents,
    snapshot_id: row.snapshotId,
    data_timestamp: recordTime(row.dataTimestamp),
    restore_volume_id: row.restoreVolumeId,
    metadata: row.metadata,
    encryption_key_id: row.encryptionKeyId,
    created_at: recordTime(row.createdAt),
    updated_at: recordTime(row.updatedAt),
    deleted_at: null,
    deleted: false,
  };
  const url = Buffer.from(JSON.stringify(record), "utf8").toString("base64");
  return { "backup-record": { backup_service: row.service, backup_url: url } };
}

/** The parts of a record needed before a worker examines the backup it names. `url` is the record again, in strict base64. */
interface FirstSight {
  id: string;
  parentId: string | null;
  sizeGib: number;
  url: string;
}

const invalid = (text: string) => badRequest(`Invalid input received: ${text}`);

const isObject = (value: unknown): value is object =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const count = z.int().min(0).max(columnMax);
const text = z.string().refine((value) => lengthOf(value) <= textCharactersMax && isStorable(value));
const id = z.string().refine(isUuid);
const dateForm = /^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)?$/;
const date = z.string().refine((value) => dateForm.test(value) && !Number.isNaN(Date.parse(value)));

/** Every key that an import uses, with its required value. Other keys are ignored, whatever they hold. */
const fields: Readonly<Record<string, readonly [what: string, schema: z.ZodType]>> = {
  id: ["uuid", id],
  size: ["number of gigabytes", count],
  container: ["plain name beneath the repository", text.refine((value) => value === "" || isContainer(value))],
  service_metadata: ["prefix of a backup's objects", z.string().refine(isObjectPrefix)],
  object_count: ["number of objects", count],
  display_name: ["text of at most 255 characters", text.nullable()],
  display_description: ["text of at most 255 characters", text.nullable()],
  parent_id: ["uuid", id.nullable()],
  volume_id: ["uuid", id.nullable()],
  snapshot_id: ["uuid", id.nullable()],
  encryption_key_id: ["uuid", id.nullable()],
  service: ["class path", text.nullable()],
  metadata: ["set of short texts", z.record(text, text).nullable()],
  created_at: ["date", date.nullable()],
  data_timestamp: ["date", date.nullable()],
};

/**
 * Reads an export record as Cinder's API does (cinder-api 6.9), and rejects records that no import could complete: their contents are
 * untrusted. Missing keys other than `id` and `size` are reported by the worker, as in Cinder.
 *
 * @throws Refusal 400 with Cinder's message, or naming the first key with an invalid value
 */
export function parseRecord(backupUrl: string): FirstSight {
  const bytes = decodeBase64(backupUrl) ?? Buffer.alloc(0);
  let document: unknown;
  try {
    document = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    // Different parsers read duplicate keys differently.
    if (isObject(document)) document = parseStrictJson(bytes);
  } catch {
    throw invalid("Can't parse backup record.");
  }
  if (document === null || ["number", "boolean"].includes(typeof document)) throw malformedRequest();
  const record = new Map(Object.entries(isObject(document) ? document : {}));
  if (!record.has("id")) throw invalid("Provided backup record is missing an id");
  if (!record.has("size")) throw invalid("Provided backup record is missing size attribute");
  for (const [key, [what, schema]] of Object.entries(fields)) {
    if (record.has(key) && !schema.safeParse(record.get(key)).success) {
      throw invalid(`Provided backup record has an unusable ${key}: it is no ${what}`);
    }
  }
  return {
    id: String(record.get("id")).toLowerCase(),
    parentId: (record.get("parent_id") as string | null | undefined)?.toLowerCase() ?? null,
    sizeGib: record.get("size") as number,
    url: bytes.toString("base64"),
  };
}
