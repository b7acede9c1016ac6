import {
  backupIdPattern,
  columnMax,
  containerBytesMax,
  idOfPrefix,
  parseStrictJson,
  rootContainer,
} from "@tephra/format";
import { z } from "zod";
import type { BackupReference } from "../chain/backup-reference.ts";
import { EngineError, IncompleteRecordError, InvalidRecordError } from "../errors.ts";
import { checkPrefix } from "../format/layout.ts";
import { parseContainer, type Repository, recordsContainer } from "../repository/repository.ts";
import type { WriteContext } from "../run/run-context.ts";
import { isStored } from "./list-backups.ts";

/** The validated contents of a record. Fields that an import ignores are left out. */
export interface ImportRecord {
  id: string;
  volumeId: string | null;
  parentId: string | null;
  /** Null when the record's container is an empty string: see locateRecord. */
  container: string | null;
  /** service_metadata in the record. */
  prefix: string;
  /** In GiB. */
  sizeGib: number;
  objects: number;
  name: string | null;
  description: string | null;
  /** The driver's class path; null when the record has none. */
  service: string | null;
  snapshotId: string | null;
  encryptionKeyId: string | null;
  metadata: Readonly<Record<string, string>>;
  /** Null when the record has no date or an invalid one. */
  createdAt: Date | null;
  dataAt: Date | null;
}

/** A record takes about two kilobytes; descriptions and metadata are bounded by the service that wrote them. */
const recordBytesMax = 1024 * 1024;
/** What a database can store: no NUL, no lone surrogate. */
const storable = (value: string): boolean => !value.includes("\0") && value.isWellFormed();
const text = z.string().max(4096).refine(storable, "characters that cannot be stored").nullable();
const id = z.string().regex(backupIdPattern);

/** Old releases lack newer keys; Cinder, too, requires these seven. Unknown keys are ignored. */
const schema = z.object({
  id,
  container: z.string().max(containerBytesMax),
  service_metadata: z.string().max(1024),
  size: z.int().min(0).max(columnMax),
  object_count: z.int().min(0),
  display_name: text,
  display_description: text,
  parent_id: id.nullish(),
  volume_id: id.nullish(),
  snapshot_id: id.nullish(),
  service: text.optional(),
  encryption_key_id: id.nullish(),
  metadata: z.record(z.string().max(255).refine(storable), z.string().max(65_536).refine(storable)).nullish(),
  created_at: text.optional(),
  data_timestamp: text.optional(),
});

/** Keys without which Cinder refuses an import. */
const required = [
  "display_name",
  "display_description",
  "container",
  "size",
  "service_metadata",
  "object_count",
  "id",
] as const satisfies (keyof z.infer<typeof schema>)[];

/**
 * Parses an export record (`backup_url`): base64 of a JSON document. Its contents are untrusted: the size is bounded, and names are
 * accepted only under the naming rules. InvalidRecordError says what is wrong, IncompleteRecordError what is missing.
 */
export function decodeExportRecord(url: string): ImportRecord {
  const base64 = url.trim();
  if (base64.length > recordBytesMax) refuse(`it is longer than ${recordBytesMax} bytes`);
  if (base64 === "" || !/^[A-Za-z0-9+/]+={0,2}$/.test(base64) || base64.length % 4 !== 0) refuse("it is not base64");
  const document = parseJson(base64);
  const missing = required.filter((key) => !Object.hasOwn(document, key));
  if (missing.length > 0) throw new IncompleteRecordError(missing);
  const parsed = schema.safeParse(document);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    return refuse(`${issue?.path.join(".") || "the document"}: ${issue?.message.slice(0, 200)}`);
  }
  const record = parsed.data;
  return {
    id: record.id,
    volumeId: record.volume_id ?? null,
    parentId: record.parent_id ?? null,
    container: record.container === "" ? null : named(() => parseContainer(record.container)),
    prefix: named(() => checkPrefix(record.service_metadata)),
    sizeGib: record.size,
    objects: record.object_count,
    name: record.display_name,
    description: record.display_description,
    service: record.service ?? null,
    snapshotId: record.snapshot_id ?? null,
    encryptionKeyId: record.encryption_key_id ?? null,
    metadata: record.metadata ?? {},
    createdAt: dateOf(record.created_at),
    dataAt: dateOf(record.data_timestamp),
  };
}

