import type { VolumeBackend } from "./volume/backend.ts";
import { openFileBackend } from "./volume/file/file-backend.ts";

/** Which driver, and what the configuration says of its place. */
export type VolumeBackendSettings = { driver: "file"; path: string };

/** Opens the place where volumes are. BackendUnavailableError when it is not there or cannot be written. */
export async function openVolumeBackend(settings: VolumeBackendSettings): Promise<VolumeBackend> {
  switch (settings.driver) {
    case "file":
      return await openFileBackend(settings.path);
    default:
      return settings.driver satisfies never;
  }
}
