import { join } from "node:path";
import { z } from "zod";
import { shown } from "./settings.ts";

/** Of a repository or volume backend. */
export const placeName = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/, "must be a short name of letters, digits, '.', '_' or '-'")
  .register(shown);

/** Raw images in a folder. */
const FileBackend = z.strictObject({
  name: placeName,
  driver: z.literal("file"),
  path: z.string().min(1).register(shown),
});

/** qcow2 images in a folder. `roots`: where images may be that become volumes and stay where they are. */
const QemuBackend = z.strictObject({
  name: placeName,
  driver: z.literal("qemu"),
  path: z.string().min(1).register(shown),
  roots: z.array(z.string().startsWith("/").register(shown)).default([]),
});

/** Block devices below `roots` that exist and stay where they are. `path`: the folder of the records which is which volume. */
const DeviceBackend = z.strictObject({
  name: placeName,
  driver: z.literal("device"),
  path: z.string().min(1).register(shown),
  roots: z.array(z.string().startsWith("/").register(shown)).min(1),
});

/** As Ceph allows them, without what separates names where an image is named: `POOL/NAMESPACE/IMAGE@SNAPSHOT`. */
const cephName = z
  .string()
  .regex(/^[^/@\p{C}]{1,128}$/u, "must be a name without '/' and '@'")
  .register(shown);

/** A cluster of Ceph's, and as whom. What is not given is Ceph's own default. */
const cephAccess = {
  conf: z.string().startsWith("/").optional(),
  user: z
    .string()
    .regex(/^[A-Za-z0-9._-]{1,255}$/, "must be a user of Ceph's, without 'client.'")
    .optional(),
  keyring: z.string().startsWith("/").optional(),
};

/** A pool of images in Ceph, or a namespace of one. */
const RbdBackend = z.strictObject({
  name: placeName,
  driver: z.literal("rbd"),
  pool: cephName,
  namespace: cephName.optional(),
  ...cephAccess,
});

/**
 * The volumes of a real Cinder, which has them. `service`: who makes clones there, in a project of its own; null: the user of
 * `auth.keystone`. `url`: null: from Keystone's catalogue, by `region` and `interface`.
 */
const CinderBackend = z.strictObject({
  name: placeName,
  driver: z.literal("cinder"),
  url: z
    .string()
    .regex(/^https?:\/\/[^\s]+$/, "must be an http:// or https:// URL")
    .nullable()
    .default(null),
  region: z.string().min(1).register(shown).nullable().default(null),
  interface: z.enum(["public", "internal", "admin"]).default("internal"),
  service: z
    .strictObject({
      username: z.string().min(1),
      password: z.string().min(1),
      user_domain: z.string().min(1).default("Default"),
      project: z.string().min(1).default("tephra"),
      project_domain: z.string().min(1).default("Default"),
    })
    .nullable()
    .default(null),
  /** Folders below which files may be that Cinder attaches as `local`. */
  local_roots: z.array(z.string().startsWith("/").register(shown)).default([]),
  /** The clusters, and in each the pools, where images may be that Cinder attaches as `rbd`. */
  ceph: z
    .array(
      z.strictObject({
        pools: z.array(cephName).min(1),
        ...cephAccess,
        /** Whose volumes are snapshotted in Ceph itself, as Cinder names their backends; `*` is anything. */
        direct_hosts: z
          .array(z.string().regex(/^[A-Za-z0-9._*-]+@[A-Za-z0-9._*-]+$/, "must be like HOST@BACKEND"))
          .default([]),
      }),
    )
    .default([]),
  /** The folder where shares are mounted that Cinder attaches as `nfs`, each in one that is named after the MD5 of its export. */
  nfs_mount_base: z.string().startsWith("/").nullable().default(null),
  /** The addresses where portals may be that Cinder attaches as `iscsi`. */
  iscsi_portals: z
    .array(
      z.union([z.ipv4(), z.ipv6(), z.cidrv4(), z.cidrv6()], "must be an address or a subnet, such as 192.0.2.0/24"),
    )
    .default([]),
  /** What targets of iSCSI know us by begins so. */
  initiator: z
    .string()
    .regex(
      /^iqn\.[0-9]{4}-[0-9]{2}\.[a-z0-9.-]{1,120}(?::[a-z0-9.:-]{1,40})?$/,
      "must be a name such as iqn.2026-11.org.example",
    )
    .default("iqn.2026-11.io.tephra"),
  wait: z
    .strictObject({
      /** For a clone, and for a Cinder that does not answer. */
      clone_minutes: z.number().positive().default(360),
      delete_minutes: z.number().positive().default(60),
      /** A restore whose request has not reserved its volume within this time has lost its API process. */
      prepare_seconds: z.number().positive().default(600),
    })
    .prefault({}),
  /** Whether requests that are not about backups go on to this Cinder, so that Tephra can be its endpoint. */
  forward: z.boolean().default(false),
  /** Whether a volume shows `restoring-backup` while it is written. */
  mark_restoring: z.boolean().default(true),
});

/** The settings of a volume backend, by its driver. The engine opens what they describe (openVolumeBackend). */
export const VolumeBackend = z.discriminatedUnion("driver", [
  FileBackend,
  QemuBackend,
  DeviceBackend,
  RbdBackend,
  CinderBackend,
]);

export type VolumeBackendConfig = z.infer<typeof VolumeBackend>;
type SettingsOf<Driver extends VolumeBackendConfig["driver"]> = Extract<VolumeBackendConfig, { driver: Driver }>;

