import { link, lstat } from "node:fs/promises";
import { basename, join, resolve } from "node:path";
import { BackendUnavailableError, errnoOf, VolumeConflictError } from "../../errors.ts";
import { clipExtent, type Extent } from "../../format/extents.ts";
import { idsIn } from "../../format/ids-in.ts";
import type { RunContext } from "../../run/run-context.ts";
import type {
  BackendLeftover,
  ExportOptions,
  LayersToMerge,
  RestoreLengths,
  RunningImages,
  SourceReference,
  UserPlaces,
  VolumeBackend,
} from "../backend.ts";
import { haveSameBytes } from "../file/adopt-file.ts";
import { copySparse, copyToNewFile, unlinkIfThere } from "../file/copy-file.ts";
import { newDraft } from "../file/drafts.ts";
import { exportVolume } from "../file/export-file.ts";
import { checkId, type FileBackend, openFileBackend } from "../file/file-backend.ts";
import { openFileSource } from "../file/file-source.ts";
import { openImport } from "../file/open-import.ts";
import { syncFolder } from "../file/sync-folder.ts";
import { guardStorage } from "../storage-error.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { inWholeSectors, wholeSectors } from "../whole-sectors.ts";
import { type AdoptedImage, AdoptedImages, linkedAt } from "./adopted.ts";
import { requireLocks } from "./folder-lock.ts";
import { closeChain, inspectImage } from "./image-chain.ts";
import { serveSource } from "./image-source.ts";
import { Layers, patiently, syncFile } from "./layers.ts";
import { createQcow2, requireQemuUtils, resizeImage } from "./qemu-img.ts";
import { branchRunning, mergeRunning, settleRunning } from "./running-layers.ts";

/**
 * The `qemu` driver: volumes are qcow2 images in one folder, see layers.ts; lengths are whole sectors of 512 bytes. An image that another
 * program has open for writing is neither read nor replaced. Restores and imports are raw files, which any number of threads and machines
 * write, and become the lowest layer of a volume without being copied.
 */
export class QemuBackend implements VolumeBackend {
  readonly capabilities = { restores: "aside", tellsChanges: true, fingerprints: "everywhere" } as const;
  readonly #folder: string;
  readonly #layers: Layers;
  /** Its raw files: restores and drafts. */
  readonly #files: FileBackend;
  readonly #adopted: AdoptedImages;

  /** `roots`: where images may be that become volumes and stay where they are. */
  constructor(folder: string, files: FileBackend, roots: readonly string[]) {
    this.#folder = folder;
    this.#adopted = new AdoptedImages(folder, roots);
    this.#files = files;
    this.#layers = new Layers(folder);
  }

  freeBytes(): Promise<number> {
    return this.#files.freeBytes();
  }

