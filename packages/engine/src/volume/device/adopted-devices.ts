import { link, readFile, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve, sep } from "node:path";
import {
  errnoOf,
  InvalidVolumeUrlError,
  PathNotAllowedError,
  SourceMissingError,
  VolumeConflictError,
  VolumeStorageError,
} from "../../errors.ts";
import type { RunContext } from "../../run/run-context.ts";
import { AdoptedPlace, realPath } from "../adopted-place.ts";
import { unlinkIfThere } from "../file/copy-file.ts";
import { newDraft } from "../file/drafts.ts";
import { syncFolder } from "../file/sync-folder.ts";
import { lock } from "../qemu/folder-lock.ts";
import { syncFile } from "../qemu/layers.ts";
import { guardStorage } from "../storage-error.ts";
import { claimDevice, type DeviceSource, openDeviceSource } from "./block-device.ts";

/** Which device a volume is. */
export interface AdoptedDevice {
  /** By the operator's name: what it leads to has another name and number after each start of the machine. */
  path: string;
  /** See deviceIdentity(), when it was adopted. */
  identity: string | null;
}

const nameOf = (volumeId: string): string => `device-${volumeId}`;

/** The records `device-ID` in the folder of a backend, and the devices that they name. */
export class AdoptedDevices extends AdoptedPlace {
  /**
   * Opens a volume's device for reading; a later claim is of the same path.
   *
   * @throws SourceMissingError when there is no such volume, or no device under its name; PathNotAllowedError when that is now another
   * device than the one that was adopted, or out of the roots
   */
  async open(volumeId: string): Promise<DeviceSource> {
    const device = await this.#read(volumeId);
    if (device === null) throw new SourceMissingError(`Volume ${volumeId} is none of the devices that were adopted.`);
    await this.#place(device.path);
    const source = await openDeviceSource(device.path);
    const identity = await source.deviceIdentity();
    if (device.identity === null || identity === device.identity) return source;
    await source[Symbol.asyncDispose]();
    throw new PathNotAllowedError(
      `${device.path} is another device (${identity}) than the one that was adopted as volume ${volumeId} (${device.identity}).`,
    );
  }

  async has(volumeId: string): Promise<boolean> {
    return (await this.#read(volumeId)) !== null;
  }

  /** The ids of all volumes. */
  async list(): Promise<string[]> {
    const names = await this.names();
    return names.flatMap((name) => /^device-([A-Za-z0-9-]+)$/.exec(name)?.[1] ?? []);
  }

  /** The path of a volume's record, and when it was made. */
  async recordOf(volumeId: string): Promise<{ path: string; modifiedAt: Date } | null> {
    const path = this.#record(volumeId);
    const status = await stat(path).catch(() => undefined);
    return status === undefined ? null : { path, modifiedAt: status.mtime };
  }

  /**
   * Makes the device that `device:PATH` names a volume. Doing so again is success.
   *
   * @throws InvalidVolumeUrlError, PathNotAllowedError, SourceMissingError; VolumeConflictError for a device that is in use, or a volume
   * already
   */
  async adopt(url: string, volumeId: string, { signal, fence }: Pick<RunContext, "signal" | "fence">): Promise<number> {
    const named = /^device:(\/[^\0]*)$/s.exec(url)?.[1];
    if (named === undefined) throw new InvalidVolumeUrlError(`${JSON.stringify(url)} names no device: device:/PATH.`);
    const path = await this.#place(named);
    await using _locked = await lock(join(this.folder, ".lock"));
    await using source = await openDeviceSource(path);
    await (await claimDevice(path, "read")).close();
    if (source.sizeBytes === 0) {
      throw new VolumeStorageError(`The device ${path} has no bytes.`, { retryable: false });
    }
    if (await this.#isVolume(volumeId, source)) return source.sizeBytes;
    signal.throwIfAborted();
    fence();
    await this.#write(volumeId, { path, identity: await source.deviceIdentity() });
    return source.sizeBytes;
  }

  async release(volumeId: string): Promise<void> {
    await guardStorage(`let go of volume ${volumeId}`, () => unlinkIfThere(this.#record(volumeId)));
    await syncFolder(this.folder);
  }

  /** Whether the device is this volume already. @throws VolumeConflictError when it is another one, or the volume is another device */
  async #isVolume(volumeId: string, source: DeviceSource): Promise<boolean> {
    const number = await source.deviceNumber();
    for (const id of await this.list()) {
      const other = await this.#read(id);
      if (other === null) continue;
      const isSame = other.path === source.path || (await numberOf(other.path)) === number;
      if (isSame && id === volumeId) return true;
      if (isSame) throw new VolumeConflictError(`The device ${source.path} is volume ${id} already.`);
      if (id === volumeId) throw new VolumeConflictError(`Volume ${volumeId} is the device ${other.path} already.`);
    }
    return false;
  }

  async #write(volumeId: string, device: AdoptedDevice): Promise<void> {
    const record = this.#record(volumeId);
    await using draft = await newDraft(record);
    await guardStorage(`create ${record}`, () => writeFile(draft.path, JSON.stringify(device), { flag: "wx" }));
    await syncFile(draft.path);
    await guardStorage(`create ${record}`, () => link(draft.path, record));
    await syncFolder(this.folder);
  }

  async #read(volumeId: string): Promise<AdoptedDevice | null> {
    const record = this.#record(volumeId);
    const text = await guardStorage(`read ${record}`, () =>
      readFile(record, "utf8").catch((error: unknown) => {
        if (errnoOf(error) === "ENOENT") return null;
        throw error;
      }),
    );
    if (text === null) return null;
    try {
      const { path, identity } = JSON.parse(text) as Record<string, unknown>;
      if (typeof path !== "string" || (typeof identity !== "string" && identity !== null)) throw new Error("no record");
      return { path, identity };
    } catch (error) {
      throw new VolumeStorageError(`${record} does not say which device the volume is.`, {
        retryable: false,
        cause: error,
      });
    }
  }

  /**
   * A device's name, by its real folder, which must be a root or below one. The name itself may be a link to anywhere: so volume managers
   * and udev name devices.
   */
  async #place(named: string): Promise<string> {
    const clean = resolve(named);
    const folder = await realPath(dirname(clean));
    const roots = await this.realRoots();
    const isBelow = (root: string): boolean =>
      folder === root || folder?.startsWith(root.endsWith(sep) ? root : root + sep) === true;
    const path = join(folder ?? "/", basename(clean));
    // Whether there is something outside of the roots is told to nobody.
    if (!roots.some(isBelow) || !(await stat(path).catch(() => undefined))?.isBlockDevice()) {
      throw new PathNotAllowedError(
        `There is no block device ${named} in the folders where devices may be (roots of the backend).`,
      );
    }
    return path;
  }

  #record(volumeId: string): string {
    return join(this.folder, nameOf(volumeId));
  }
}

/** Of the device that a path leads to; null when there is none. */
async function numberOf(path: string): Promise<string | null> {
  try {
    await using source = await openDeviceSource(path);
    return await source.deviceNumber();
  } catch {
    return null;
  }
}