/** Dates in a record are UTC, with or without a trailing Z. */
function dateOf(stated: string | null | undefined): Date | null {
  if (stated == null) return null;
  const date = new Date(/(?:Z|[+-]\d\d:\d\d)$/.test(stated) ? stated : `${stated}Z`);
  const year = date.getUTCFullYear();
  return year >= 1970 && year <= 9999 ? date : null;
}

/**
 * Whether the driver `own` can read a backup of service `stated`, by Cinder's rule: the full class path must start with the stated one,
 * so that module names of old releases match. The Google driver used to have another path.
 */
export function serviceMatches(stated: string, own: string): boolean {
  const renamed = stated.replace(/^cinder\.backup\.drivers\.google(?=\.|$)/, "cinder.backup.drivers.gcs");
  return renamed !== "" && own.startsWith(renamed);
}

/**
 * Parses a record supplied by a user: a bare backup_url, or JSON with `backup_service` and `backup_url` in any of the shapes that the API
 * and the command lines print.
 */
export function parseRecordText(input: string): { service: string | null; url: string } {
  const trimmed = input.trim();
  if (!trimmed.startsWith("{")) return { service: null, url: trimmed };
  if (trimmed.length > 2 * recordBytesMax) refuse("it is too long");
  let value: unknown;
  try {
    value = parseStrictJson(trimmed, 2 * recordBytesMax);
  } catch (error) {
    return refuse(`it is neither base64 nor JSON that can be used: ${(error as Error).message}`, error);
  }
  const record = z.object({ backup_service: z.string().max(255), backup_url: z.string() });
  const wrapped = z.union([
    record,
    z.object({ "backup-record": record }).transform((outer) => outer["backup-record"]),
    z.object({ export_record: record }).transform((outer) => outer.export_record),
    z.object({ backup: z.object({ export_record: record }) }).transform((outer) => outer.backup.export_record),
  ]);
  const parsed = wrapped.safeParse(value);
  if (!parsed.success) return refuse("it has no backup_service and backup_url");
  return { service: parsed.data.backup_service, url: parsed.data.backup_url };
}

/** Stores a record in the repository, so that its backup can be found by the record's id. Idempotent. */
export async function keepRecord(repository: Repository, url: string, ctx: WriteContext): Promise<ImportRecord> {
  const record = decodeExportRecord(url);
  await repository.ensureContainer(recordsContainer);
  await repository.putIfAbsent({ container: recordsContainer, name: record.id }, Buffer.from(url.trim()), ctx);
  return record;
}

/** The stored record for an id, with the location of its backup; null when there is none. */
export async function findRecord(
  repository: Repository,
  backupId: string,
  signal: AbortSignal,
): Promise<{ record: ImportRecord; reference: BackupReference } | null> {
  if (!id.safeParse(backupId).success) return null;
  const chunks: Uint8Array[] = [];
  try {
    const part = { length: recordBytesMax, signal };
    for await (const chunk of repository.get({ container: recordsContainer, name: backupId }, part)) chunks.push(chunk);
  } catch (error) {
    if (error instanceof EngineError && error.code === "object_missing") return null;
    throw error;
  }
  const record = decodeExportRecord(Buffer.concat(chunks).toString("latin1"));
  return { record, reference: await locateRecord(record, repository) };
}

/**
 * Locates the backup of a record, whose id may differ from the one in its object names. Without a container, the backup is either where
 * Cinder's driver puts backups without one, in the repository's root folder, or in the backup's default container.
 */
export async function locateRecord(record: ImportRecord, repository: Repository): Promise<BackupReference> {
  const { id: backupId, prefix, container } = record;
  const reference = { backupId, repository, prefix };
  if (container !== null) return { ...reference, container };
  const root = { ...reference, container: rootContainer };
  if (repository.storage === "files" && (await isStored(root))) return root;
  return { ...reference, container: repository.defaultContainer(idOfPrefix(prefix)) };
}

function parseJson(base64: string): Record<string, unknown> {
  try {
    return parseStrictJson(Buffer.from(base64, "base64"));
  } catch (error) {
    return refuse(`it is not the base64 of a JSON document that can be used: ${(error as Error).message}`, error);
  }
}

function named<Name>(parse: () => Name): Name {
  try {
    return parse();
  } catch (error) {
    return refuse((error as Error).message.replace(/\.$/, ""), error);
  }
}

function refuse(reason: string, cause?: unknown): never {
  throw new InvalidRecordError(reason, { cause });
}
