import { parseStrictJson } from "@tephra/format";
import { z } from "zod";
import { InvalidError } from "../errors.ts";
import type { Volume } from "../rows/volumes.ts";

/** Version of the document from which Cinder restores names, metadata and encryption (format 4.1). */
const version = 2;

const isoSeconds = (at: Date | null): string | null => (at ? at.toISOString().slice(0, 23) : null);

/** What of a volume goes into the document; a row has no properties of an image. */
export type DescribedVolume = Pick<
  Volume,
  | "id"
  | "userId"
  | "projectId"
  | "sizeGib"
  | "previousStatus"
  | "availabilityZone"
  | "name"
  | "description"
  | "bootable"
  | "createdAt"
  | "launchedAt"
> & { metadata: unknown; imageMetadata?: Record<string, string> };

/**
 * The JSON document, as a string, that goes into a backup's `_metadata`: the volume's columns as Cinder names them.
 * Never a secret: `provider_auth` is always null.
 */
export function volumeMeta(volume: DescribedVolume, volumeBytes: number): string {
  const metadata = volume.metadata as Record<string, string>;
  const { imageMetadata = {} } = volume;
  return JSON.stringify({
    version,
    "volume-base-metadata": {
      id: volume.id,
      user_id: volume.userId,
      project_id: volume.projectId,
      size: volume.sizeGib,
      status: "backing-up",
      attach_status: volume.previousStatus === "in-use" ? "attached" : "detached",
      availability_zone: volume.availabilityZone,
      display_name: volume.name,
      display_description: volume.description,
      bootable: volume.bootable,
      multiattach: false,
      encryption_key_id: null,
      volume_type_id: null,
      provider_auth: null,
      created_at: isoSeconds(volume.createdAt),
      launched_at: isoSeconds(volume.launchedAt),
      tephra_bytes: volumeBytes,
    },
    ...(Object.keys(metadata).length > 0 ? { "volume-metadata": metadata } : {}),
    ...(Object.keys(imageMetadata).length > 0 ? { "volume-glance-metadata": imageMetadata } : {}),
  });
}

const Stored = z.object({
  version: z.union([z.literal(1), z.literal(2)]),
  "volume-base-metadata": z
    .object({
      display_name: z.string().nullish().catch(null),
      display_description: z.string().nullish().catch(null),
      bootable: z.boolean().nullish().catch(null),
    })
    .nullish(),
  "volume-metadata": z.record(z.string(), z.string()).nullish().catch(null),
  "volume-glance-metadata": z.record(z.string(), z.unknown()).nullish().catch(null),
});

/** What a chain says about the volume that it is a backup of. Null, or false, where it says nothing. */
export interface StoredVolume {
  name: string | null;
  description: string | null;
  metadata: Record<string, string> | null;
  bootable: boolean;
  /** Of the image that the volume was made of, by the newest backup that has any. */
  imageMetadata: Record<string, string> | null;
}

/**
 * Merges the documents of a chain, newest first. As Cinder restores layer by layer from the full backup up, and names only a volume
 * that has no name yet, the oldest name wins, and the newest metadata (format 4.1).
 *
 * @throws InvalidError for a document of an unknown version
 */
export function storedVolume(documents: readonly (string | null)[]): StoredVolume {
  const layers = documents.flatMap((document) => (document === null ? [] : [parseStored(document)]));
  const base = layers.map((layer) => layer["volume-base-metadata"]).findLast((columns) => columns?.display_name);
  const newest = layers.find((layer) => layer["volume-metadata"])?.["volume-metadata"];
  return {
    name: base?.display_name ?? null,
    description: base?.display_description ?? null,
    metadata: newest ?? null,
    imageMetadata: textsOf(layers.find((layer) => layer["volume-glance-metadata"])?.["volume-glance-metadata"]),
    bootable: layers.some((layer) => layer["volume-glance-metadata"] || layer["volume-base-metadata"]?.bootable),
  };
}

/** Cinder's are all texts. */
const textsOf = (found: Record<string, unknown> | null | undefined): Record<string, string> | null =>
  found
    ? Object.fromEntries(Object.entries(found).filter((pair): pair is [string, string] => typeof pair[1] === "string"))
    : null;

function parseStored(document: string): z.infer<typeof Stored> {
  const parsed = Stored.safeParse(jsonOf(document));
  if (parsed.success) return parsed.data;
  throw new InvalidError("backup", "Metadata restore failed due to incompatible version.");
}

function jsonOf(text: string): unknown {
  try {
    return parseStrictJson(text);
  } catch {
    return null;
  }
}

/** Cinder's names for volumes created by a restore: the stored name replaces them (format 4.1). */
const madeForRestore = /^(restore_backup_.*)?$/s;

/** The columns of a restored volume that are replaced by stored ones. */
export function restoredColumns(
  volume: Volume,
  stored: Omit<StoredVolume, "imageMetadata">,
): Partial<Pick<Volume, "name" | "description" | "bootable">> {
  const renamed = stored.name !== null && madeForRestore.test(volume.name ?? "");
  return {
    ...(renamed && { name: stored.name, description: stored.description }),
    ...(stored.bootable && { bootable: true }),
  };
}
