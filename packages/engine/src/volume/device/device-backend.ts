import type { FileHandle } from "node:fs/promises";
import { resolve } from "node:path";
import {
  BackendUnavailableError,
  OperationNotSupportedError,
  PathNotAllowedError,
  SourceMissingError,
  VolumeConflictError,
  VolumeStorageError,
} from "../../errors.ts";
import { clipExtent, type Extent } from "../../format/extents.ts";
import { idsIn } from "../../format/ids-in.ts";
import type { RunContext } from "../../run/run-context.ts";
import type { BackendLeftover, ExportOptions, RestoreLengths, SourceReference, VolumeBackend } from "../backend.ts";
import { exportVolume } from "../file/export-file.ts";
import { checkId, openFileBackend } from "../file/file-backend.ts";
import { requireLocks } from "../qemu/folder-lock.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { AdoptedDevices } from "./adopted-devices.ts";
import { claimDevice, type DeviceSource, deviceNumber } from "./block-device.ts";
import { DeviceTarget } from "./device-target.ts";
import { WriterRecords } from "./writer-record.ts";

const GiB = 1024 ** 3;

/**
 * The `device` driver: a volume is a block device that exists and stays where it is. It can be read while nobody has it, and be written in
 * place; it can be neither made, copied, extended nor frozen. Of each volume there is a record in the backend's folder.
 */
export class DeviceBackend implements VolumeBackend {
  readonly capabilities = { restores: "in-place", tellsChanges: false, fingerprints: "on-one-machine" } as const;
  readonly #devices: AdoptedDevices;
  readonly #writers: WriterRecords;

  constructor(folder: string, roots: readonly string[]) {
    this.#devices = new AdoptedDevices(folder, roots);
    this.#writers = new WriterRecords(folder);
  }

  /** No volume can be made. */
  async freeBytes(): Promise<number> {
    return 0;
  }

  create(volumeId: string): Promise<never> {
    checkId(volumeId);
    return refuse("create volume", "volumes are devices that exist: adopt one");
  }

