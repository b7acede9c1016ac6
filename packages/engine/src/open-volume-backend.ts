import type { VolumeBackend } from "./volume/backend.ts";
import { openFileBackend } from "./volume/file/file-backend.ts";

/** The driver and its configured location. */
export type VolumeBackendSettings = { driver: "file"; path: string };

/** Opens a volume backend. BackendUnavailableError when it is missing or not writable. */
export async function openVolumeBackend(settings: VolumeBackendSettings): Promise<VolumeBackend> {
  switch (settings.driver) {
    case "file":
      return await openFileBackend(settings.path);
    default:
      return settings.driver satisfies never;
  }
}
