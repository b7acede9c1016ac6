import { randomUUID } from "node:crypto";
import { link, lstat, open, readdir, rename } from "node:fs/promises";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { EngineError, errnoOf, SourceMissingError, VolumeConflictError } from "../../errors.ts";
import { identityOf } from "../../folder.ts";
import { clipExtent, type Extent } from "../../format/extents.ts";
import type { RunContext } from "../../run/run-context.ts";
import { unlinkIfThere } from "../file/copy-file.ts";
import { type Draft, newDraft } from "../file/drafts.ts";
import { syncFolder } from "../file/sync-folder.ts";
import { guardStorage } from "../storage-error.ts";
import { wholeSectors } from "../whole-sectors.ts";
import { lock, tryLock } from "./folder-lock.ts";
import { checkpointsIn, moveBitmaps, recordFor } from "./image-bitmaps.ts";
import { chainMax, closeChain, type ImageFile, inspectImage, openImageChain, virtualBytes } from "./image-chain.ts";
import { allocatedExtents, createQcow2, resizeImage } from "./qemu-img.ts";
import { ImageInUseError, serveImage } from "./qemu-nbd.ts";

/*
 * A volume is a qcow2 image, `volume-ID`. Whatever must not change any more is a layer, `.layer-UUID` (qcow2) or `.layer-UUID.raw`, which
 * nobody writes to as long as two images build on it. A snapshot is an empty image on a layer. Every change of names is made under one
 * lock, each by a single rename to a name in use, so that a crash leaves at most layers on which nothing builds, which `collect` removes.
 */

/** How long an image may be in use by another task, such as one that merges it. */
const patienceMs = 5_000;
const tryEveryMs = 100;
/** Bytes copied at a time when images are merged. */
const mergeBytes = 4 * 1024 * 1024;
const bigint = { bigint: true } as const;

const isLayer = (name: string): boolean => /^\.layer-[0-9a-f-]{36}(?:\.raw)?$/.test(name);
const isImage = (name: string): boolean =>
  /^(?:volume|snapshot)-[A-Za-z0-9-]+$/.test(name) || /^\.layer-[0-9a-f-]{36}$/.test(name);
/** The name of a layer. */
export const layerName = (id: string, format: "qcow2" | "raw" = "qcow2"): string =>
  `.layer-${id}${format === "raw" ? ".raw" : ""}`;
const formatOf = (layer: string): "qcow2" | "raw" => (layer.endsWith(".raw") ? "raw" : "qcow2");

/** Runs this again while the image is in use, for a limited time. */
export async function patiently<Result>(attempt: () => Promise<Result>): Promise<Result> {
  for (const until = performance.now() + patienceMs; ; ) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof ImageInUseError) || performance.now() > until) throw error;
      await sleep(tryEveryMs);
    }
  }
}

/** Keeps everybody from writing to the first image of a chain, until it is disposed. ImageInUseError when somebody does. */
export const keepWritersOff = async (chain: readonly ImageFile[]): Promise<AsyncDisposable> =>
  patiently(() => serveImage(chain.slice(0, 1), { writable: false }));

