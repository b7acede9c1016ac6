import type { Stats } from "node:fs";
import { chmod, chown, lstat, open, readlink, realpath, rename, symlink } from "node:fs/promises";
import { join, sep } from "node:path";
import {
  errnoOf,
  InvalidVolumeUrlError,
  PathNotAllowedError,
  SourceMissingError,
  VolumeConflictError,
  VolumeStorageError,
} from "../../errors.ts";
import { type RunContext, writeBytesMax } from "../../run/run-context.ts";
import { AdoptedPlace, realPath } from "../adopted-place.ts";
import { copySparse, settle, unlinkIfThere } from "../file/copy-file.ts";
import type { FileSource } from "../file/file-source.ts";
import { OwnFolder } from "../file/own-folder.ts";
import { syncFolder } from "../file/sync-folder.ts";
import { openUserPath } from "../file/user-path.ts";
import { guardStorage } from "../storage-error.ts";
import { closeChain, type ImageFile, openImageChain, virtualBytes } from "./image-chain.ts";
import { keepWritersOff, syncFile } from "./layers.ts";
import { createQcow2 } from "./qemu-img.ts";
import { ImageInUseError, serveImage } from "./qemu-nbd.ts";

/*
 * An image that has become a volume stays where it is, in its format: `adopted-ID.FORMAT` in the backend's folder is a link to it. It is
 * never made a layer, since its owner may go on using it under its name: snapshots and clones of it are copies, and a restore replaces it.
 */

const formats = ["qcow2", "raw"] as const;
type Format = (typeof formats)[number];

export interface AdoptedImage {
  link: string;
  path: string;
  format: Format;
}

const sectorBytes = 512;

export class AdoptedImages extends AdoptedPlace {
  /** @throws PathNotAllowedError when the image is now reached by another way than when it was adopted */
  async find(volumeId: string): Promise<AdoptedImage | null> {
    for (const format of formats) {
      const link = this.#link(volumeId, format);
      const path = await readlink(link).catch(() => null);
      if (path === null) continue;
      const real = await realpath(path).catch((error: unknown) => {
        throw new SourceMissingError(`The image ${path} cannot be opened (${errnoOf(error)}).`, { cause: error });
      });
      if (real !== path) throw movedTo(path, real);
      return { link, path, format };
    }
    return null;
  }

  /** The links to adopted images, by their names. */
  async list(): Promise<string[]> {
    const names = await this.names();
    return names.filter((name) => /^adopted-[A-Za-z0-9-]+\.(?:qcow2|raw)$/.test(name));
  }

  /**
   * Opens the image and what it builds on. Whoever owns an image may write another header into it: what he may not read himself, he does
   * not get by way of this process.
   *
   * @throws as openImageChain; PathNotAllowedError
   */
  async openChain({ path, format }: AdoptedImage): Promise<ImageFile[]> {
    const chain = await openImageChain(path, format, this.roots);
    try {
      if (chain[0]?.path !== path) throw movedTo(path, chain[0]?.path ?? "");
      const [image, ...below] = await Promise.all(chain.map(({ file }) => file.stat()));
      for (const [index, file] of below.entries()) {
        if (image !== undefined && !mayRead(image, file)) throw unreadable(path, chain[index + 1]?.path ?? "");
      }
      return chain;
    } catch (error) {
      await closeChain(chain);
      throw error;
    }
  }

  async sizeOf(image: AdoptedImage): Promise<number> {
    const chain = await this.openChain(image);
    try {
      return await lengthOf(chain);
    } finally {
      await closeChain(chain);
    }
  }

