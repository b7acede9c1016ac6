import { backupIdPattern, parseStrictJson } from "@tephra/format";
import { type JsonValue, pythonJson } from "./python-json.ts";

/** What a backup records about its volume. */
export interface VolumeMetaInput {
  volumeId: string;
  /** Exact length. */
  volumeBytes: number;
  name: string | null;
  description: string | null;
  /** Id of an encrypted volume's key in its key manager; only the id is carried. */
  encryptionKeyId?: string | null;
  /** The volume's own keys and values. */
  metadata?: Readonly<Record<string, string>>;
}

/** The volume-base-metadata key that holds the exact length. Cinder ignores columns that it does not know. */
const bytesKey = "tephra_bytes";
const gibibyte = 1024 ** 3;

/**
 * The volume_meta string in Cinder's version 2: the columns that Cinder needs for a restore, and the exact length, which the size in GiB
 * cannot express.
 */
export function encodeVolumeMeta(input: VolumeMetaInput): string {
  const document: { [key: string]: JsonValue } = {
    version: 2,
    "volume-base-metadata": {
      id: input.volumeId,
      size: Math.max(1, Math.ceil(input.volumeBytes / gibibyte)),
      display_name: input.name,
      display_description: input.description,
      encryption_key_id: input.encryptionKeyId ?? null,
      volume_type_id: null,
      [bytesKey]: input.volumeBytes,
    },
  };
  const metadata = input.metadata ?? {};
  if (Object.keys(metadata).length > 0) document["volume-metadata"] = { ...metadata };
  return pythonJson(document);
}

/** The exact length recorded in a volume_meta string, or null. Unverified: check it against the backup. */
export function statedVolumeBytes(volumeMeta: string | null): number | null {
  return wholeNumber(property(baseColumns(volumeMeta), bytesKey));
}

/** What the volume columns state. Unverified. */
export interface StatedColumns {
  sizeGib: number | null;
  encryptionKeyId: string | null;
  projectId: string | null;
  userId: string | null;
}

export function statedColumns(volumeMeta: string | null): StatedColumns {
  const base = baseColumns(volumeMeta);
  return {
    sizeGib: wholeNumber(property(base, "size")),
    encryptionKeyId: matching(property(base, "encryption_key_id"), backupIdPattern),
    projectId: matching(property(base, "project_id"), /^[\w.-]{1,255}$/),
    userId: matching(property(base, "user_id"), /^[\w.@-]{1,255}$/),
  };
}

const matching = (value: unknown, form: RegExp): string | null =>
  typeof value === "string" && form.test(value) ? value : null;

function baseColumns(volumeMeta: string | null): unknown {
  if (volumeMeta === null) return undefined;
  try {
    return property(parseStrictJson(volumeMeta), "volume-base-metadata");
  } catch {
    return undefined;
  }
}

function wholeNumber(value: unknown): number | null {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0 ? value : null;
}

function property(value: unknown, key: string): unknown {
  if (typeof value !== "object" || value === null || !Object.hasOwn(value, key)) return undefined;
  return (value as Record<string, unknown>)[key];
}