export class Layers {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  /** Nobody changes names in the folder until it is disposed. */
  lock(): Promise<AsyncDisposable> {
    return lock(join(this.#folder, ".lock"));
  }

  /** Opens an image of the folder with all that it builds on. */
  async openChain(path: string): Promise<ImageFile[]> {
    await using _locked = await this.lock();
    return await openImageChain(path, "qcow2", []);
  }

  /** The image's present contents become a layer, on which the image itself and a new one, at least `sizeBytes` long, go on. */
  async branch(image: string, to: string, sizeBytes: number, run: RunContext): Promise<number> {
    const [size = sizeBytes] = await this.branchTogether([{ image, to, sizeBytes }], run);
    return size;
  }

  /** The same of several images at one moment: nobody writes any of them meanwhile. Checkpoints stay valid. */
  async branchTogether(
    parts: readonly { image: string; to: string; sizeBytes: number }[],
    { signal, fence }: RunContext,
  ): Promise<number[]> {
    await using _locked = await this.lock();
    await using stack = new AsyncDisposableStack();
    const checkpoints: string[][] = [];
    for (const { image } of parts) {
      const chain = await openImageChain(image, "qcow2", []);
      stack.defer(() => closeChain(chain));
      stack.use(await keepWritersOff(chain));
      // A layer below may just be merged by somebody else.
      checkpoints.push(await patiently(() => checkpointsIn(chain)));
    }
    const sizes: number[] = [];
    const drafts: { goesOn: Draft; branched: Draft }[] = [];
    for (const [index, { image, to, sizeBytes }] of parts.entries()) {
      const present = await inspectImage(image);
      const layer = await this.layerNameOf(image);
      const size = Math.max(present.sizeBytes, sizeBytes);
      const goesOn = stack.use(await this.overlay(image, layer, present.sizeBytes, checkpoints[index]));
      drafts.push({ goesOn, branched: stack.use(await this.overlay(to, layer, size)) });
      sizes.push(size);
    }
    for (const [index, { image, to }] of parts.entries()) {
      const { goesOn, branched } = drafts[index] as (typeof drafts)[number];
      signal.throwIfAborted();
      fence();
      await guardStorage(`create ${image}`, () => rename(goesOn.path, image));
      await syncFolder(this.#folder);
      fence();
      await guardStorage(`create ${to}`, () => rename(branched.path, to));
      await syncFolder(this.#folder);
    }
    return sizes;
  }

  /** The image goes on from the layer that a snapshot is of, as long as it is. What it has held since is gone, and with it its checkpoints. */
  async goBack(image: string, snapshot: string, { signal, fence }: RunContext): Promise<void> {
    await using _locked = await this.lock();
    const { backing } = await inspectImage(snapshot);
    if (backing === null) throw new SourceMissingError(`${snapshot} is no snapshot.`);
    const chain = await openImageChain(image, "qcow2", []);
    await using stack = new AsyncDisposableStack();
    stack.defer(() => closeChain(chain));
    stack.use(await keepWritersOff(chain));
    const draft = stack.use(
      await this.overlay(image, join(this.#folder, backing), (await inspectImage(image)).sizeBytes),
    );
    signal.throwIfAborted();
    fence();
    await guardStorage(`create ${image}`, () => rename(draft.path, image));
    await syncFolder(this.#folder);
  }

  /** A new image on the layer that a snapshot is of. */
  async branchSnapshot(
    snapshot: string,
    to: string,
    sizeBytes: number,
    { signal, fence }: RunContext,
  ): Promise<number> {
    await using _locked = await this.lock();
    const { backing, sizeBytes: present } = await inspectImage(snapshot);
    if (backing === null) throw new SourceMissingError(`${snapshot} is no snapshot.`);
    const size = Math.max(present, sizeBytes);
    await using branched = await this.overlay(to, join(this.#folder, backing), size);
    signal.throwIfAborted();
    fence();
    await guardStorage(`create ${to}`, () => rename(branched.path, to));
    await syncFolder(this.#folder);
    return size;
  }

  /**
   * A raw file becomes a layer, and `to` an image on it, at least `sizeBytes` long. The file keeps its name. An image that `to` is already
   * is replaced, unless it is in use, or not asked to be: VolumeConflictError.
   */
  async publishRaw(
    file: string,
    to: string,
    { sizeBytes, replace }: { sizeBytes: number; replace: boolean },
    { signal, fence }: RunContext,
  ): Promise<number> {
    await using _locked = await this.lock();
    await using stack = new AsyncDisposableStack();
    if (replace && (await lstat(to).catch(() => undefined)) !== undefined) {
      const chain = await openImageChain(to, "qcow2", []);
      stack.defer(() => closeChain(chain));
      stack.use(await keepWritersOff(chain));
    }
    const size = wholeSectors(Math.max((await lstat(file)).size, sizeBytes));
    const layer = this.#newLayer("raw");
    const image = stack.use(await this.overlay(to, layer, size));
    signal.throwIfAborted();
    fence();
    await this.#name(file, layer);
    await guardStorage(`create ${to}`, async () => {
      if (replace) return rename(image.path, to);
      await link(image.path, to).catch((error: unknown) => {
        throw errnoOf(error) === "EEXIST" ? new VolumeConflictError(`${to} is there already.`) : error;
      });
    });
    await syncFolder(this.#folder);
    return size;
  }

  /**
   * What an image holds above the layer that a snapshot is of. Null when the image does not build on it.
   *
   * @throws SourceMissingError
   */
  async changedSince(image: string, snapshot: string, range: Extent): Promise<Extent[] | null> {
    const { backing, sizeBytes } = await inspectImage(snapshot).catch(() => ({ backing: null, sizeBytes: 0 }));
    if (backing === null) return null;
    const chain = await this.openChain(image);
    await using stack = new AsyncDisposableStack();
    stack.defer(() => closeChain(chain));
    const at = chain.findIndex(({ path }) => basename(path) === backing);
    if (at < 0) return null;
    const end = range.offset + range.length;
    const longer = { offset: sizeBytes, length: Math.max(0, end - sizeBytes) };
    const found = [clipExtent(longer, range)].filter((extent) => extent !== null);
    for (const each of chain.slice(0, at)) {
      const bytes = await virtualBytes(each.file);
      const part = clipExtent({ offset: 0, length: bytes }, range);
      if (part !== null) found.push(...(await patiently(() => allocatedExtents(each, part))));
    }
    return joined(found.flatMap((extent) => clipExtent(extent, range) ?? []));
  }

  /**
   * Removes the layers on which nothing builds any more, and merges images that alone build on a layer into it, so that neither space nor
   * chains grow with every snapshot that there ever was. What is in use is left for the next time; so is everything while another task
   * collects, or when any image cannot be read.
   */
  async collect(): Promise<void> {
    await using turn = await tryLock(join(this.#folder, ".merging"));
    if (turn === null) return;
    const tried = new Set<string>();
    try {
      for (;;) {
        const [candidate] = (await this.#sweep()).filter(({ image, layer }) => !tried.has(`${image} ${layer}`));
        if (candidate === undefined) return;
        tried.add(`${candidate.image} ${candidate.layer}`);
        await this.#merge(candidate).catch((error: unknown) => {
          if (!(error instanceof EngineError)) throw error;
        });
      }
    } catch (error) {
      if (!(error instanceof EngineError)) throw error;
    }
  }

  /** Removes what nothing builds on. @returns the names of images that alone build on a layer, the one that holds least first */
  async #sweep(): Promise<{ image: string; layer: string }[]> {
    await using _locked = await this.lock();
    const { children, others } = await this.#tree();
    for (let removed = true; removed; ) {
      removed = false;
      for (const [layer, images] of children) {
        if (images.length > 0) continue;
        await guardStorage(`remove ${layer}`, () => unlinkIfThere(join(this.#folder, layer)));
        children.delete(layer);
        for (const [below, above] of children)
          children.set(
            below,
            above.filter((name) => name !== layer),
          );
        removed = true;
      }
    }
    await syncFolder(this.#folder);
    const found: { image: string; layer: string; blocks: number }[] = [];
    for (const [layer, [image = "", ...more]] of children) {
      if (formatOf(layer) === "raw" || more.length > 0 || image.startsWith("snapshot-")) continue;
      // A layer with two names, of which only one would lead to what it is merged into.
      if (isLayer(image) && [...others.values()].includes(image)) continue;
      const { blocks } = await guardStorage(`look at ${image}`, () => lstat(join(this.#folder, image)));
      found.push({ image, layer, blocks });
    }
    return found.sort((a, b) => a.blocks - b.blocks);
  }

  /** Every layer, and the images that build on it, each by one of its names. A layer that is an image's other name is left out. Only under the lock. */
  async #children(): Promise<Map<string, string[]>> {
    return (await this.#tree()).children;
  }

  async #tree(): Promise<{ children: Map<string, string[]>; others: Map<string, string> }> {
    const names = await guardStorage(`list ${this.#folder}`, () => readdir(this.#folder));
    const others = await this.#otherNames(names);
    const children = new Map<string, string[]>(
      names.filter((name) => isLayer(name) && !others.has(name)).map((name) => [name, []]),
    );
    for (const name of names.filter((each) => isImage(each) && !others.has(each))) {
      const { backing } = await inspectImage(join(this.#folder, name));
      if (backing !== null) children.get(others.get(backing) ?? backing)?.push(name);
    }
    return { children, others };
  }

  /** Layers that are the same file as an image, or as another layer, and under which name that is listed. */
  async #otherNames(names: readonly string[]): Promise<Map<string, string>> {
    const listed = new Map<string, string>();
    const others = new Map<string, string>();
    const images = names.filter((name) => !isLayer(name) && (isImage(name) || name.startsWith(".live-")));
    for (const name of [...images, ...names.filter(isLayer)]) {
      const status = await lstat(join(this.#folder, name), bigint).catch(() => undefined);
      if (status === undefined || status.nlink === 1n) continue;
      const first = listed.get(identityOf(status));
      if (first === undefined) listed.set(identityOf(status), name);
      else if (isLayer(name)) others.set(name, first);
    }
    return others;
  }

  /**
   * Copies what the image holds into the layer below it, which then takes its name. Until then the image hides every byte that is written:
   * what it shows is the same at any point. Writers of the image and readers of the layer are kept off meanwhile.
   */
  async #merge({ image, layer }: { image: string; layer: string }): Promise<void> {
    const path = join(this.#folder, image);
    const chain = await this.openChain(path);
    await using stack = new AsyncDisposableStack();
    stack.defer(() => closeChain(chain));
    const [upper, lower] = chain;
    if (upper === undefined || lower === undefined || basename(lower.path) !== layer) return;
    stack.use(await serveImage([upper], { writable: false }));
    // A machine may let others write the layers below what it writes: they would change beneath it all the same.
    for (const volume of await this.#volumesOn(image)) {
      const above = await this.openChain(join(this.#folder, volume));
      stack.defer(() => closeChain(above));
      stack.use(await serveImage(above.slice(0, 1), { writable: false }));
    }
    await this.#copyDown(chain);
    await moveBitmaps(upper, lower);
    await using _locked = await this.lock();
    const isStill = async ({ path: at, file }: ImageFile): Promise<boolean> => {
      const now = await lstat(at, { bigint: true }).catch(() => undefined);
      return now !== undefined && identityOf(now) === identityOf(await file.stat({ bigint: true }));
    };
    if (!(await isStill(upper)) || !(await isStill(lower))) return;
    if ((await this.#children()).get(layer)?.join() !== image) return;
    await guardStorage(`create ${path}`, () => rename(lower.path, path));
    await syncFolder(this.#folder);
  }

  /** The volumes that build on a layer, with others between or not. */
  async #volumesOn(layer: string): Promise<string[]> {
    await using _locked = await this.lock();
    const { children } = await this.#tree();
    const found: string[] = [];
    for (const left = [layer]; left.length > 0; ) {
      const images = children.get(left.pop() ?? "") ?? [];
      left.push(...images.filter(isLayer));
      found.push(...images.filter((name) => name.startsWith("volume-")));
    }
    return found;
  }

  async #copyDown(chain: readonly ImageFile[]): Promise<void> {
    const [upper] = chain;
    if (upper === undefined) return;
    const below = chain.slice(1);
    await using source = await serveImage([upper], { writable: false });
    const { sizeBytes } = source.client;
    const { sizeBytes: lowerBytes } = await inspectImage(below[0]?.path ?? "");
    if (lowerBytes < sizeBytes) await resizeImage(below, sizeBytes);
    await using target = await serveImage(below, { writable: true });
    for (const { offset, length } of await allocatedExtents(upper, { offset: 0, length: sizeBytes })) {
      for (let at = offset; at < offset + length; at += mergeBytes) {
        const bytes = Buffer.allocUnsafe(Math.min(mergeBytes, offset + length - at));
        await source.client.read(bytes, at);
        await target.client.write(bytes, at);
      }
    }
    await target.client.flush();
  }

  #newLayer(format: "qcow2" | "raw"): string {
    return join(this.#folder, layerName(randomUUID(), format));
  }

  /** The name that an image has as a layer, which it gets where it has none. Only under the lock. */
  async layerNameOf(image: string): Promise<string> {
    const status = await guardStorage(`look at ${image}`, () => lstat(image, bigint));
    const names = status.nlink > 1n ? await guardStorage(`list ${this.#folder}`, () => readdir(this.#folder)) : [];
    for (const name of names.filter(isLayer)) {
      const other = await lstat(join(this.#folder, name), bigint).catch(() => undefined);
      if (other !== undefined && identityOf(other) === identityOf(status)) return join(this.#folder, name);
    }
    const layer = this.#newLayer("qcow2");
    await this.#name(image, layer);
    return layer;
  }

  /** The layers below an image of which each alone builds on the next one, whose image it can therefore become. */
  async pairsBelow(image: string): Promise<{ layerPath: string; intoPath: string }[]> {
    await using _locked = await this.lock();
    const { children, others } = await this.#tree();
    const nameOf = (name: string): string => others.get(name) ?? name;
    const chain: string[] = [];
    for (let name: string | null = basename(image); name !== null && chain.length < chainMax; ) {
      chain.push(name);
      const next: string | null = (await inspectImage(join(this.#folder, name))).backing;
      name = next !== null && isLayer(next) && formatOf(next) === "qcow2" ? next : null;
    }
    return chain.slice(1, -1).flatMap((name, index) => {
      const below = chain[index + 2] ?? "";
      const isAlone = children.get(nameOf(below))?.join() === nameOf(name);
      return isAlone ? [{ layerPath: join(this.#folder, name), intoPath: join(this.#folder, below) }] : [];
    });
  }

  /** A draft of an image on a layer, which need not be there yet. It records for these checkpoints. */
  async overlay(path: string, layer: string, sizeBytes: number, checkpoints: readonly string[] = []): Promise<Draft> {
    const name = basename(layer);
    const draft = await newDraft(path);
    try {
      await createQcow2(draft.path, sizeBytes, { name, format: formatOf(name) }, path);
      await recordFor(draft.path, checkpoints);
      await syncFile(draft.path);
      return draft;
    } catch (error) {
      await draft[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #name(file: string, layer: string): Promise<void> {
    await guardStorage(`create ${layer}`, () => link(file, layer));
    await syncFolder(this.#folder);
  }
}

/** Makes an image durable, with the mode of all volumes. */
export async function syncFile(path: string): Promise<void> {
  await guardStorage(`write ${path}`, async () => {
    await using file = await open(path, "r+");
    await file.chmod(0o660);
    await file.sync();
  });
}

/** Ascending, without overlaps. */
function joined(extents: readonly Extent[]): Extent[] {
  const found: Extent[] = [];
  for (const { offset, length } of extents.toSorted((a, b) => a.offset - b.offset)) {
    const last = found.at(-1);
    const end = offset + length;
    if (last && offset <= last.offset + last.length) last.length = Math.max(last.length, end - last.offset);
    else found.push({ offset, length });
  }
  return found;
}