  async clone(source: SourceReference, volumeId: string): Promise<never> {
    checkId(volumeId);
    await (await this.#open(source))[Symbol.asyncDispose]();
    return refuse("create volume from another one", "volumes are devices that exist: restore a backup onto one");
  }

  /** Success where the device has been made longer by whoever manages it, to that size in GiB, rounded up as sizes of volumes are. */
  async extend(volumeId: string, sizeBytes: number): Promise<void> {
    const present = await this.measure(volumeId);
    if (Math.ceil(present.sizeBytes / GiB) >= Math.ceil(sizeBytes / GiB)) return;
    const why = `the device has ${present.sizeBytes} bytes: make it longer where it is managed, then extend the volume`;
    await refuse("extend volume", why);
  }

  /** The device keeps its bytes. */
  async remove(volumeId: string): Promise<void> {
    checkId(volumeId);
    if ((await this.#writers.restoreOf(volumeId)) !== null) await this.#settle(volumeId);
    await this.#devices.release(volumeId);
  }

  async measure(volumeId: string): Promise<{ sizeBytes: number }> {
    await using source = await this.#open({ volumeId });
    return { sizeBytes: source.sizeBytes };
  }

  async adoptImage(url: string, volumeId: string, run: RunContext): Promise<{ sizeBytes: number }> {
    return { sizeBytes: await this.#devices.adopt(url, checkId(volumeId), run) };
  }

  async canFreezeCheaply(): Promise<boolean> {
    return false;
  }

  async freeze(volumeId: string, snapshotId: string): Promise<never> {
    checkId(snapshotId);
    await this.measure(volumeId);
    return refuse("create snapshot", "a device is backed up as it is, while the volume is available");
  }

  async thaw(snapshotId: string): Promise<void> {
    checkId(snapshotId);
  }

  snapshotPaths(volumeId: string): never {
    throw new BackendUnavailableError(`Volume ${volumeId} is a device, of which no snapshots are taken.`);
  }

  /** A device that is mounted, belongs to another one or is being restored is refused. */
  async openSource(source: SourceReference): Promise<VolumeSource> {
    const opened = await this.#open(source);
    try {
      await (await claimDevice(opened.path, "read")).close();
      return opened;
    } catch (error) {
      await opened[Symbol.asyncDispose]();
      throw error;
    }
  }

  async *changedExtents(_source: SourceReference, _since: string, range: Extent): AsyncGenerator<Extent> {
    const whole = clipExtent(range, range);
    if (whole !== null) yield whole;
  }

  async beginRestore(volumeId: string, restoreId: string, lengths: RestoreLengths, run?: RunContext): Promise<void> {
    checkId(restoreId);
    await using source = await this.#openForRestore(volumeId);
    const { path, sizeBytes } = source;
    if (sizeBytes < lengths.sizeBytes) {
      throw new VolumeConflictError(`The device ${path} has ${sizeBytes} bytes, too few for ${lengths.sizeBytes}.`);
    }
    await using _claimed = await this.#claim(volumeId, source);
    run?.signal.throwIfAborted();
    run?.fence();
    await this.#writers.take(volumeId, restoreId, path);
  }

  /** Nobody else on this machine has it open until it is disposed. */
  async openRestoreTarget(volumeId: string, restoreId: string): Promise<VolumeTarget> {
    checkId(restoreId);
    await using source = await this.#openForRestore(volumeId);
    const { path, sizeBytes } = source;
    await using stack = new AsyncDisposableStack();
    const file = stack.adopt(await this.#claim(volumeId, source), (claimed) => claimed.close());
    if (!(await this.#writers.isOf(volumeId, restoreId))) {
      throw new VolumeConflictError(`Volume ${volumeId} is not being restored here by ${restoreId}.`);
    }
    stack.move();
    return new DeviceTarget(file, { path, sizeBytes, ended: () => this.#writers.release(volumeId) });
  }

  openRestored(volumeId: string, restoreId: string): Promise<VolumeSource> {
    checkId(restoreId);
    return this.#open({ volumeId });
  }

  /** Everything was written and flushed when the target was disposed. */
  async publishRestore(volumeId: string, restoreId: string): Promise<void> {
    checkId(restoreId);
    await (await this.#openForRestore(volumeId))[Symbol.asyncDispose]();
    const writing = await this.#writers.restoreOf(volumeId);
    if (writing === null || writing === restoreId) return;
    throw new VolumeConflictError(`Volume ${volumeId} is being restored by ${writing}.`);
  }

  async copyRestore(volumeId: string): Promise<never> {
    throw new VolumeConflictError(`Volume ${volumeId} is a device, which is restored in place.`);
  }

  /** What was written stays; who wrote it is forgotten where it is known to have ended. */
  async abandonRestore(restoreId: string): Promise<void> {
    checkId(restoreId);
    for (const volumeId of await this.#devices.list()) {
      if ((await this.#writers.restoreOf(volumeId)) !== restoreId) continue;
      await this.#settle(volumeId).catch((error: unknown) => {
        const isUnknown = error instanceof VolumeConflictError || error instanceof SourceMissingError;
        if (!isUnknown && !(error instanceof PathNotAllowedError)) throw error;
      });
    }
  }

  importFile(): Promise<never> {
    return refuse("import volume", "volumes are devices that exist: adopt one");
  }

  importIfAbsent(): Promise<never> {
    return this.importFile();
  }

  statImport(): Promise<never> {
    return this.importFile();
  }

  exportFile(volumeId: string, path: string, options: ExportOptions, run: RunContext): Promise<{ sizeBytes: number }> {
    return exportVolume(this, volumeId, { path, ...options }, run);
  }

  /** The records: devices are nobody's leftovers. */
  async *leftovers(): AsyncGenerator<BackendLeftover> {
    for (const volumeId of await this.#devices.list()) {
      const record = await this.#devices.recordOf(volumeId);
      if (record !== null) yield { kind: "volume", ...record, ids: idsIn(record.path) };
    }
  }

  async removeLeftover({ ids }: BackendLeftover): Promise<void> {
    for (const id of ids) await this.remove(id);
  }

  async #open(source: SourceReference): Promise<DeviceSource> {
    if ("volumeId" in source) return await this.#devices.open(checkId(source.volumeId));
    throw new SourceMissingError(`There is no snapshot ${checkId(source.snapshotId)}: devices have none.`);
  }

  /** As #open, with the error of restores. */
  async #openForRestore(volumeId: string): Promise<DeviceSource> {
    if (await this.#devices.has(checkId(volumeId))) return await this.#open({ volumeId });
    throw new VolumeConflictError(`There is no volume ${volumeId} to be restored.`);
  }

  /** Forgets an interrupted restore. @throws VolumeConflictError where its writer may not have ended */
  async #settle(volumeId: string): Promise<void> {
    await using source = await this.#open({ volumeId });
    await using _claimed = await claimDevice(source.path, "read");
    await this.#writers.requireNone(volumeId, source.path);
  }

  /** The claim to write that very device; where an earlier run may still have it, the error is one that may pass. */
  async #claim(volumeId: string, source: DeviceSource): Promise<FileHandle> {
    const file = await claimDevice(source.path, "write").catch(async (error: unknown) => {
      if (!(error instanceof VolumeConflictError) || (await this.#writers.restoreOf(volumeId)) === null) throw error;
      throw new VolumeStorageError(
        `A restore of volume ${volumeId} that was given up has not let go of ${source.path} yet. Make sure that its process ends, then restore again.`,
        { retryable: true, cause: error },
      );
    });
    if ((await deviceNumber(file)) === (await source.deviceNumber())) return file;
    await file.close();
    throw new VolumeConflictError(`${source.path} has just become another device.`);
  }
}

async function refuse(operation: string, why: string): Promise<never> {
  throw new OperationNotSupportedError(operation, why);
}

/** Opens the folder of a `device` backend. BackendUnavailableError unless it is a writable folder. */
export async function openDeviceBackend(folder: string, roots: readonly string[]): Promise<DeviceBackend> {
  await requireLocks();
  await openFileBackend(folder);
  return new DeviceBackend(resolve(folder), roots);
}
