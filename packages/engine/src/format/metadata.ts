import { z } from "zod";
import { type Compression, compressions, parseCompression } from "../codec/compression.ts";
import { EncryptionKeyMissingError } from "../errors.ts";
import { encryptedVersion, framesKey } from "./encrypted-label.ts";
import { FormatError, type KnownElements, streamJson } from "./json-stream.ts";
import { type BackupLayout, dataName, dataNumber } from "./layout.ts";
import type { ObjectEntry } from "./object-entry.ts";
import { pythonString } from "./python-json.ts";

/** Keys sorted, indent 2, `,\n` and `: `, \uXXXX for everything but printable ASCII, no newline at the end. */
const version = "1.0.0";
/** No store accepts larger objects. Only a sanity bound: it allocates nothing. */
const objectLengthMax = 2 ** 42;

/** The parts of `_metadata` outside its entries. */
export interface MetadataHeader {
  backupId: string | null;
  volumeId: string | null;
  /** undefined when the document does not say. */
  parentId: string | null | undefined;
  createdAt: string | null;
  name: string | null;
  description: string | null;
  volumeMeta: string | null;
}

const textOrNull = z
  .string()
  .max(1024 * 1024)
  .nullable();
const scalarSchemas = {
  backup_id: textOrNull,
  volume_id: textOrNull,
  parent_id: textOrNull,
  created_at: textOrNull,
  backup_name: textOrNull,
  backup_description: textOrNull,
  volume_meta: textOrNull,
  version: z.string().max(64),
} as const;
const scalarKeys = Object.keys(scalarSchemas) as (keyof typeof scalarSchemas)[];

const entryBody = z.object({
  offset: z.int().min(0),
  // Cinder restores without the next two, so they may be missing; if present, they must be valid.
  length: z.int().min(1).max(objectLengthMax).optional(),
  md5: z
    .string()
    .regex(/^[0-9a-f]{32}$/)
    .optional(),
  compression: z.string(),
});

/** The text before the first entry. */
export function metadataHead(layout: BackupLayout): string {
  return [
    "{",
    `  "backup_description": ${textValue(layout.description)},`,
    `  "backup_id": ${pythonString(layout.backupId)},`,
    `  "backup_name": ${textValue(layout.name)},`,
    `  "created_at": ${pythonString(layout.createdAt)},`,
    '  "objects": [',
  ].join("\n");
}

/** The text after the last entry. */
export function metadataTail(layout: BackupLayout): string {
  return [
    "],",
    `  "parent_id": ${textValue(layout.parentId)},`,
    `  "version": "${version}",`,
    `  "volume_id": ${pythonString(layout.volumeId)},`,
    `  "volume_meta": ${textValue(layout.volumeMeta)}`,
    "}",
  ].join("\n");
}

/** One entry, without the comma and newline that separate entries. */
export function metadataEntry(prefix: string, entry: ObjectEntry): string {
  return `    {
      ${pythonString(dataName(prefix, entry.number))}: {
        "compression": ${pythonString(entry.compression)},
        "length": ${entry.length},
        "md5": ${textValue(entry.md5)},
        "offset": ${entry.offset}
      }
    }`;
}

/** Determines the decoded length of an object whose metadata does not state it. */
export type MeasureEntry = (object: { number: number; compression: Compression }) => Promise<number>;

/**
 * Decodes `_metadata` as a stream: yields the entries in batches and returns the header fields around them. Entries are checked one by
 * one: names of exactly this prefix with rising numbers, rising offsets, no overlap, sane sizes. Throws FormatError,
 * UnsupportedCompressionError for a known label that is not decoded here, and EncryptionKeyMissingError for the metadata of an encrypted
 * backup read as stored. The version follows the entries and is checked last: do nothing irreversible before. Entries of the form that Cinder and
 * metadataEntry write are read in bulk, unless `bulk` is false: that is for comparing the two.
 */
