import { randomUUID } from "node:crypto";
import {
  BackendUnavailableError,
  SourceChangedError,
  SourceMissingError,
  VolumeConflictError,
  VolumeStorageError,
} from "../../errors.ts";
import { clipExtent, type Extent } from "../../format/extents.ts";
import type { RunContext } from "../../run/run-context.ts";
import type {
  BackendLeftover,
  ExportOptions,
  RestoreLengths,
  SourceReference,
  UserPlaces,
  VolumeBackend,
  VolumeCapabilities,
} from "../backend.ts";
import { haveSameBytes } from "../file/adopt-file.ts";
import { exportVolume } from "../file/export-file.ts";
import { openImport } from "../file/open-import.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { inWholeSectors, wholeSectors } from "../whole-sectors.ts";
import { cloneVolume } from "./rbd-clone.ts";
import { hasExactDiffs, saysErrno, saysMissing } from "./rbd-command.ts";
import { RbdData } from "./rbd-data.ts";
import {
  draftsOf,
  type Frozen,
  frozenName,
  isRetired,
  keptName,
  newDraftOf,
  RbdImages,
  replacedImage,
  restoreImage,
  volumeImage,
} from "./rbd-images.ts";
import { listLeftovers, noteStray, removeLeftover } from "./rbd-leftovers.ts";
import { RbdPool } from "./rbd-pool.ts";

/**
 * The `rbd` driver: volumes are images of a pool of Ceph's, see rbd-images.ts; lengths are whole sectors of 512 bytes. Snapshots are those
 * of RBD, clones share what they have not written with the snapshot that they were made from. A restore writes an image of its own, which
 * takes the volume's name; whoever has the old one open keeps writing to that.
 */
export class RbdBackend implements VolumeBackend {
  readonly capabilities: VolumeCapabilities;
  readonly #pool: RbdPool;
  readonly #images: RbdImages;
  readonly #data: RbdData;

  constructor(pool: RbdPool, { tellsChanges }: { tellsChanges: boolean }) {
    this.capabilities = { restores: "aside", tellsChanges, fingerprints: "everywhere" };
    this.#pool = pool;
    this.#images = new RbdImages(pool);
    this.#data = new RbdData(this.#images);
  }

