import type { Volume } from "./generated/client.ts";

/** The version of the document that Cinder restores names, metadata and encryption from (format spec 9). */
const version = 2;

const isoSeconds = (at: Date | null): string | null => (at ? at.toISOString().slice(0, 23) : null);

/**
 * The JSON document, as a string, that goes into a backup's `_metadata`: the volume's columns as Cinder names them.
 * Never a secret: `provider_auth` is always null.
 */
export function volumeMeta(volume: Volume, volumeBytes: number): string {
  const metadata = volume.metadata as Record<string, string>;
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
  });
}