export async function* readMetadata(
  body: AsyncIterable<Uint8Array>,
  prefix: string,
  measure: MeasureEntry,
  { bulk = true }: { bulk?: boolean } = {},
): AsyncGenerator<ObjectEntry[], MetadataHeader> {
  const scalars = new Map<string, string | null>();
  let previous: ObjectEntry | null = null;
  const known = bulk ? knownEntries(prefix) : null;
  for await (const events of streamJson(body, { keys: scalarKeys, lists: ["objects", framesKey], known })) {
    const entries: ObjectEntry[] = [];
    for (const event of events) {
      if (event.key === framesKey) continue;
      if (event.inList) {
        const entry =
          event.value instanceof KnownEntry ? event.value.entry : await parseEntry(event.value, { prefix, measure });
        previous = inOrder(entry, previous, prefix);
        entries.push(previous);
      } else {
        scalars.set(event.key, parseScalar(event.key, event.value));
      }
    }
    if (entries.length > 0) yield entries;
  }
  const stated = scalars.get("version");
  if (stated === encryptedVersion) throw new EncryptionKeyMissingError(withoutKey(scalars.get("backup_id") ?? prefix));
  if (stated !== version) throw new FormatError(`No support to restore backup version ${stated ?? "(none)"}`);
  return {
    backupId: scalars.get("backup_id") ?? null,
    volumeId: scalars.get("volume_id") ?? null,
    parentId: scalars.get("parent_id"),
    createdAt: scalars.get("created_at") ?? null,
    name: scalars.get("backup_name") ?? null,
    description: scalars.get("backup_description") ?? null,
    volumeMeta: scalars.get("volume_meta") ?? null,
  };
}

const withoutKey = (backupId: string): string =>
  `Backup ${backupId} is encrypted: its repository was opened without master keys, or the backup's own key object is gone.`;

function parseScalar(key: string, value: unknown): string | null {
  const parsed = scalarSchemas[key as keyof typeof scalarSchemas].safeParse(value);
  if (!parsed.success) throw new FormatError(`the value of ${key} is not a string`);
  return parsed.data;
}

/** An entry that was read in bulk: not what JSON could give. */
class KnownEntry {
  readonly entry: ObjectEntry;

  constructor(entry: ObjectEntry) {
    this.entry = entry;
  }
}

/** Entries as metadataEntry writes them, with values that parseEntry would accept. */
function knownEntries(prefix: string): KnownElements {
  const label = compressions.join("|");
  const form = new RegExp(
    `\\n {4}\\{\\n {6}"${pythonString(prefix)
      .slice(1, -1)
      .replace(/[^A-Za-z0-9_]/g, "\\$&")}-(\\d{5}|[1-9]\\d{5,14})": \\{\\n` +
      ` {8}"compression": "(${label})",\\n {8}"length": ([1-9]\\d{0,12}),\\n` +
      ` {8}"md5": "([0-9a-f]{32})",\\n {8}"offset": (0|[1-9]\\d{0,15})\\n {6}\\}\\n {4}\\}(,?)`,
    "y",
  );
  const read: KnownElements["read"] = (text, at) => {
    form.lastIndex = at;
    const found = form.exec(text);
    if (found === null) return null;
    const [, digits, compression, lengthText, md5 = null, offsetText, comma] = found;
    const [number, length, offset] = [Number(digits), Number(lengthText), Number(offsetText)];
    if (length > objectLengthMax || !Number.isSafeInteger(offset + length)) return null;
    const entry = { number, offset, length, md5, compression: compression as Compression };
    return { value: new KnownEntry(entry), end: form.lastIndex, comma: comma === "," };
  };
  return { list: "objects", opening: '"objects": [', bytesMax: knownEntryBytesMax, read };
}

/** Of a prefix of 255 bytes, all of them escaped, and the largest numbers. */
const knownEntryBytesMax = 2048;

async function parseEntry(
  value: unknown,
  { prefix, measure }: { prefix: string; measure: MeasureEntry },
): Promise<ObjectEntry> {
  const pairs = typeof value === "object" && value !== null && !Array.isArray(value) ? Object.entries(value) : [];
  const [pair] = pairs;
  if (pair === undefined || pairs.length !== 1) {
    throw new FormatError("an entry of objects does not have exactly one name");
  }
  const [name, rawBody] = pair;
  const shown = JSON.stringify(name.slice(0, 300));
  const number = dataNumber(prefix, name);
  if (number === null) throw new FormatError(`the entry ${shown} is not a name of this backup`);
  const parsed = entryBody.safeParse(rawBody);
  if (!parsed.success) throw new FormatError(`the entry ${shown} has a missing or impossible value`);
  const { offset, md5 = null } = parsed.data;
  const compression = parseCompression(parsed.data.compression);
  const length = parsed.data.length ?? (await measure({ number, compression }));
  if (!Number.isSafeInteger(offset + length)) throw new FormatError(`the entry ${shown} ends beyond any volume`);
  return { number, offset, length, md5, compression };
}

/** The entry, unless it is out of order. */
function inOrder(entry: ObjectEntry, previous: ObjectEntry | null, prefix: string): ObjectEntry {
  if (previous === null) return entry;
  if (entry.number > previous.number && entry.offset >= previous.offset + previous.length) return entry;
  const shown = JSON.stringify(dataName(prefix, entry.number));
  throw new FormatError(`the entry ${shown} is out of order or overlaps the one before`);
}

function textValue(text: string | null): string {
  return text === null ? "null" : pythonString(text);
}