  /** Where nobody counts, it is not known to be little. */
  async freeBytes(): Promise<number> {
    return (await this.#pool.freeBytes()) ?? Number.MAX_SAFE_INTEGER;
  }

  async create(volumeId: string, sizeBytes: number): Promise<void> {
    const image = volumeImage(volumeId);
    try {
      await this.#pool.create(image, wholeSectors(sizeBytes), "single");
    } catch (error) {
      if (!saysErrno(error, "exists")) throw error;
      if ((await this.#pool.info(image))?.sizeBytes === wholeSectors(sizeBytes)) return;
      throw new VolumeConflictError(`Volume ${volumeId} already exists with another length.`, { cause: error });
    }
  }

  clone(source: SourceReference, volumeId: string, sizeBytes: number, run: RunContext): Promise<{ sizeBytes: number }> {
    return cloneVolume(this.#images, { source, volumeId, sizeBytes: wholeSectors(sizeBytes) }, run);
  }

  async extend(volumeId: string, sizeBytes: number): Promise<void> {
    const size = wholeSectors(sizeBytes);
    if ((await this.measure(volumeId)).sizeBytes >= size) return;
    try {
      await this.#pool.extend(volumeImage(volumeId), size);
    } catch (error) {
      if ((await this.measure(volumeId)).sizeBytes < size) throw error;
    }
  }

  async remove(volumeId: string): Promise<void> {
    const image = volumeImage(volumeId);
    // First what would be put back in its place.
    for (const name of await this.#pool.list()) {
      if (name.startsWith(replacedImage(volumeId, ""))) await this.#images.retire(name, volumeId);
    }
    await this.#images.retire(image, volumeId);
  }

  async measure(volumeId: string): Promise<{ sizeBytes: number }> {
    const info = await this.#images.volume(volumeId);
    if (info === null) throw new SourceMissingError(`There is no volume ${volumeId}.`);
    return { sizeBytes: info.sizeBytes };
  }

  async canFreezeCheaply(): Promise<boolean> {
    return true;
  }

  async freeze(volumeId: string, snapshotId: string, run: RunContext): Promise<{ sizeBytes: number }> {
    const existing = await this.#images.find(snapshotId);
    if (existing !== null) return { sizeBytes: existing.snapshot.sizeBytes };
    const image = volumeImage(volumeId);
    const missing = (): SourceMissingError => new SourceMissingError(`There is no volume ${volumeId}.`);
    const info = await this.#images.volume(volumeId);
    if (info === null) throw missing();
    run.signal.throwIfAborted();
    run.fence();
    await this.#images.noteFrozen(snapshotId, { volumeId, isWhole: info.parent === null, frozenAt: new Date() });
    try {
      run.signal.throwIfAborted();
      run.fence();
      await this.#pool.freeze(image, frozenName(snapshotId));
    } catch (error) {
      if ((await this.#images.find(snapshotId)) === null) await this.#images.forgetFrozen(snapshotId);
      throw saysMissing(error) ? missing() : error;
    }
    return { sizeBytes: (await this.#images.frozen(snapshotId)).snapshot.sizeBytes };
  }

  /** One that clones build on stays for them, under another name. */
  async thaw(snapshotId: string): Promise<void> {
    const found = await this.#images.find(snapshotId);
    const isKept = found !== null && (await this.#removeOrKeep(found, snapshotId));
    await this.#images.forgetFrozen(snapshotId);
    if (found !== null && (isKept || isRetired(found.image))) await this.#images.settle(found.image);
  }

  snapshotPaths(volumeId: string): never {
    throw new BackendUnavailableError(
      `Volume ${volumeId} is an image in Ceph: snapshots together with a running machine need raw files.`,
    );
  }

  async openSource(source: SourceReference): Promise<VolumeSource> {
    return "volumeId" in source
      ? this.#data.openVolume(source.volumeId)
      : this.#data.openFrozen(() => this.#images.frozen(source.snapshotId));
  }

  /**
   * By asking Ceph what was written since. Of a clone that is not known: what it discards of its parent's data is no change of its own.
   * Each call asks for every object of the image.
   */
  async *changedExtents(source: SourceReference, since: string, range: Extent): AsyncGenerator<Extent> {
    const before = await this.#images.find(since);
    const now = "snapshotId" in source ? await this.#images.frozen(source.snapshotId) : null;
    const image = now?.image ?? ("volumeId" in source ? volumeImage(source.volumeId) : "");
    const isOfBoth = before?.image === image && (now === null || now.snapshot.id >= before.snapshot.id);
    const whole = clipExtent(range, range);
    if (whole === null) return;
    if (!before?.isWhole || !isOfBoth || !this.capabilities.tellsChanges) {
      yield whole;
      return;
    }
    yield* this.#pool.changesIn(range, { image, since: before.snapshot, until: now?.snapshot ?? null });
  }

  async beginRestore(volumeId: string, restoreId: string, lengths: RestoreLengths, run?: RunContext): Promise<void> {
    const ctx = run ?? unlimited;
    const to = restoreImage(restoreId);
    await this.#images.removeDrafts(restoreId);
    const tail = lengths.keepTail ? (await this.measure(volumeId)).sizeBytes : 0;
    const from = wholeSectors(lengths.sizeBytes);
    const draft = newDraftOf(restoreId);
    await this.#pool.create(draft, Math.max(from, tail), "shared");
    try {
      if (tail > lengths.sizeBytes) {
        await using source = await this.#data.openVolume(volumeId);
        await this.#data.copyOnto(source, draft, lengths.sizeBytes, ctx);
      }
      await this.#images.retire(to, restoreId);
      await this.#images.finish(draft, to);
    } catch (error) {
      await this.#images.retire(draft, restoreId);
      throw error;
    }
  }

  async openRestoreTarget(volumeId: string, restoreId: string): Promise<VolumeTarget> {
    const target = await this.#data.openTarget(restoreImage(restoreId));
    if (target === null) throw notBeingRestored(volumeId);
    return target;
  }

  async openRestored(_volumeId: string, restoreId: string): Promise<VolumeSource> {
    return this.#data.openImage(restoreImage(restoreId));
  }

  /** With `fresh`, a copy of the restored image becomes the volume, which a late writer does not reach. */
  async publishRestore(
    volumeId: string,
    restoreId: string,
    options: { fresh: boolean },
    run: RunContext = unlimited,
  ): Promise<void> {
    const [restored, volume] = [restoreImage(restoreId), volumeImage(volumeId)];
    const found = await this.#pool.info(restored);
    const isDone =
      found === null
        ? (await this.#images.volume(volumeId)) !== null
        : (await this.#pool.info(volume))?.id === found.id && (await this.#images.finishAgain(restored, volume, run));
    if (isDone) return await this.#images.retire(replacedImage(volumeId, restoreId), volumeId);
    if (found === null) throw notBeingRestored(volumeId);
    if (!options.fresh) return await this.#images.promote(restored, volumeId, restoreId, run);
    const draft = await this.#copyOf(restored, restoreId, run);
    try {
      await this.#images.promote(draft, volumeId, restoreId, run);
    } catch (error) {
      await this.#images.retire(draft, restoreId);
      throw error;
    }
    await this.#images.retire(restored, restoreId);
  }

  async copyRestore(volumeId: string, restoreId: string, freshId: string, run: RunContext): Promise<void> {
    const [restored, fresh] = [restoreImage(restoreId), restoreImage(freshId)];
    if ((await this.#pool.info(restored)) === null) throw notBeingRestored(volumeId);
    const draft = await this.#copyOf(restored, freshId, run);
    await this.#images.retire(fresh, freshId);
    await this.#images.finish(draft, fresh);
  }

  /** What a publication that was interrupted has taken the volume's name from gets it back. */
  async abandonRestore(restoreId: string): Promise<void> {
    const restored = restoreImage(restoreId);
    for (const name of await this.#pool.list()) {
      const isReplaced = name.startsWith("replaced-") && name.endsWith(`-${restoreId}`);
      if (isReplaced) await this.#images.putBack(name, name.slice("replaced-".length, -restoreId.length - 1));
      if (name === restored || name.startsWith(draftsOf(restoreId))) await this.#images.retire(name, restoreId);
    }
  }

  async importFile(
    path: string,
    volumeId: string,
    places: UserPlaces,
    run: RunContext,
  ): Promise<{ sizeBytes: number }> {
    await using source = await openImport(path, places);
    await this.#images.removeDrafts(volumeId);
    const draft = newDraftOf(volumeId);
    const sizeBytes = wholeSectors(source.sizeBytes);
    await this.#pool.create(draft, sizeBytes, "shared");
    try {
      const before = await source.fingerprint();
      await this.#data.copyOnto(source, draft, 0, run);
      if ((await source.fingerprint()) !== before) throw new SourceChangedError(`${path} changed while it was read.`);
      await this.#images.promote(draft, volumeId, `${randomUUID()}-0`, run);
      return { sizeBytes };
    } catch (error) {
      await this.#images.retire(draft, volumeId);
      throw error;
    }
  }

  async importIfAbsent(path: string, volumeId: string, places: UserPlaces, run: RunContext): Promise<void> {
    if ((await this.#images.volume(volumeId)) === null) {
      await this.importFile(path, volumeId, places, run);
      return;
    }
    await using source = await openImport(path, places);
    await using existing = await this.openSource({ volumeId });
    if (await haveSameBytes(existing, inWholeSectors(source), run)) return;
    throw new VolumeConflictError(`Volume ${volumeId} is there already, and has other bytes.`);
  }

  async statImport(path: string, places: UserPlaces): Promise<{ sizeBytes: number }> {
    await using source = await openImport(path, places);
    return { sizeBytes: wholeSectors(source.sizeBytes) };
  }

  exportFile(volumeId: string, path: string, options: ExportOptions, run: RunContext): Promise<{ sizeBytes: number }> {
    return exportVolume(this, volumeId, { path, ...options }, run);
  }

  leftovers(): AsyncGenerator<BackendLeftover> {
    return listLeftovers(this.#images);
  }

  async removeLeftover(leftover: BackendLeftover): Promise<void> {
    const [id = ""] = leftover.ids;
    if (leftover.kind === "volume") await this.remove(id);
    else if (leftover.kind === "snapshot") {
      await noteStray(this.#images, leftover);
      await this.thaw(id);
    } else await removeLeftover(this.#images, leftover);
  }

  /** @returns whether it stays for its clones */
  async #removeOrKeep({ image, snapshot }: Frozen, snapshotId: string): Promise<boolean> {
    if (!snapshot.isProtected) {
      try {
        await this.#pool.removeSnapshot(image, snapshot.name);
        return false;
      } catch (error) {
        // It has been cloned meanwhile.
        if (!saysErrno(error, "busy")) throw error;
      }
    }
    await this.#pool.renameSnapshot(image, snapshot.name, keptName(snapshotId));
    return true;
  }

  /** A new image with the bytes of another one, at one point in time. */
  async #copyOf(image: string, id: string, run: RunContext): Promise<string> {
    await this.#images.removeDrafts(id);
    await using source = await this.#data.openImage(image);
    const draft = newDraftOf(id);
    await this.#pool.create(draft, source.sizeBytes, "shared");
    try {
      await this.#data.copyOnto(source, draft, 0, run);
      return draft;
    } catch (error) {
      await this.#images.retire(draft, id);
      throw error;
    }
  }
}

/** What is not given is Ceph's own default. */
export interface RbdPlace {
  namespace?: string | undefined;
  conf?: string | undefined;
  user?: string | undefined;
  keyring?: string | undefined;
}

/**
 * Opens a pool. BackendUnavailableError when `rbd` is not installed, or Ceph does not answer, has no such pool or denies access.
 */
export async function openRbdBackend(pool: string, place: RbdPlace): Promise<RbdBackend> {
  const { namespace = null, conf = null, user = null, keyring = null } = place;
  const opened = new RbdPool({ pool, namespace, conf, user, keyring });
  try {
    const [tellsChanges] = await Promise.all([hasExactDiffs(), opened.list()]);
    return new RbdBackend(opened, { tellsChanges });
  } catch (error) {
    if (!(error instanceof VolumeStorageError)) throw error;
    throw new BackendUnavailableError(error.message, { cause: error });
  }
}

const notBeingRestored = (volumeId: string): VolumeConflictError =>
  new VolumeConflictError(`Volume ${volumeId} is not being restored.`);

const unlimited: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
