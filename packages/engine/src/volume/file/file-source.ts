import { constants } from "node:fs";
import { type FileHandle, open, realpath } from "node:fs/promises";
import { errnoOf, SourceChangedError, SourceMissingError, VolumeConflictError } from "../../errors.ts";
import { identityOf } from "../../folder.ts";
import type { Extent } from "../../format/extents.ts";
import { guardStorage } from "../storage-error.ts";
import type { VolumeSource } from "../volume.ts";
import { type DataFinder, loadDataFinder } from "./data-extents.ts";

/** A regular file or block device read as is: raw bytes, with no image format detected. */
export class FileSource implements VolumeSource {
  readonly sizeBytes: number;
  readonly path: string;
  readonly #file: FileHandle;
  readonly #findData: DataFinder;

  /** Takes ownership of the file. */
  constructor(file: FileHandle, options: { path: string; sizeBytes: number; findData: DataFinder }) {
    this.#file = file;
    this.path = options.path;
    this.sizeBytes = options.sizeBytes;
    this.#findData = options.findData;
  }

  get descriptor(): number {
    return this.#file.fd;
  }

  /** A path by which the kernel opens the very file that was checked, whatever its name refers to by now. */
  get descriptorPath(): string {
    return `/proc/self/fd/${this.#file.fd}`;
  }

  async isRegular(): Promise<boolean> {
    return (await this.#file.stat()).isFile();
  }

  /** See identityOf. */
  async identity(): Promise<string> {
    return identityOf(await this.#file.stat({ bigint: true }));
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    for (let done = 0; done < into.length; ) {
      const { bytesRead } = await guardStorage(`read ${this.path}`, () =>
        this.#file.read(into, done, into.length - done, offset + done),
      );
      if (bytesRead === 0) {
        throw new SourceChangedError(
          `The source ${this.path} ends at ${offset + done}, it had ${this.sizeBytes} bytes.`,
        );
      }
      done += bytesRead;
    }
  }

  dataExtents(range: Extent): AsyncGenerator<Extent> {
    return this.#findData(this.#file.fd, range);
  }

  async fingerprint(): Promise<string> {
    const status = await guardStorage(`read ${this.path}`, () => this.#file.stat({ bigint: true }));
    return [status.ino, status.size, status.mtimeNs, status.ctimeNs].join(":");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }
}

/**
 * Opens a regular file or block device for reading. Never follows a link in the last path component and never blocks on a FIFO.
 * SourceMissingError when it does not exist or is neither. `shown` is its name in messages.
 */
export async function openFileSource(path: string, shown = path): Promise<FileSource> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(
    (error: unknown) => {
      throw new SourceMissingError(`The source ${shown} cannot be opened (${errnoOf(error)}).`, { cause: error });
    },
  );
  try {
    const status = await file.stat();
    if (!status.isFile() && !status.isBlockDevice()) {
      throw new SourceMissingError(`The source ${shown} is neither a regular file nor a block device.`);
    }
    const sizeBytes = status.isFile() ? status.size : await deviceBytes(file);
    return new FileSource(file, { path: shown, sizeBytes, findData: await loadDataFinder() });
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * Like openFileSource, for a path named by the operator: links are followed, since `/dev/VG/LV` is a link to the device. Never use it for
 * a path that a tenant can name. VolumeConflictError for a device that is mounted or belongs to another device.
 */
export async function openOperatorSource(path: string): Promise<FileSource> {
  const source = await openFileSource(await realpath(path).catch(() => path), path);
  try {
    if (!(await source.isRegular())) await refuseClaimed(source.descriptorPath, path);
    return source;
  } catch (error) {
    await source[Symbol.asyncDispose]();
    throw error;
  }
}

/** The kernel lets a device be opened exclusively only while no file system, RAID, volume manager or other exclusive opener has it. */
async function refuseClaimed(device: string, shown: string): Promise<void> {
  const claimed = await open(device, constants.O_RDONLY | constants.O_EXCL).catch((error: unknown) => {
    if (errnoOf(error) === "EBUSY") throw deviceInUse(shown);
    throw new SourceMissingError(`The source ${shown} cannot be opened (${errnoOf(error)}).`, { cause: error });
  });
  await claimed.close();
}

export const deviceInUse = (path: string): VolumeConflictError =>
  new VolumeConflictError(
    `The device ${path} is in use: it is mounted, part of another device, or opened exclusively. Release it, or name a snapshot of it.`,
  );

/** The length of a block device, by bisection: a byte can be read before the end and none after it. */
export async function deviceBytes(file: FileHandle): Promise<number> {
  const readable = async (offset: number): Promise<boolean> =>
    (await file.read(new Uint8Array(1), 0, 1, offset)).bytesRead === 1;
  let low = 0;
  let high = 2 ** 52;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (await readable(middle)) low = middle + 1;
    else high = middle;
  }
  return low;
}
