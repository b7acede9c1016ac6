import { constants } from "node:fs";
import { open } from "node:fs/promises";
import { z } from "zod";
import { VolumeStorageError } from "../../errors.ts";
import { loadDataFinder } from "../file/data-extents.ts";
import { FileSource } from "../file/file-source.ts";
import { FileTarget } from "../file/file-target.ts";
import { openImport } from "../file/open-import.ts";
import { tryLock } from "../qemu/folder-lock.ts";
import { guardStorage } from "../storage-error.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { type ConnectionInfo, type Connector, type ConnectorPlaces, refused } from "./connector.ts";

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

/** A file to read that only we can write. SourceMissingError; PathNotAllowedError outside the roots, and for a link. */
export async function openFrozenFile(path: string, roots: readonly string[], frozenAs: string): Promise<VolumeSource> {
  await using checked = await openImport(path, { roots });
  const file = await open(checked.descriptorPath, constants.O_RDONLY);
  const { sizeBytes } = checked;
  return new FrozenFile(file, {
    path: checked.path,
    sizeBytes,
    findData: await loadDataFinder(),
    fingerprint: frozenAs,
  });
}

/** A file to overwrite. @throws as openFrozenFile; VolumeStorageError while another process has it */
export async function openLockedFile(named: string, roots: readonly string[]): Promise<VolumeTarget> {
  await using checked = await openImport(named, { roots });
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
}

/** A regular file of this machine, as Cinder's drivers for tests and for cluster file systems attach it. Never a link, never outside the roots. */
export const local = ({ localRoots }: ConnectorPlaces): Connector => ({
  openSource: async (info, { frozenAs }) => openFrozenFile(pathIn(info), localRoots, frozenAs),
  openTarget: async (info) => openLockedFile(pathIn(info), localRoots),
});

function pathIn(info: ConnectionInfo): string {
  const parsed = LocalInfo.safeParse(info);
  if (parsed.success) return parsed.data.device_path;
  throw refused("device_path is missing");
}