/** What a program that opens no backend must know of each driver: everything else depends on the engine's contract alone. */
interface DriverFacts<Settings> {
  /** The folder that holds its volumes, which a new installation creates; null when it has none. */
  folder(settings: Settings): string | null;
  /** The file or device with a volume's raw bytes, as a client on a machine of the service attaches it; null when there is none. */
  devicePath(settings: Settings, volumeId: string): string | null;
  /** What clients see as its protocol. */
  protocol: "file" | "block" | "ceph";
  /** Whether volumes and snapshots of them can be made in it; where not, its volumes exist already and are adopted. */
  provisions: boolean;
  /**
   * Where another service alone knows, makes and removes its volumes, as a user's token says: whom to ask. There are no rows of them, and
   * there is no other backend beside it. Null where they are ours.
   */
  beside(settings: Settings): Beside | null;
  /** What its volumes are as files: raw bytes, or images with layers of their own (qcow2). */
  imageFormat: "raw" | "cow";
  /**
   * How snapshots of several volumes can be taken together, at one instant: as copies, of files that a hypervisor can be told to write
   * elsewhere meanwhile; or as layers, which a hypervisor can be told to write from one moment on.
   */
  snapshotsTogether: "copies" | "layers" | "never";
  /** Whether a volume can have a snapshot's bytes again. */
  goesBack: boolean;
  /**
   * Where a volume is one image file that a hypervisor has open, which backups of machines by changed blocks need: the folders, besides the
   * image's own, in which those may be that it builds on. Null where it is not.
   */
  imageRoots(settings: Settings): readonly string[] | null;
}

/** The service that has the volumes, and what it is asked as where no user asks; null: as the user of `auth.keystone`. */
type Beside = z.infer<typeof CinderBackend>;

const facts: { [Driver in VolumeBackendConfig["driver"]]: DriverFacts<SettingsOf<Driver>> } = {
  file: {
    folder: ({ path }) => path,
    devicePath: ({ path }, id) => join(path, `volume-${id}`),
    protocol: "file",
    provisions: true,
    beside: () => null,
    imageFormat: "raw",
    snapshotsTogether: "copies",
    goesBack: true,
    imageRoots: () => [],
  },
  // Its files are qcow2 images: attached as raw bytes, they would be destroyed.
  qemu: {
    folder: ({ path }) => path,
    devicePath: () => null,
    protocol: "file",
    provisions: true,
    beside: () => null,
    imageFormat: "cow",
    snapshotsTogether: "layers",
    goesBack: true,
    imageRoots: ({ path, roots }) => [path, ...roots],
  },
  // Only its workers know which device a volume is.
  device: {
    folder: ({ path }) => path,
    devicePath: () => null,
    protocol: "block",
    provisions: false,
    beside: () => null,
    imageFormat: "raw",
    snapshotsTogether: "never",
    goesBack: false,
    imageRoots: () => null,
  },
  rbd: {
    folder: () => null,
    devicePath: () => null,
    protocol: "ceph",
    provisions: true,
    beside: () => null,
    imageFormat: "raw",
    snapshotsTogether: "never",
    goesBack: false,
    imageRoots: () => null,
  },
  cinder: {
    folder: () => null,
    devicePath: () => null,
    protocol: "block",
    provisions: false,
    beside: (settings) => settings,
    imageFormat: "raw",
    snapshotsTogether: "never",
    goesBack: false,
    imageRoots: () => null,
  },
};

const factsOf = ({ driver }: VolumeBackendConfig): DriverFacts<VolumeBackendConfig> =>
  facts[driver] as DriverFacts<VolumeBackendConfig>;

/** The service beside which this installation works, see DriverFacts; null: it has volumes of its own. */
export const besideIn = (backends: readonly VolumeBackendConfig[]): Beside | null =>
  backends.map((settings) => factsOf(settings).beside(settings)).find((found) => found !== null) ?? null;

/** See DriverFacts. */
export const backendFolder = (settings: VolumeBackendConfig): string | null => factsOf(settings).folder(settings);

/** See DriverFacts. */
export const devicePath = (settings: VolumeBackendConfig, volumeId: string): string | null =>
  factsOf(settings).devicePath(settings, volumeId);

/** See DriverFacts. */
export const protocolOf = (settings: VolumeBackendConfig): DriverFacts<VolumeBackendConfig>["protocol"] =>
  factsOf(settings).protocol;

/** See DriverFacts, of the backend of that name; `raw` for one that is no longer configured. */
export const formatIn = (backends: readonly VolumeBackendConfig[], name: string): "raw" | "cow" => {
  const settings = backends.find((backend) => backend.name === name);
  return settings === undefined ? "raw" : factsOf(settings).imageFormat;
};

/** See DriverFacts. */
export const provisions = (settings: VolumeBackendConfig): boolean => factsOf(settings).provisions;

/** See DriverFacts. */
export const snapshotsTogether = (
  settings: VolumeBackendConfig,
): DriverFacts<VolumeBackendConfig>["snapshotsTogether"] => factsOf(settings).snapshotsTogether;

/** See DriverFacts, of the backend of that name; false of one that is not configured. */
export const goesBack = (backends: readonly VolumeBackendConfig[], name: string): boolean => {
  const settings = backends.find((backend) => backend.name === name);
  return settings !== undefined && factsOf(settings).goesBack;
};

/** Whether a volume of the backend of that name is one image file (DriverFacts). False of a backend that is not configured. */
export const isOneFile = (backends: readonly VolumeBackendConfig[], name: string): boolean => {
  const settings = backends.find((backend) => backend.name === name);
  return settings !== undefined && factsOf(settings).imageRoots(settings) !== null;
};

/** See DriverFacts; of all backends together. */
export const imageRoots = (backends: readonly VolumeBackendConfig[]): string[] =>
  backends.flatMap((settings) => factsOf(settings).imageRoots(settings) ?? []);
