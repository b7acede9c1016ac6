import type { FileHandle } from "node:fs/promises";
import { FileTarget } from "../file/file-target.ts";

/** A claimed device that a restore writes. */
export class DeviceTarget extends FileTarget {
  readonly #handle: FileHandle;
  readonly #ended: () => Promise<void>;

  /** Takes ownership of the file. `ended` is called when everything written is on the device and nothing more will be, before the claim ends. */
  constructor(file: FileHandle, options: { path: string; sizeBytes: number; ended: () => Promise<void> }) {
    super(file, { ...options, isNew: false });
    this.#handle = file;
    this.#ended = options.ended;
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.#handle.sync();
      await this.#ended();
    } catch {
      // Whoever claims the device next settles it.
    } finally {
      await super[Symbol.asyncDispose]();
    }
  }
}
