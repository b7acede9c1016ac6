import type { VolumeBackend } from "./volume/backend.ts";
import type { CinderPlace } from "./volume/cinder/cinder-backend.ts";
import { openDeviceBackend } from "./volume/device/device-backend.ts";
import { openFileBackend } from "./volume/file/file-backend.ts";
import { openQemuBackend } from "./volume/qemu/qemu-backend.ts";
import { openRbdBackend, type RbdPlace } from "./volume/rbd/rbd-backend.ts";

/** What each driver is told of its place. */
interface DriverSettings {
  file: { path: string };
  qemu: { path: string; roots?: readonly string[] };
  device: { path: string; roots: readonly string[] };
  rbd: { pool: string } & RbdPlace;
  cinder: CinderPlace;
}

type Driver = keyof DriverSettings;

/** The driver and its configured location. */
export type VolumeBackendSettings = { [Name in Driver]: { driver: Name } & DriverSettings[Name] }[Driver];

/** Every driver. */
const drivers: { [Name in Driver]: (settings: DriverSettings[Name]) => Promise<VolumeBackend> } = {
  file: ({ path }) => openFileBackend(path),
  qemu: ({ path, roots = [] }) => openQemuBackend(path, roots),
  device: ({ path, roots }) => openDeviceBackend(path, roots),
  rbd: ({ pool, ...place }) => openRbdBackend(pool, place),
  // Its HTTP client is large, and looks at the machine's name service as soon as it is loaded.
  cinder: async (place) => (await import("./volume/cinder/cinder-backend.ts")).openCinderBackend(place),
};

/** Opens a volume backend. BackendUnavailableError when it is missing, does not answer or is not writable. */
export async function openVolumeBackend(settings: VolumeBackendSettings): Promise<VolumeBackend> {
  const open = drivers[settings.driver] as (settings: VolumeBackendSettings) => Promise<VolumeBackend>;
  return await open(settings);
}