  async create(volumeId: string, sizeBytes: number): Promise<void> {
    const path = this.#volume(volumeId);
    await using draft = await newDraft(path);
    await createQcow2(draft.path, wholeSectors(sizeBytes), null, path);
    await syncFile(draft.path);
    await guardStorage(`create ${path}`, () => link(draft.path, path)).catch(async (error: unknown) => {
      if (errnoOf((error as Error).cause) !== "EEXIST" && errnoOf(error) !== "EEXIST") throw error;
      if ((await inspectImage(path)).sizeBytes === wholeSectors(sizeBytes)) return;
      throw new VolumeConflictError(`Volume ${volumeId} already exists with another length.`, { cause: error });
    });
    await syncFolder(this.#folder);
  }

  async clone(
    source: SourceReference,
    volumeId: string,
    sizeBytes: number,
    run: RunContext,
  ): Promise<{ sizeBytes: number }> {
    const to = this.#volume(volumeId);
    const existing = await sizeOf(to);
    if (existing !== null) return { sizeBytes: existing };
    const size = wholeSectors(sizeBytes);
    const adopted = "volumeId" in source ? await this.#adoptedOf(source.volumeId) : null;
    if (adopted !== null) return { sizeBytes: await this.#copyAdopted(adopted, to, size, run) };
    return {
      sizeBytes:
        "volumeId" in source
          ? await this.#layers.branch(this.#volume(source.volumeId), to, size, run)
          : await this.#layers.branchSnapshot(this.#snapshot(source.snapshotId), to, size, run),
    };
  }

  async extend(volumeId: string, sizeBytes: number): Promise<void> {
    const adopted = await this.#adoptedOf(volumeId);
    const path = adopted?.path ?? this.#volume(volumeId);
    if ((await this.measure(volumeId)).sizeBytes >= sizeBytes) return;
    await patiently(async () => {
      const chain = await (adopted ? this.#adopted.openChain(adopted) : this.#layers.openChain(path));
      try {
        await resizeImage(chain, wholeSectors(sizeBytes));
      } finally {
        await closeChain(chain);
      }
    });
    if (adopted === null) await syncFile(path);
  }

  /** An adopted image stays where it is. */
  async remove(volumeId: string): Promise<void> {
    checkId(volumeId);
    await guardStorage(`let go of volume ${volumeId}`, () => this.#adopted.release(volumeId));
    await this.#remove(this.#volume(volumeId));
  }

  async measure(volumeId: string): Promise<{ sizeBytes: number }> {
    const adopted = await this.#adoptedOf(volumeId);
    if (adopted !== null) return { sizeBytes: await this.#adopted.sizeOf(adopted) };
    return { sizeBytes: (await inspectImage(this.#volume(volumeId))).sizeBytes };
  }

  async adoptImage(url: string, volumeId: string, run: RunContext): Promise<{ sizeBytes: number }> {
    if ((await sizeOf(this.#volume(volumeId))) !== null) {
      throw new VolumeConflictError(`There is a volume ${volumeId} already.`);
    }
    await using _locked = await this.#layers.lock();
    return { sizeBytes: await this.#adopted.adopt(url, volumeId, run) };
  }

  async canFreezeCheaply(volumeId?: string): Promise<boolean> {
    return volumeId === undefined || (await this.#adoptedOf(volumeId)) === null;
  }

  async freeze(volumeId: string, snapshotId: string, run: RunContext): Promise<{ sizeBytes: number }> {
    const to = this.#snapshot(snapshotId);
    const existing = await sizeOf(to);
    if (existing !== null) return { sizeBytes: existing };
    const adopted = await this.#adoptedOf(volumeId);
    if (adopted !== null) return { sizeBytes: await this.#copyAdopted(adopted, to, 0, run) };
    return { sizeBytes: await this.#layers.branch(this.#volume(volumeId), to, 0, run) };
  }

  /** What an interrupted run has taken is taken anew, so that all are of one moment. */
  async freezeTogether(
    members: readonly { volumeId: string; snapshotId: string }[],
    run: RunContext,
  ): Promise<{ takenAt: Date; sizesBytes: number[] }> {
    for (const member of members) await this.settleRunning(member, null);
    const snapshots = members.map(({ snapshotId }) => this.#snapshot(snapshotId));
    const taken = await Promise.all(snapshots.map((path) => lstat(path).catch(() => undefined)));
    if (taken.every((status) => status !== undefined)) {
      const sizesBytes = await Promise.all(snapshots.map(async (path) => (await inspectImage(path)).sizeBytes));
      return { takenAt: taken[0]?.mtime ?? new Date(), sizesBytes };
    }
    for (const path of snapshots) await guardStorage(`remove ${path}`, () => unlinkIfThere(path));
    const adopted = await Promise.all(members.map(({ volumeId }) => this.#adoptedOf(volumeId)));
    const layered = members.flatMap(({ volumeId }, index) =>
      adopted[index] ? [] : [{ image: this.#volume(volumeId), to: snapshots[index] ?? "", sizeBytes: 0 }],
    );
    const takenAt = new Date();
    const sizes = await this.#layers.branchTogether(layered, run);
    const sizesBytes: number[] = [];
    for (const [index, image] of adopted.entries()) {
      const size = image ? await this.#copyAdopted(image, snapshots[index] ?? "", 0, run) : sizes.shift();
      sizesBytes.push(size ?? 0);
    }
    return { takenAt, sizesBytes };
  }

  async freezeRunning<Taken>(
    members: readonly { volumeId: string; snapshotId: string }[],
    images: RunningImages<Taken>,
    run: RunContext,
  ): Promise<{ taken: Taken; sizesBytes: number[] }> {
    for (const { volumeId } of members) {
      if ((await this.#adoptedOf(volumeId)) === null) continue;
      throw new BackendUnavailableError(
        `Volume ${volumeId} is an image elsewhere: a snapshot of it needs a machine that is off.`,
      );
    }
    const parts = members.map(({ volumeId, snapshotId }) => ({
      volumeId,
      image: this.#volume(volumeId),
      to: this.#snapshot(snapshotId),
      id: checkId(snapshotId),
    }));
    return await branchRunning(this.#layers, parts, images, run);
  }

  async settleRunning(
    { volumeId, snapshotId }: { volumeId: string; snapshotId: string },
    images: Pick<RunningImages<unknown>, "writes"> | null,
  ): Promise<void> {
    await settleRunning(this.#layers, { image: this.#volume(volumeId), id: checkId(snapshotId) }, images);
  }

  async mergeRunning(volumeId: string, merge: (layers: LayersToMerge) => Promise<void>): Promise<void> {
    if ((await this.#adoptedOf(volumeId)) === null) await mergeRunning(this.#layers, this.#volume(volumeId), merge);
  }

  async goBack(volumeId: string, snapshotId: string, run: RunContext): Promise<void> {
    const adopted = await this.#adoptedOf(volumeId);
    if (adopted === null) {
      await this.#layers.goBack(this.#volume(volumeId), this.#snapshot(snapshotId), run);
      await this.#layers.collect();
      return;
    }
    await using source = await this.openSource({ snapshotId });
    await using draft = await newDraft(join(this.#folder, `copy-${snapshotId}`));
    await copyToNewFile(Object.assign(source, { path: `snapshot ${snapshotId}` }), draft.path, run);
    await using copy = await openFileSource(draft.path);
    await this.#adopted.publish(adopted, copy, snapshotId, run);
  }

  async thaw(snapshotId: string): Promise<void> {
    await this.#remove(this.#snapshot(snapshotId));
  }

  snapshotPaths(volumeId: string): never {
    throw new BackendUnavailableError(
      `Volume ${volumeId} is an image with layers: snapshots together with a running machine need raw files.`,
    );
  }

  async imageFile(volumeId: string): Promise<{ path: string; format: "qcow2" | "raw" }> {
    const adopted = await this.#adoptedOf(volumeId);
    return adopted ?? { path: this.#volume(volumeId), format: "qcow2" };
  }

  async snapshotFile(snapshotId: string): Promise<{ path: string; format: "qcow2" }> {
    return { path: this.#snapshot(snapshotId), format: "qcow2" };
  }

  async openSource(source: SourceReference): Promise<VolumeSource> {
    const adopted = "volumeId" in source ? await this.#adoptedOf(source.volumeId) : null;
    if (adopted !== null) return patiently(async () => serveSource(await this.#adopted.openChain(adopted)));
    const [path, fingerprint] =
      "volumeId" in source
        ? [this.#volume(source.volumeId), undefined]
        : // Its layers may be merged meanwhile, which changes no byte of it.
          [this.#snapshot(source.snapshotId), `snapshot ${source.snapshotId}`];
    return patiently(async () => serveSource(await this.#layers.openChain(path), { fingerprint }));
  }

  async *changedExtents(source: SourceReference, since: string, range: Extent): AsyncGenerator<Extent> {
    const path = "volumeId" in source ? this.#volume(source.volumeId) : this.#snapshot(source.snapshotId);
    const adopted = "volumeId" in source ? await this.#adoptedOf(source.volumeId) : null;
    const changed = adopted ? null : await this.#layers.changedSince(path, this.#snapshot(since), range);
    const whole = clipExtent(range, range);
    yield* changed ?? (whole === null ? [] : [whole]);
  }

  /** The target is a raw file, as of the `file` driver. */
  async beginRestore(volumeId: string, restoreId: string, lengths: RestoreLengths, run?: RunContext): Promise<void> {
    const ctx = run ?? unlimited;
    const tail = lengths.keepTail ? (await this.measure(volumeId)).sizeBytes : 0;
    const sizeBytes = Math.max(lengths.sizeBytes, tail);
    await this.#files.beginRestore(volumeId, restoreId, { sizeBytes, keepTail: false }, ctx);
    if (tail <= lengths.sizeBytes) return;
    await using source = await this.openSource({ volumeId });
    const part = { offset: lengths.sizeBytes, sizeBytes, isNew: false };
    await copySparse(source, this.#restore(restoreId), part, ctx);
  }

  openRestoreTarget(volumeId: string, restoreId: string): Promise<VolumeTarget> {
    return this.#files.openRestoreTarget(volumeId, restoreId);
  }

  openRestored(volumeId: string, restoreId: string): Promise<VolumeSource> {
    return this.#files.openRestored(volumeId, restoreId);
  }

  /** With `fresh`, a copy of the restored file becomes the layer, which a late writer does not reach. */
  async publishRestore(
    volumeId: string,
    restoreId: string,
    options: { fresh: boolean },
    run: RunContext = unlimited,
  ): Promise<void> {
    const restored = this.#restore(restoreId);
    const volume = this.#volume(volumeId);
    const adopted = await this.#adoptedOf(volumeId);
    if ((await lstat(restored).catch(() => undefined)) === undefined) {
      if (adopted !== null || (await sizeOf(volume)) !== null) return;
      throw new VolumeConflictError(`Volume ${volumeId} is not being restored.`);
    }
    if (adopted !== null) {
      await using source = await openFileSource(restored);
      await this.#adopted.publish(adopted, source, restoreId, run);
    } else if (options.fresh) {
      await using source = await openFileSource(restored);
      await using draft = await newDraft(restored);
      await copyToNewFile(source, draft.path, run);
      await this.#layers.publishRaw(draft.path, volume, { sizeBytes: 0, replace: true }, run);
    } else {
      await guardStorage(`write ${restored}`, () => syncFile(restored));
      await this.#layers.publishRaw(restored, volume, { sizeBytes: 0, replace: true }, run);
    }
    await guardStorage(`remove ${restored}`, () => unlinkIfThere(restored));
    await syncFolder(this.#folder);
    await this.#layers.collect();
  }

  copyRestore(volumeId: string, restoreId: string, freshId: string, run: RunContext): Promise<void> {
    return this.#files.copyRestore(volumeId, restoreId, freshId, run);
  }

  async abandonRestore(restoreId: string): Promise<void> {
    await this.#files.abandonRestore(restoreId);
    await guardStorage(`remove restore ${restoreId}`, () => this.#adopted.abandon(restoreId));
  }

  async importFile(
    path: string,
    volumeId: string,
    places: UserPlaces,
    run: RunContext,
  ): Promise<{ sizeBytes: number }> {
    return { sizeBytes: await this.#import(path, volumeId, places, true, run) };
  }

  async importIfAbsent(path: string, volumeId: string, places: UserPlaces, run: RunContext): Promise<void> {
    if ((await sizeOf(this.#volume(volumeId))) === null) {
      await this.#import(path, volumeId, places, false, run);
      return;
    }
    await using source = await openImport(path, places);
    await using existing = await this.openSource({ volumeId });
    if (await haveSameBytes(existing, inWholeSectors(source), run)) return;
    throw new VolumeConflictError(`Volume ${volumeId} is there already, and has other bytes.`);
  }

  async #import(
    path: string,
    volumeId: string,
    places: UserPlaces,
    replace: boolean,
    run: RunContext,
  ): Promise<number> {
    const volume = this.#volume(volumeId);
    await using source = await openImport(path, places);
    await using draft = await newDraft(join(this.#folder, `import-${volumeId}`));
    await copyToNewFile(source, draft.path, run);
    return await this.#layers.publishRaw(draft.path, volume, { sizeBytes: 0, replace }, run);
  }

  async statImport(path: string, places: UserPlaces): Promise<{ sizeBytes: number }> {
    return { sizeBytes: wholeSectors((await this.#files.statImport(path, places)).sizeBytes) };
  }

  exportFile(volumeId: string, path: string, options: ExportOptions, run: RunContext): Promise<{ sizeBytes: number }> {
    return exportVolume(this, volumeId, { path, ...options }, run);
  }

  /** Of an adopted image, the link. */
  async *leftovers(): AsyncGenerator<BackendLeftover> {
    yield* this.#files.leftovers();
    for (const name of await this.#adopted.list()) {
      const path = join(this.#folder, name);
      const modifiedAt = await linkedAt(path);
      if (modifiedAt !== null) yield { kind: "volume", path, ids: idsIn(name), modifiedAt };
    }
  }

  async removeLeftover(leftover: BackendLeftover): Promise<void> {
    await this.#files.removeLeftover(leftover);
    await this.#layers.collect();
  }

  async #remove(path: string): Promise<void> {
    await guardStorage(`remove ${path}`, () => unlinkIfThere(path));
    await syncFolder(this.#folder);
    await this.#layers.collect();
  }

  async #adoptedOf(volumeId: string): Promise<AdoptedImage | null> {
    return this.#adopted.find(checkId(volumeId));
  }

  /** A copy of an adopted image at one point in time: nobody can write to it meanwhile. */
  async #copyAdopted(image: AdoptedImage, to: string, sizeBytes: number, run: RunContext): Promise<number> {
    await using source = await patiently(async () => serveSource(await this.#adopted.openChain(image)));
    await using draft = await newDraft(join(this.#folder, `copy-${basename(to)}`));
    await copyToNewFile(Object.assign(source, { path: image.path }), draft.path, run);
    return await this.#layers.publishRaw(draft.path, to, { sizeBytes, replace: false }, run);
  }

  #volume(id: string): string {
    return join(this.#folder, `volume-${checkId(id)}`);
  }

  #snapshot(id: string): string {
    return join(this.#folder, `snapshot-${checkId(id)}`);
  }

  #restore(id: string): string {
    return join(this.#folder, `.restore-${checkId(id)}`);
  }
}

/** Opens the folder of a `qemu` backend. BackendUnavailableError unless it is a writable folder, and QEMU's programs are installed. */
export async function openQemuBackend(folder: string, roots: readonly string[]): Promise<QemuBackend> {
  await requireQemuUtils();
  await requireLocks();
  const path = resolve(folder);
  return new QemuBackend(path, await openFileBackend(path), roots);
}

const unlimited: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };

/** The length of an image; null when there is none. */
async function sizeOf(path: string): Promise<number | null> {
  if ((await lstat(path).catch(() => undefined)) === undefined) return null;
  return (await inspectImage(path)).sizeBytes;
}
