import { randomUUID } from "node:crypto";
import { SourceMissingError, VolumeConflictError, VolumeStorageError } from "../../errors.ts";
import type { RunContext } from "../../run/run-context.ts";
import { checkId } from "../file/file-backend.ts";
import { saysErrno, saysMissing } from "./rbd-command.ts";
import type { ImageInfo, ImageSnapshot, RbdPool } from "./rbd-pool.ts";

/*
 * What the images of a pool are called.
 *
 *   volume-ID          a volume
 *   restore-ID         the target of a restore
 *   draft-ID-UUID      an image in the making
 *   replaced-ID-TAG    the volume that was, while another image takes its name; TAG says for what
 *   retired-ID-UUID    an image that nobody names any more: it goes when its last snapshot, clone and user have gone
 *   tephra-snapshots   notes which volume each snapshot is of
 *
 * And their snapshots: `snapshot-ID`; `kept-ID`, on which only clones build; `read-UUID`, which a volume is read by.
 */

export const volumeImage = (id: string): string => `volume-${checkId(id)}`;
export const restoreImage = (id: string): string => `restore-${checkId(id)}`;
export const frozenName = (id: string): string => `snapshot-${checkId(id)}`;
export const keptName = (id: string): string => `kept-${checkId(id)}`;
export const readName = (): string => `read-${randomUUID()}`;
export const draftsOf = (id: string): string => `draft-${checkId(id)}-`;
export const newDraftOf = (id: string): string => `${draftsOf(id)}${randomUUID()}`;
export const replacedImage = (volumeId: string, tag: string): string => `replaced-${volumeId}-${tag}`;
export const isRetired = (image: string): boolean => image.startsWith("retired-");
export const indexImage = "tephra-snapshots";

const indexBytes = 1024 * 1024;
/** How often a snapshot is looked for again when its image got another name meanwhile. */
const triesMax = 3;

/** What the index says of a snapshot. */
interface FrozenNote {
  volumeId: string;
  /** Whether its image had no parent: only then can it be said what has changed since. */
  isWhole: boolean;
  frozenAt: Date;
}

export interface Frozen extends FrozenNote {
  image: string;
  snapshot: ImageSnapshot;
}

/** The images of volumes and their snapshots, each of which can be removed whatever else builds on it. */
export class RbdImages {
  readonly pool: RbdPool;

  constructor(pool: RbdPool) {
    this.pool = pool;
  }

  /** Where a snapshot is, and of what; null when there is none. */
  async find(snapshotId: string): Promise<Frozen | null> {
    const name = frozenName(snapshotId);
    const note = parseNote((await this.pool.note(indexImage, name)) ?? "");
    if (note === null) return null;
    const at = async (image: string): Promise<ImageSnapshot | null | undefined> => {
      const snapshots = await this.pool.snapshots(image);
      return snapshots === null ? null : snapshots.find((each) => each.name === name);
    };
    // Usually it is there.
    const usual = volumeImage(note.volumeId);
    const snapshot = await at(usual);
    if (snapshot) return { ...note, image: usual, snapshot };
    for (let search = 0; search < triesMax; search++) {
      let vanished = false;
      for (const image of await this.#imagesOf(note.volumeId)) {
        const found = await at(image);
        if (found) return { ...note, image, snapshot: found };
        vanished ||= found === null;
      }
      if (!vanished) return null;
    }
    throw new VolumeStorageError(`${this.pool.shown(usual)} got another name again and again.`, { retryable: true });
  }

  /**
   * A volume; null when there is none. One whose place another image was about to take when that was interrupted gets its name back.
   */
  async volume(volumeId: string): Promise<ImageInfo | null> {
    const image = volumeImage(volumeId);
    const found = await this.pool.info(image);
    if (found !== null) return found;
    const replaced = (await this.pool.list()).filter((name) => name.startsWith(replacedImage(volumeId, "")));
    for (const name of replaced) await this.putBack(name, volumeId);
    return replaced.length > 0 ? await this.pool.info(image) : null;
  }

  /** @throws SourceMissingError */
  async frozen(snapshotId: string): Promise<Frozen> {
    const found = await this.find(snapshotId);
    if (found === null) throw new SourceMissingError(`There is no snapshot ${snapshotId}.`);
    return found;
  }

  /** Before a snapshot is made, so that each one can be found. */
  async noteFrozen(snapshotId: string, { volumeId, isWhole, frozenAt }: FrozenNote): Promise<void> {
    const value = `${volumeId} ${isWhole ? "whole" : "clone"} ${frozenAt.getTime()}`;
    const note = () => this.pool.setNote(indexImage, frozenName(snapshotId), value);
    try {
      await note();
    } catch (error) {
      if (!saysMissing(error)) throw error;
      await this.pool.create(indexImage, indexBytes, "shared").catch((cause: unknown) => {
        if (!saysErrno(cause, "exists")) throw cause;
      });
      await note();
    }
  }

  async forgetFrozen(snapshotId: string): Promise<void> {
    await this.pool.removeNote(indexImage, frozenName(snapshotId));
  }

  async *listFrozen(): AsyncGenerator<[snapshotId: string, note: FrozenNote]> {
    for (const [key, value] of await this.pool.notes(indexImage)) {
      const note = parseNote(value);
      if (note !== null && key.startsWith("snapshot-")) yield [key.slice("snapshot-".length), note];
    }
  }

  /** Takes an image's name away, and the image itself as soon as nothing needs it. A missing one has gone. */
  async retire(image: string, id: string): Promise<void> {
    const retired = `retired-${id}-${randomUUID()}`;
    if (await this.pool.rename(image, retired)) await this.settle(retired);
  }