  /**
   * Makes the image that `qcow2:PATH` or `raw:PATH` names a volume. Doing so again is success.
   *
   * @throws InvalidVolumeUrlError, PathNotAllowedError, SourceMissingError; VolumeStorageError for an image that cannot be used or is in
   * use; VolumeConflictError when it is a volume already
   */
  async adopt(url: string, volumeId: string, { signal, fence }: Pick<RunContext, "signal" | "fence">): Promise<number> {
    const { format, path } = await this.#place(url);
    const image = { link: this.#link(volumeId, format), path, format };
    const sizeBytes = await this.#examine(image);
    for (const name of await this.list()) {
      if ((await readlink(join(this.folder, name)).catch(() => null)) !== path) continue;
      if (join(this.folder, name) === image.link) return sizeBytes;
      throw new VolumeConflictError(
        `The image ${path} is volume ${name.replace(/^adopted-|\.[a-z0-9]+$/g, "")} already.`,
      );
    }
    signal.throwIfAborted();
    fence();
    await guardStorage(`create ${image.link}`, () => symlink(path, image.link));
    await syncFolder(this.folder);
    return sizeBytes;
  }

  async release(volumeId: string): Promise<void> {
    for (const format of formats) await unlinkIfThere(this.#link(volumeId, format));
  }

  /**
   * A new image with the bytes of a restored file takes the image's place, format, owner and mode, unless that is in use. Others may write to
   * the image's folder: the new one is made in a folder within it that is this user's alone, and no name on the way is followed twice.
   */
  async publish(image: AdoptedImage, restored: FileSource, restoreId: string, run: RunContext): Promise<void> {
    const { path, format } = image;
    await using named = await openUserPath(path, { roots: await this.realRoots() });
    const { folder } = named;
    await using own = await OwnFolder.make(folder, draftOf(restoreId));
    const draft = own.draft;
    if (format === "raw") {
      await copySparse(restored, draft, { offset: 0, sizeBytes: restored.sizeBytes, isNew: true }, run);
      await settle(draft);
    } else await writeQcow2(draft, restored, run);
    const chain = await this.openChain(image);
    await using stack = new AsyncDisposableStack();
    stack.defer(() => closeChain(chain));
    stack.use(await keepWritersOff(chain));
    const status = await chain[0]?.file.stat();
    await guardStorage(`create ${path}`, async () => {
      if (status === undefined) return;
      await chown(draft, status.uid, status.gid);
      await chmod(draft, status.mode & 0o777);
    });
    run.signal.throwIfAborted();
    run.fence();
    await named.assertInPlace();
    await guardStorage(`create ${path}`, () => rename(draft, folder.at(named.name)));
    await syncFolder(folder.self);
  }

  /** Removes what an interrupted restore has left beside an image. */
  async abandon(restoreId: string): Promise<void> {
    const roots = await this.realRoots();
    for (const name of await this.list()) {
      const path = await readlink(join(this.folder, name)).catch(() => null);
      const named = path === null ? null : await openUserPath(path, { roots }).catch(() => null);
      if (named === null) continue;
      await using opened = named;
      await OwnFolder.remove(opened.folder, draftOf(restoreId));
    }
  }

  #link(volumeId: string, format: Format): string {
    return join(this.folder, `adopted-${volumeId}.${format}`);
  }

  async #place(url: string): Promise<{ format: Format; path: string }> {
    const [, format, named] = /^(qcow2|raw):(\/[^\0]*)$/s.exec(url) ?? [];
    if (format === undefined || named === undefined) {
      throw new InvalidVolumeUrlError(`${JSON.stringify(url)} names no image: qcow2:/PATH or raw:/PATH.`);
    }
    const path = await realPath(named);
    const roots = await this.realRoots();
    const own = (await realPath(this.folder)) ?? this.folder;
    const isBelow = (folder: string): boolean =>
      path?.startsWith(folder.endsWith(sep) ? folder : folder + sep) === true;
    // Whether there is something outside of the roots is told to nobody.
    if (path === null || !roots.some(isBelow) || isBelow(own)) {
      throw new PathNotAllowedError(
        `There is no image ${named} in the folders where images may be (roots of the backend).`,
      );
    }
    return { format: format as Format, path };
  }

  /** Its length, if it can be a volume. */
  async #examine(image: AdoptedImage): Promise<number> {
    const chain = await this.openChain(image);
    await using stack = new AsyncDisposableStack();
    stack.defer(() => closeChain(chain));
    const refuse = (why: string): VolumeStorageError =>
      new VolumeStorageError(`The image ${image.path} cannot become a volume: ${why}.`, { retryable: false });
    const magic = Buffer.alloc(4);
    await chain[0]?.file.read(magic, 0, magic.length, 0);
    if (image.format === "raw" && magic.equals(Buffer.from("QFI\xfb", "latin1")))
      throw refuse("it is not raw, but qcow2");
    const sizeBytes = await lengthOf(chain);
    if (sizeBytes === 0 || sizeBytes % sectorBytes !== 0) {
      throw refuse(`its length of ${sizeBytes} bytes is not a number of sectors of ${sectorBytes} bytes`);
    }
    stack.use(
      await keepWritersOff(chain).catch((error: unknown) => {
        throw error instanceof ImageInUseError ? refuse("another program has it open for writing") : error;
      }),
    );
    return sizeBytes;
  }
}

const draftOf = (restoreId: string): string => `.tephra-restore-${restoreId}`;

const movedTo = (path: string, real: string): PathNotAllowedError =>
  new PathNotAllowedError(`The image ${path} has moved to ${real}.`);

const unreadable = (path: string, below: string): PathNotAllowedError =>
  new PathNotAllowedError(
    `The backing file ${below} is not readable for the owner of the image ${path}, and is not read for it.`,
  );

/** Whether the owner of one file may read the other, going by its owner, group and mode alone. */
const mayRead = (by: Stats, file: Stats): boolean =>
  by.uid === 0 ||
  by.uid === file.uid ||
  (by.gid === file.gid && (file.mode & 0o040) !== 0) ||
  (file.mode & 0o004) !== 0;

async function lengthOf([image]: readonly ImageFile[]): Promise<number> {
  if (image === undefined) return 0;
  return image.format === "raw" ? (await image.file.stat()).size : virtualBytes(image.file);
}

/** A new image with the bytes of a file. */
async function writeQcow2(path: string, source: FileSource, { signal, fence, onProgress }: RunContext): Promise<void> {
  await createQcow2(path, source.sizeBytes, null);
  await using file = await guardStorage(`create ${path}`, () => open(path, "r+"));
  {
    await using served = await serveImage([{ path, format: "qcow2", file }], { writable: true });
    for await (const { offset, length } of source.dataExtents({ offset: 0, length: source.sizeBytes })) {
      for (let at = offset; at < offset + length; at += writeBytesMax) {
        signal.throwIfAborted();
        const data = Buffer.alloc(Math.min(writeBytesMax, offset + length - at));
        await source.read(data, at);
        fence();
        await served.client.write(data, at);
        onProgress({ bytesDone: at + data.length, bytesStored: at + data.length });
      }
    }
    await served.client.flush();
  }
  await syncFile(path);
}

/** When a link was made. */
export const linkedAt = async (path: string): Promise<Date | null> => {
  const status = await lstat(path).catch(() => undefined);
  return status?.isSymbolicLink() ? status.mtime : null;
};
