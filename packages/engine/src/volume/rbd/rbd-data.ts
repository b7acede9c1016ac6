import { SourceChangedError, SourceMissingError, VolumeConflictError } from "../../errors.ts";
import type { RunContext } from "../../run/run-context.ts";
import { copyData } from "../file/copy-file.ts";
import { NbdSource, NbdTarget } from "../nbd/nbd-volume.ts";
import type { ServedNode } from "../qemu/qemu-nbd.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { type Frozen, type RbdImages, readName, volumeImage } from "./rbd-images.ts";
import type { ImageSnapshot, RbdPool } from "./rbd-pool.ts";
import { serveRbd } from "./serve-rbd.ts";

/** A snapshot by which a volume was read is kept as long: others may still read by it. */
const readMs = 24 * 60 * 60 * 1000;
/** How often a snapshot is looked for again when its image got another name meanwhile. */
const triesMax = 3;

/** The bytes of images, by librbd in qemu-nbd. */
export class RbdData {
  readonly #images: RbdImages;
  readonly #pool: RbdPool;

  constructor(images: RbdImages) {
    this.#images = images;
    this.#pool = images.pool;
  }

  /** `find`: again whenever the image that it is in may have got another name. */
  async openFrozen(find: () => Promise<Frozen>): Promise<VolumeSource> {
    for (let tries = 1; ; tries++) {
      const { image, snapshot } = await find();
      const fingerprint = async (): Promise<string> => {
        const { id } = (await find()).snapshot;
        if (id !== snapshot.id) throw new SourceChangedError(`${snapshot.name} was made anew meanwhile.`);
        return `${snapshot.name}:${id}`;
      };
      try {
        return await this.#open(image, snapshot.name, fingerprint);
      } catch (error) {
        if (tries === triesMax || (await find()).image === image) throw error;
      }
    }
  }

  async openVolume(volumeId: string): Promise<VolumeSource> {
    if ((await this.#images.volume(volumeId)) === null) throw new SourceMissingError(`There is no volume ${volumeId}.`);
    return await this.openImage(volumeImage(volumeId));
  }

  /**
   * Opens an image at one point in time, whoever writes to it: by a snapshot, which is used again as long as nothing was written since, so
   * that it has one fingerprint everywhere. It goes with the image, or a day after a newer one.
   */
  async openImage(image: string): Promise<VolumeSource> {
    const info = await this.#pool.info(image);
    if (info === null) throw new SourceMissingError(`There is no image ${this.#pool.shown(image)}.`);
    // What a clone discards of its parent's data does not show.
    const last = info.parent === null ? await this.#lastRead(image) : null;
    const isStill = last !== null && !(await this.#hasChanged(image, last.name));
    const name = isStill ? last.name : readName();
    if (!isStill) {
      await this.#removeOldReads(image);
      await this.#pool.freeze(image, name);
    }
    const fingerprint = async (): Promise<string> =>
      `${name}${(await this.#hasChanged(image, name)) ? " changed" : ""}`;
    return await this.#open(image, name, fingerprint);
  }

  /** Null when there is no such image. */
  async openTarget(image: string): Promise<VolumeTarget | null> {
    if ((await this.#pool.info(image)) === null) return null;
    const served = await serveRbd({ ...this.#pool.access, image, snapshot: null }, { writable: true });
    return owned(new NbdTarget(served.client, { isNew: true }), served);
  }

  /** Copies what a source has from `offset` on to the same place of an image that is zero there, durably. */
  async copyOnto(source: VolumeSource, image: string, offset: number, run: RunContext): Promise<void> {
    const opened = await this.openTarget(image);
    if (opened === null) throw new VolumeConflictError(`${this.#pool.shown(image)} was removed meanwhile.`);
    await using target = opened;
    await copyData(source, target, { offset, length: source.sizeBytes - offset }, run);
    await target.flush();
  }

  async #open(image: string, snapshot: string, fingerprint: () => Promise<string>): Promise<VolumeSource> {
    const served = await serveRbd({ ...this.#pool.access, image, snapshot }, { writable: false });
    return owned(new NbdSource(served.client, fingerprint), served);
  }

  async #lastRead(image: string): Promise<ImageSnapshot | null> {
    const all = (await this.#pool.snapshots(image)) ?? [];
    return all.findLast(({ name }) => name.startsWith("read-")) ?? null;
  }

  async #removeOldReads(image: string): Promise<void> {
    for (const { name, madeAt } of (await this.#pool.snapshots(image)) ?? []) {
      const isOld = Date.now() - madeAt.getTime() > readMs;
      if (isOld && name.startsWith("read-")) await this.#pool.removeSnapshot(image, name);
    }
  }

  async #hasChanged(image: string, since: string): Promise<boolean> {
    for await (const _ of this.#pool.changes(image, since, null)) return true;
    return false;
  }
}

const owned = <Opened extends AsyncDisposable>(opened: Opened, served: ServedNode): Opened =>
  Object.assign(opened, { [Symbol.asyncDispose]: () => served[Symbol.asyncDispose]() });
