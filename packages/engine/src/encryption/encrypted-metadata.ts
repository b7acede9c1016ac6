import { z } from "zod";
import { type EncryptedLabel, encryptedVersion, framesKey } from "../format/encrypted-label.ts";
import { FormatError, streamJson } from "../format/json-stream.ts";
import { pythonString } from "../format/python-json.ts";

const id = z.string().max(64).nullable();

const labelSchema = z.object({
  backup_id: id,
  created_at: id,
  object_count: z.int().min(0),
  parent_id: id,
  version: z.literal(encryptedVersion),
  volume_bytes: z.int().min(0),
  volume_id: id,
});

const labelKeys = Object.keys(labelSchema.shape);

/** The document, built from chunks of one frame each. */
export async function* encodeEncryptedMetadata(
  frames: AsyncIterable<Uint8Array>,
  label: EncryptedLabel,
): AsyncGenerator<Uint8Array> {
  let before = `{\n  "${framesKey}": [\n`;
  for await (const frame of frames) {
    yield Buffer.from(`${before}    "${Buffer.from(frame.buffer, frame.byteOffset, frame.length).toString("base64")}"`);
    before = ",\n";
  }
  const text = (value: string | null): string => (value === null ? "null" : pythonString(value));
  const lines = [
    "\n  ]",
    `  "backup_id": ${text(label.backupId)}`,
    `  "created_at": ${text(label.createdAt)}`,
    `  "object_count": ${label.objects}`,
    `  "parent_id": ${text(label.parentId)}`,
    `  "version": "${encryptedVersion}"`,
    `  "volume_bytes": ${label.volumeBytes}`,
    `  "volume_id": ${text(label.volumeId)}\n}`,
  ];
  yield Buffer.from(lines.join(",\n"));
}

/** Streams the frames in the document. FormatError for anything that is not such a document. */
export async function* readMetadataFrames(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let version: unknown = null;
  for await (const events of streamJson(body, { keys: ["version"], lists: [framesKey] })) {
    for (const { inList, value } of events) {
      if (!inList) version = value;
      else if (typeof value === "string") yield Buffer.from(value, "base64");
      else throw new FormatError("an encrypted frame is not a string");
    }
  }
  if (version !== encryptedVersion) throw new FormatError("it is not encrypted, as all of its backup is");
}

/** What the document states without a key; null when it is not the metadata of an encrypted backup. */
export async function readEncryptedLabel(body: AsyncIterable<Uint8Array>): Promise<EncryptedLabel | null> {
  const values: Record<string, unknown> = {};
  try {
    for await (const events of streamJson(body, { keys: labelKeys, lists: [framesKey] })) {
      for (const { inList, key, value } of events) if (!inList) values[key] = value;
    }
  } catch (error) {
    if (error instanceof FormatError) return null;
    throw error;
  }
  const parsed = labelSchema.safeParse(values);
  if (!parsed.success) return null;
  const { backup_id, volume_id, parent_id, created_at, volume_bytes, object_count } = parsed.data;
  return {
    backupId: backup_id,
    volumeId: volume_id,
    parentId: parent_id,
    createdAt: created_at,
    volumeBytes: volume_bytes,
    objects: object_count,
  };
}
