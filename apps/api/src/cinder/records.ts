import {
  assertImportable,
  type BackupRow,
  countDependents,
  getBackup,
  InvalidError,
  requestBackupImport,
} from "@tephra/control";
import type { Context } from "../context.ts";
import { badRequest } from "../refusals.ts";
import { type Call, defineAction } from "./call.ts";
import { uuidOf } from "./fields.ts";
import { importRecordBody } from "./schemas.ts";
import { backupSummary } from "./views.ts";

/** Whole seconds, with Z: not the form of the rest of the API (format spec 8.1). */
const recordTime = (time: Date | null): string | null => (time === null ? null : `${time.toISOString().slice(0, 19)}Z`);

/** What another service imports the backup by: Cinder's keys in Cinder's order, and no other (format spec 8.1). */
function exportRecord(row: BackupRow, dependents: number): Record<string, unknown> {
  const record = {
    driver_info: {},
    id: row.id,
    user_id: row.userId,
    project_id: row.projectId,
    volume_id: row.volumeId,
    host: row.host,
    availability_zone: row.availabilityZone,
    container: row.container,
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

/** What of a record is needed before a worker looks at it. `url` is the record again, in strict base64. */
interface FirstSight {
  id: string;
  sizeGib: number;
  url: string;
}

const invalid = (text: string) => badRequest(`Invalid input received: ${text}`);
const sizeGibMax = 2 ** 31 - 1;

/**
 * Python's base64: what is not of the alphabet is skipped, so that almost anything can be decoded.
 *
 * @throws Refusal 400 where Python finds the padding wrong
 */
function decodeBase64(text: string): Buffer {
  let digits = "";
  let padding = 0;
  for (const character of text) {
    if (character === "=") {
      padding += 1;
      if (digits.length % 4 >= 2 && (digits.length % 4) + padding >= 4) return Buffer.from(digits, "base64");
    } else if (/[A-Za-z0-9+/]/.test(character)) {
      digits += character;
      padding = 0;
    }
  }
  if (digits.length % 4 !== 0) throw invalid("Can't decode backup record.");
  return Buffer.from(digits, "base64");
}

/** Reads as much of an export record as Cinder's API does (API spec 6.8). @throws Refusal 400 in its words */
function parseRecord(backupUrl: string): FirstSight {
  const bytes = decodeBase64(backupUrl);
  let record: unknown;
  try {
    record = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw invalid("Can't parse backup record.");
  }
  const property = (key: string): unknown =>
    typeof record === "object" && record !== null && Object.hasOwn(record, key)
      ? (record as Record<string, unknown>)[key]
      : undefined;
  const [id, size] = [property("id"), property("size")];
  if (id === undefined) throw invalid("Provided backup record is missing an id");
  if (size === undefined) throw invalid("Provided backup record is missing size attribute");
  const uuid = typeof id === "string" ? uuidOf(id) : null;
  if (uuid === null) throw invalid("Provided backup record has an id that is no uuid");
  if (!Number.isInteger(size) || (size as number) < 0 || (size as number) > sizeGibMax) {
    throw invalid("Provided backup record has a size that is no number of gigabytes");
  }
  return { id: uuid, sizeGib: size as number, url: bytes.toString("base64") };
}

const load = (context: Context, call: Call) => getBackup(context.database, call.principal, call.params["id"] ?? "");

/** Backups that leave this service, and come to it (API spec 6.7, 6.8). */
export const records = {
  export: defineAction({
    load,
    handle: async (context, call) => {
      const row = await load(context, call);
      if (row.status !== "available") {
        throw new InvalidError("backup", `Backup status must be available and not ${row.status}.`);
      }
      return { status: 200, body: exportRecord(row, await countDependents(context.database, row.id)) };
    },
  }),
  import: defineAction({
    body: importRecordBody,
    handle: async ({ database, config }, call) => {
      const { backup_service: service, backup_url: url } = call.body["backup-record"];
      await assertImportable(database, config, service);
      const request = { service, ...parseRecord(url) };
      const row = await requestBackupImport(database, config, call.principal, request);
      return { status: 201, body: { backup: backupSummary(call, row) } };
    },
  }),
};