  /**
   * Removes of an image what only clones needed that are gone, and a retired image of which nothing is left. One that is still open
   * somewhere stays until the next time.
   */
  async settle(image: string): Promise<void> {
    const info = await this.pool.info(image);
    if (info === null) return;
    let needed = false;
    for (const snapshot of (await this.pool.snapshots(image)) ?? []) {
      if (!(await this.#letGo(image, snapshot))) needed = true;
    }
    if (!isRetired(image) || needed || !(await this.pool.remove(image))) return;
    if (info.parent?.place === this.pool.place) await this.settle(info.parent.image);
  }

  /** Whether a retired image only waits to be removed. */
  async isDone(image: string): Promise<boolean> {
    for (const { name, isProtected } of (await this.pool.snapshots(image)) ?? []) {
      if (!isOurs(image, name) || (isProtected && (await this.pool.hasChildren(image, name)))) return false;
    }
    return true;
  }

  /** Of runs that were interrupted. */
  async removeDrafts(id: string): Promise<void> {
    for (const name of await this.pool.list()) {
      if (name.startsWith(draftsOf(id))) await this.retire(name, id);
    }
  }

  /** Gives a finished image its name. @throws RbdError `exists`; VolumeConflictError when another run has taken it away */
  async finish(image: string, to: string): Promise<void> {
    if (await this.pool.rename(image, to)) return;
    throw new VolumeConflictError(`${this.pool.shown(image)} is gone: another run has finished or given it up.`);
  }

  /** After a machine has died while an image got this name. @returns whether it has it now */
  async finishAgain(image: string, to: string, { signal, fence }: RunContext): Promise<boolean> {
    signal.throwIfAborted();
    fence();
    return await this.pool.rename(image, to);
  }

  /**
   * Gives a finished image a volume's name. What the volume was before becomes `replaced-ID-TAG` meanwhile: after a crash, it is put
   * back by `volume`, or another call goes on.
   */
  async promote(image: string, volumeId: string, tag: string, { signal, fence }: RunContext): Promise<void> {
    const [volume, replaced] = [volumeImage(volumeId), replacedImage(volumeId, tag)];
    signal.throwIfAborted();
    fence();
    await this.pool.lockExclusively(image);
    for (let tries = 1; ; tries++) {
      fence();
      await this.pool.rename(volume, replaced).catch(async (error: unknown) => {
        if (!saysErrno(error, "exists")) throw error;
        // Of an earlier run.
        await this.putBack(replaced, volumeId);
        await this.pool.rename(volume, replaced);
      });
      try {
        // The command may have taken long: then it is the volume of the run that took over that has given its name away.
        fence();
        await this.finish(image, volume);
        break;
      } catch (error) {
        await this.putBack(replaced, volumeId);
        // Somebody has looked for the volume while it had no name, and put it back.
        if (!saysErrno(error, "exists") || tries === triesMax) throw error;
      }
    }
    await this.retire(replaced, volumeId);
  }

  /** What was replaced is the volume again if there is no other; otherwise it goes. */
  async putBack(replaced: string, volumeId: string): Promise<void> {
    const volume = volumeImage(volumeId);
    if ((await this.pool.info(volume)) === null && (await this.#renameUnlessTaken(replaced, volume))) return;
    await this.retire(replaced, volumeId);
  }

  async #renameUnlessTaken(image: string, to: string): Promise<boolean> {
    try {
      await this.pool.rename(image, to);
      return true;
    } catch (error) {
      if (saysErrno(error, "exists")) return false;
      throw error;
    }
  }

  /** The volume and what it has been. */
  async #imagesOf(volumeId: string): Promise<string[]> {
    const starts = [`retired-${volumeId}-`, `replaced-${volumeId}-`];
    const volume = volumeImage(volumeId);
    return (await this.pool.list()).filter((name) => name === volume || starts.some((start) => name.startsWith(start)));
  }

  /** Keeps it protected only while there is a clone, and removes it if it is for nothing else. @returns whether it is gone */
  async #letGo(image: string, { name, isProtected }: ImageSnapshot): Promise<boolean> {
    try {
      if (isProtected && !(await this.#unprotect(image, name))) return false;
      if (!isOurs(image, name)) return false;
      try {
        await this.pool.removeSnapshot(image, name);
      } catch (error) {
        // While it is being unprotected, which may have been interrupted, it is neither.
        if (!saysErrno(error, "busy") || !(await this.#unprotect(image, name))) throw error;
        await this.pool.removeSnapshot(image, name);
      }
      return true;
    } catch (error) {
      if (saysErrno(error, "busy")) return false;
      throw error;
    }
  }

  /** @returns whether it has no clones */
  async #unprotect(image: string, snapshot: string): Promise<boolean> {
    if (await this.pool.hasChildren(image, snapshot)) return false;
    await this.pool.unprotect(image, snapshot);
    return true;
  }
}

/** Whether nobody has asked for a snapshot. Those that volumes are read by go with the image. */
const isOurs = (image: string, name: string): boolean =>
  name.startsWith("kept-") || (isRetired(image) && name.startsWith("read-"));

function parseNote(text: string): FrozenNote | null {
  const [, volumeId, kind, time] = /^([A-Za-z0-9-]+) (whole|clone) ([0-9]+)$/.exec(text.trim()) ?? [];
  if (volumeId === undefined) return null;
  return { volumeId, isWhole: kind === "whole", frozenAt: new Date(Number(time)) };
}
