import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, lstat, open, realpath, rename, stat, unlink } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { errnoOf, PathNotAllowedError, VolumeConflictError } from "../../errors.ts";
import type { Extent } from "../../format/extents.ts";
import { writeBytesMax } from "../../run/run-context.ts";
import { guardStorage } from "../storage-error.ts";
import type { VolumeTarget } from "../volume.ts";
import { deviceBytes, deviceInUse } from "./file-source.ts";
import { punchHole } from "./punch-hole.ts";

/** A regular file or block device written in place. */
export class FileTarget implements VolumeTarget {
  readonly sizeBytes: number;
  readonly isNew: boolean;
  readonly path: string;
  readonly #file: FileHandle;

  /** Takes ownership of the file. */
  constructor(file: FileHandle, options: { path: string; sizeBytes: number; isNew: boolean }) {
    this.#file = file;
    this.path = options.path;
    this.sizeBytes = options.sizeBytes;
    this.isNew = options.isNew;
  }

  get descriptor(): number {
    return this.#file.fd;
  }

  async write(data: Uint8Array, offset: number): Promise<void> {
    for (let done = 0; done < data.length; ) {
      const { bytesWritten } = await guardStorage(`write ${this.path}`, () =>
        this.#file.write(data, done, data.length - done, offset + done),
      );
      done += bytesWritten;
    }
  }

  async zero(range: Extent): Promise<void> {
    if (await punchHole(this.#file.fd, range)) return;
    const zeros = new Uint8Array(Math.min(range.length, writeBytesMax));
    const end = range.offset + range.length;
    for (let at = range.offset; at < end; at += zeros.length) await this.write(zeros.subarray(0, end - at), at);
  }

  async flush(): Promise<void> {
    await guardStorage(`write ${this.path}`, () => this.#file.sync());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}

/** A target named by a path: a new file that appears under its name only when complete, or an existing one, written in place. */
export interface PathTarget extends AsyncDisposable {
  readonly target: VolumeTarget;
  /** Makes everything durable and gives a new file its name. Without this call, disposing removes a new file. */
  publish(): Promise<void>;
}

/**
 * Opens a restore target by path. A missing file is created with `sizeBytes`; an existing regular file is set to that length, or with
 * `keepLength` only extended where needed; a block device must be long enough, and is opened exclusively. The path is the operator's: a link to a block device
 * (`/dev/VG/LV`) is followed. All other links, FIFOs and folders are refused with PathNotAllowedError, devices that are too short, mounted or part of
 * another one with VolumeConflictError.
 */
export async function openPathTarget(
  named: string,
  sizeBytes: number,
  options: { keepLength?: boolean } = {},
): Promise<PathTarget> {
  const path = await followToDevice(named);
  const status = await lstat(path).catch((error: unknown) => {
    if (errnoOf(error) !== "ENOENT") throw error;
  });
  if (status === undefined) return createPathTarget(path, sizeBytes);
  if (!status.isFile() && !status.isBlockDevice()) {
    throw new PathNotAllowedError(`The target ${path} is neither a regular file nor a block device.`);
  }
  // Until it is closed again, nobody can mount the device.
  const exclusive = status.isBlockDevice() ? constants.O_EXCL : 0;
  const file = await guardStorage(`open ${path}`, () =>
    open(path, constants.O_RDWR | constants.O_NOFOLLOW | exclusive),
  ).catch((error: unknown) => {
    throw errnoOf((error as Error).cause) === "EBUSY" ? deviceInUse(path) : error;
  });
  const target = new FileTarget(file, { path, sizeBytes, isNew: false });
  try {
    const existing = await file.stat();
    const cut = existing.size > sizeBytes && options.keepLength !== true;
    if (existing.isFile() && (cut || existing.size < sizeBytes))
      await guardStorage(`write ${path}`, () => file.truncate(sizeBytes));
    const deviceLength = existing.isBlockDevice() ? await deviceBytes(file) : sizeBytes;
    if (deviceLength < sizeBytes)
      throw new VolumeConflictError(`The device ${path} has ${deviceLength} bytes, too few for ${sizeBytes}.`);
  } catch (error) {
    await file.close();
    throw error;
  }
  return {
    target,
    publish: () => target.flush(),
    [Symbol.asyncDispose]: () => target[Symbol.asyncDispose](),
  };
}

/** The target of a link to a block device; every other path unchanged. */
async function followToDevice(path: string): Promise<string> {
  const status = await stat(path).catch(() => undefined);
  return status?.isBlockDevice() ? await realpath(path) : path;
}

async function createPathTarget(path: string, sizeBytes: number): Promise<PathTarget> {
  const temporary = join(dirname(path), `.${basename(path).slice(0, 200)}.${randomUUID()}`);
  const file = await guardStorage(`create ${path}`, () =>
    open(temporary, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o660),
  );
  const target = new FileTarget(file, { path, sizeBytes, isNew: true });
  const discard = async (): Promise<void> => {
    await target[Symbol.asyncDispose]();
    await unlink(temporary).catch((error: unknown) => {
      if (errnoOf(error) !== "ENOENT") throw error;
    });
  };
  try {
    await guardStorage(`write ${path}`, () => file.truncate(sizeBytes));
  } catch (error) {
    await discard();
    throw error;
  }
  const publish = async (): Promise<void> => {
    await target.flush();
    await guardStorage(`create ${path}`, () => rename(temporary, path));
  };
  return { target, publish, [Symbol.asyncDispose]: discard };
}
