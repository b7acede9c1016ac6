import { link, readFile, rename, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { errnoOf, VolumeConflictError } from "../../errors.ts";
import { unlinkIfThere } from "../file/copy-file.ts";
import { newDraft } from "../file/drafts.ts";
import { syncFolder } from "../file/sync-folder.ts";
import { syncFile } from "../qemu/layers.ts";
import { guardStorage } from "../storage-error.ts";
import { bootId } from "./block-device.ts";

/** Who writes a volume in place: there from before the first write until after the last. */
interface Writer {
  restoreId: string;
  /** The running kernel whose process it is. */
  boot: string;
  host: string;
  process: number;
}

/**
 * The records `restoring-ID` in the folder of a backend. Whether the writer that one names has ended is known only on its own machine, to
 * whoever could claim the device there: then the kernel has let go of every call of it. A record of another machine, or of an earlier
 * start of this one, is left to a person.
 */
export class WriterRecords {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  /** The caller holds the claim of the device. @throws VolumeConflictError where another writer may not have ended */
  async take(volumeId: string, restoreId: string, device: string): Promise<void> {
    const boot = await bootId();
    const path = this.#path(volumeId);
    await using draft = await newDraft(`${path}-${restoreId}`);
    const writer: Writer = { restoreId, boot, host: hostname(), process: process.pid };
    await guardStorage(`create ${path}`, () =>
      writeFile(draft.path, JSON.stringify(writer), { flag: "wx", mode: 0o660 }),
    );
    await guardStorage(`create ${path}`, () => syncFile(draft.path));
    for (;;) {
      const found = await this.#read(volumeId);
      if (found !== null && found.boot !== boot) throw this.#unproved(volumeId, found, device);
      const isFirst = found === null;
      const isTaken = await guardStorage(`create ${path}`, async () => {
        if (isFirst) return await linkIfAbsent(draft.path, path);
        await rename(draft.path, path);
        return true;
      });
      if (isTaken) break;
    }
    await syncFolder(this.#folder);
  }

  /** Whether this restore, on this machine, is the one that writes. */
  async isOf(volumeId: string, restoreId: string): Promise<boolean> {
    const found = await this.#read(volumeId);
    return found?.restoreId === restoreId && found.boot === (await bootId());
  }

  /** The restore that writes, or has been interrupted; null when there is none. */
  async restoreOf(volumeId: string): Promise<string | null> {
    return (await this.#read(volumeId))?.restoreId ?? null;
  }

  /** The caller holds the claim of the device, and nothing that writes it. A record of another machine stays. */
  async release(volumeId: string): Promise<void> {
    if ((await this.#read(volumeId))?.boot !== (await bootId())) return;
    await guardStorage(`remove ${this.#path(volumeId)}`, () => unlinkIfThere(this.#path(volumeId)));
    await syncFolder(this.#folder);
  }

  /** @throws VolumeConflictError where a writer may not have ended. The caller holds the claim of the device. */
  async requireNone(volumeId: string, device: string): Promise<void> {
    await this.release(volumeId);
    const found = await this.#read(volumeId);
    if (found !== null) throw this.#unproved(volumeId, found, device);
  }

  async #read(volumeId: string): Promise<Writer | null> {
    const path = this.#path(volumeId);
    const text = await guardStorage(`read ${path}`, () =>
      readFile(path, "utf8").catch((error: unknown) => {
        if (errnoOf(error) === "ENOENT") return null;
        throw error;
      }),
    );
    if (text === null) return null;
    try {
      const { restoreId, boot, host, process: pid } = JSON.parse(text) as Record<string, unknown>;
      return { restoreId: String(restoreId), boot: String(boot), host: String(host), process: Number(pid) };
    } catch {
      return { restoreId: "", boot: "", host: "unknown", process: 0 };
    }
  }

  #unproved(volumeId: string, { host, process: pid }: Writer, device: string): VolumeConflictError {
    return new VolumeConflictError(
      `A restore of volume ${volumeId} by process ${pid} of host ${host} was interrupted while it wrote ${device}, and from here it cannot be seen ` +
        `whether it has ended. Make sure that this process no longer runs, or that ${host} was restarted or is cut off from the device; then remove ` +
        `${this.#path(volumeId)} and restore again.`,
    );
  }

  #path(volumeId: string): string {
    return join(this.#folder, `restoring-${volumeId}`);
  }
}

async function linkIfAbsent(from: string, to: string): Promise<boolean> {
  try {
    await link(from, to);
    return true;
  } catch (error) {
    if (errnoOf(error) === "EEXIST") return false;
    throw error;
  }
}
