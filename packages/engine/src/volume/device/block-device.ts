import { constants } from "node:fs";
import { type FileHandle, open, readFile, realpath } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { errnoOf, SourceMissingError, VolumeStorageError } from "../../errors.ts";
import { loadDataFinder } from "../file/data-extents.ts";
import { deviceBytes, deviceInUse, FileSource } from "../file/file-source.ts";
import { guardStorage } from "../storage-error.ts";

/* Block devices of Linux: open(2), and sysfs (Documentation/ABI/stable/sysfs-block and Documentation/block/stat.rst of the kernel). */

/** Whoever only looks whether a device is free claims it for a moment. */
const claimWithinMs = 2_000;
const tryEveryMs = 20;

/** The numbers by which the kernel knows an open device, as sysfs writes them. */
export async function deviceNumber(file: FileHandle): Promise<string> {
  const { rdev } = await file.stat({ bigint: true });
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n);
  return `${major}:${minor}`;
}

const attribute = async (number: string, name: string): Promise<string | null> =>
  readFile(`/sys/dev/block/${number}/${name}`, "utf8").then(
    (text) => text.trim(),
    () => null,
  );

/** What the disk, logical volume or partition calls itself, whatever numbers and names it has at the moment; null when it has no name. */
export async function deviceIdentity(file: FileHandle): Promise<string | null> {
  const number = await deviceNumber(file);
  const partition = await attribute(number, "partition");
  const disk = partition === null ? "" : "../";
  for (const name of ["dm/uuid", "wwid", "device/wwid", "loop/backing_file"]) {
    const found = await attribute(number, disk + name);
    if (found) return partition === null ? found : `${found}, partition ${partition}`;
  }
  return null;
}

/** The running kernel of this machine. Every process that it runs sees the same one, in a container, too. */
export const bootId = async (): Promise<string> =>
  (await guardStorage("read the boot id", () => readFile("/proc/sys/kernel/random/boot_id", "utf8"))).trim();

/**
 * Claims a device: as long as it is open, nobody else on this machine can claim or mount it. The kernel lets go of the claim when the last
 * call on it has returned, also of a process that was killed.
 *
 * @throws VolumeConflictError when it is in use; SourceMissingError when there is none
 */
export async function claimDevice(path: string, access: "read" | "write"): Promise<FileHandle> {
  const flags = (access === "write" ? constants.O_RDWR : constants.O_RDONLY) | constants.O_EXCL | constants.O_NOFOLLOW;
  for (const until = performance.now() + claimWithinMs; ; ) {
    try {
      return await open(await realpath(path), flags);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno !== "EBUSY")
        throw new SourceMissingError(`The device ${path} cannot be opened (${errno}).`, { cause: error });
      if (performance.now() > until) throw deviceInUse(path);
    }
    await sleep(tryEveryMs);
  }
}

/** Opens a device for reading. SourceMissingError when there is none. */
export async function openDeviceSource(path: string): Promise<DeviceSource> {
  const file = await realpath(path)
    .then((real) => open(real, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK))
    .catch((error: unknown) => {
      throw new SourceMissingError(`The device ${path} cannot be opened (${errnoOf(error)}).`, { cause: error });
    });
  try {
    if (!(await file.stat()).isBlockDevice()) throw new SourceMissingError(`${path} is no block device.`);
    return new DeviceSource(file, { path, sizeBytes: await deviceBytes(file), findData: await loadDataFinder() });
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** A device that is read. */
export class DeviceSource extends FileSource {
  readonly #handle: FileHandle;

  /** Takes ownership of the file. */
  constructor(file: FileHandle, options: ConstructorParameters<typeof FileSource>[1]) {
    super(file, options);
    this.#handle = file;
  }

  deviceNumber(): Promise<string> {
    return deviceNumber(this.#handle);
  }

  deviceIdentity(): Promise<string | null> {
    return deviceIdentity(this.#handle);
  }

  /**
   * What this machine has written to the device since it started, once nothing is left in its cache: a device has no time of its last
   * change. So it is the same in all processes of one machine only.
   */
  override async fingerprint(): Promise<string> {
    await guardStorage(`read ${this.path}`, () => this.#handle.sync());
    const number = await this.deviceNumber();
    const counters = (await attribute(number, "stat"))?.split(/\s+/);
    if (counters === undefined) {
      throw new VolumeStorageError(`Whether ${this.path} is written to cannot be seen: /sys is not mounted.`, {
        retryable: false,
      });
    }
    // Sectors written and sectors discarded: a flush counts as a write of none.
    const written = [6, 13].map((field) => counters[field] ?? "0");
    return [await bootId(), number, this.sizeBytes, ...written].join(" ");
  }
}
