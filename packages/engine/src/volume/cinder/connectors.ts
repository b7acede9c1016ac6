import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { z } from "zod";
import { VolumeConflictError, VolumeStorageError } from "../../errors.ts";
import { loadDataFinder } from "../file/data-extents.ts";
import { FileSource } from "../file/file-source.ts";
import { FileTarget } from "../file/file-target.ts";
import { openImport } from "../file/open-import.ts";
import { tryLock } from "../qemu/folder-lock.ts";
import { guardStorage } from "../storage-error.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";

/** What is configured for opening what Cinder attaches. */
export interface ConnectorPlaces {
  /** Folders below which files may be that Cinder names as `local`. */
  localRoots: readonly string[];
}

/** Opens what an attachment leads to. `frozenAs`: its fingerprint, as nobody but us can write it. */
interface Connector {
  openSource(info: unknown, frozenAs: string): Promise<VolumeSource>;
  openTarget(info: unknown): Promise<VolumeTarget>;
}

/** Of a file: all data are what was cloned. */
class FrozenFile extends FileSource {
  readonly #fingerprint: string;
  constructor(
    file: ConstructorParameters<typeof FileSource>[0],
    options: ConstructorParameters<typeof FileSource>[1] & { fingerprint: string },
  ) {
    super(file, options);
    this.#fingerprint = options.fingerprint;
  }
  override async fingerprint(): Promise<string> {
    return this.#fingerprint;
  }
}

/** A file that nobody else on any machine with the same file system writes: as long as it is open, it is locked. */
class LockedFile extends FileTarget {
  readonly #lock: AsyncDisposable;
  constructor(
    file: ConstructorParameters<typeof FileTarget>[0],
    options: { path: string; sizeBytes: number; lock: AsyncDisposable },
  ) {
    super(file, { ...options, isNew: false });
    this.#lock = options.lock;
  }
  override async [Symbol.asyncDispose](): Promise<void> {
    try {
      await super[Symbol.asyncDispose]();
    } finally {
      await this.#lock[Symbol.asyncDispose]();
    }
  }
}

const LocalInfo = z.object({ device_path: z.string().min(1) });

/** A regular file of this machine, as Cinder's drivers for tests and for cluster file systems attach it. Never a link, never outside the roots. */
const local = ({ localRoots }: ConnectorPlaces): Connector => {
  const pathIn = (info: unknown): string => {
    const parsed = LocalInfo.safeParse(info);
    if (parsed.success) return parsed.data.device_path;
    throw refused("device_path is missing");
  };
  return {
    async openSource(info, frozenAs) {
      await using checked = await openImport(pathIn(info), { roots: localRoots });
      const file = await open(checked.descriptorPath, constants.O_RDONLY);
      const { path, sizeBytes } = checked;
      return new FrozenFile(file, { path, sizeBytes, findData: await loadDataFinder(), fingerprint: frozenAs });
    },
    async openTarget(info) {
      await using checked = await openImport(pathIn(info), { roots: localRoots });
      const { path, sizeBytes } = checked;
      const lock = await tryLock(path);
      if (lock === null) {
        throw new VolumeStorageError(
          `A restore that was given up has not let go of ${path} yet. Make sure that its process ends, then restore again.`,
          { retryable: true },
        );
      }
      try {
        const file = await guardStorage(`open ${path}`, () => open(checked.descriptorPath, constants.O_RDWR));
        return new LockedFile(file, { path, sizeBytes, lock });
      } catch (error) {
        await lock[Symbol.asyncDispose]();
        throw error;
      }
    },
  };
};

const connectors: Readonly<Record<string, (places: ConnectorPlaces) => Connector>> = { local };

/** Never with what it may contain: `connection_info` has secrets. */
const refused = (why: string): VolumeStorageError =>
  new VolumeStorageError(`What Cinder says of the attachment cannot be used: ${why}.`, { retryable: false });

function connectorFor(info: Record<string, unknown> | null | undefined, places: ConnectorPlaces): Connector {
  const type = info?.["driver_volume_type"];
  const found = typeof type === "string" && Object.hasOwn(connectors, type) ? connectors[type] : undefined;
  if (found) return found(places);
  const known = Object.keys(connectors).join(", ");
  throw refused(
    typeof type === "string"
      ? `driver_volume_type ${JSON.stringify(type.slice(0, 40))} is none of ${known}`
      : "driver_volume_type is missing",
  );
}

/** Opens an attached clone. VolumeStorageError for what cannot be used; PathNotAllowedError outside the roots. */
export function openAttachedSource(
  info: Record<string, unknown> | null | undefined,
  places: ConnectorPlaces,
  frozenAs: string,
): Promise<VolumeSource> {
  return connectorFor(info, places).openSource(info, frozenAs);
}

/** Opens an attached target of at least `sizeBytes`. VolumeConflictError for one that is shorter. */
export async function openAttachedTarget(
  info: Record<string, unknown> | null | undefined,
  places: ConnectorPlaces,
  sizeBytes: number,
): Promise<VolumeTarget> {
  const target = await connectorFor(info, places).openTarget(info);
  if (target.sizeBytes >= sizeBytes) return target;
  await target[Symbol.asyncDispose]();
  throw new VolumeConflictError(`The volume has ${target.sizeBytes} bytes, too few for ${sizeBytes}.`);
}
