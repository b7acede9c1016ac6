import { constants } from "node:fs";
import { type FileHandle, open, readlink, realpath } from "node:fs/promises";
import { basename, dirname, isAbsolute, join, sep } from "node:path";
import { errnoOf, PathNotAllowedError, SourceMissingError, VolumeStorageError } from "../../errors.ts";
import { identityOf } from "../../folder.ts";

/*
 * An image may name other files: its backing file, an external data file, extents of a VMDK. Whoever wrote the image chose these names, and
 * QEMU would follow them to any file that it may read, or to another host. So the chain is read here, with limits, and QEMU is given every
 * file of it as an open descriptor: it follows no name from an image.
 */

/** Formats that can be read; `raw` as a backing file only. */
export const imageFormats = ["qcow2", "vmdk", "vhdx", "vdi"] as const;
export type ImageFormat = (typeof imageFormats)[number];

export interface ImageFile {
  readonly path: string;
  readonly format: ImageFormat | "raw";
  readonly file: FileHandle;
}

/** Images in one chain. */
export const chainMax = 64;
/** Bytes of a header that are read: a qcow2 header with its extensions fits into one cluster, which is not smaller than 512 bytes. */
const headerBytesMax = 64 * 1024;
/** A VMDK's embedded description. */
const descriptionBytesMax = 64 * 1024;
/** Where QEMU reads it to find a parent, whatever the header says. */
const vmdkDescription = { at: 512, length: 20 * 512 };
/** As in QEMU's format. */
const backingNameBytesMax = 1023;
/** Virtual length beyond which an image is taken for damaged, in bytes. */
const virtualBytesMax = 2n ** 50n;

interface Parent {
  name: string;
  format: "qcow2" | "raw";
}

/**
 * Opens an image and everything it builds on, the image first. `roots`: folders outside of which no backing file may be, apart from the
 * image's own folder.
 *
 * @throws SourceMissingError, PathNotAllowedError, VolumeStorageError; nothing stays open then
 */
export async function openImageChain(
  path: string,
  format: ImageFormat | "raw",
  roots: readonly string[],
): Promise<ImageFile[]> {
  await using opened = new AsyncDisposableStack();
  const allowed = await Promise.all(roots.map((root) => realpath(root).catch(() => root)));
  const chain: ImageFile[] = [];
  const identities = new Set<string>();
  let next: { path: string; format: ImageFormat | "raw" } | null = { path, format };
  while (next !== null) {
    const place: string = await realpath(next.path).catch((error: unknown) => {
      throw new SourceMissingError(`The image ${next?.path} cannot be opened (${errnoOf(error)}).`, { cause: error });
    });
    if (chain.length === 0) allowed.push(dirname(place));
    else if (!allowed.some((root) => isBelow(place, root))) {
      throw new PathNotAllowedError(
        `The backing file ${place} of ${chain.at(-1)?.path} is in none of the folders where backing files may be.`,
      );
    }
    const file = opened.adopt(await openRegular(place), (handle) => handle.close());
    await requirePlace(file, place);
    const identity = identityOf(await file.stat({ bigint: true }));
    if (identities.has(identity)) throw damaged(place, "its chain of backing files is a circle");
    if (chain.length >= chainMax) throw damaged(path, `its chain has more than ${chainMax} images`);
    identities.add(identity);
    chain.push({ path: place, format: next.format, file });
    const parent = await parentOf(place, next.format, file);
    next = parent && {
      path: isAbsolute(parent.name) ? parent.name : join(dirname(place), parent.name),
      format: parent.format,
    };
  }
  opened.move();
  return chain;
}

/** Whoever may write to a folder on the way could have put another one, or a link, in its place. @throws VolumeStorageError */
async function requirePlace({ fd }: FileHandle, place: string): Promise<void> {
  if ((await readlink(`/proc/self/fd/${fd}`)) === place) return;
  throw new VolumeStorageError(`The image ${place} was moved while it was opened.`, { retryable: true });
}

/**
 * The length of a qcow2 image, and the name of its backing file as it is written in it.
 *
 * @throws SourceMissingError, PathNotAllowedError, VolumeStorageError
 */
export async function inspectImage(path: string): Promise<{ sizeBytes: number; backing: string | null }> {
  await using file = await openRegular(path);
  const parent = await parentOf(path, "qcow2", file);
  return { sizeBytes: await virtualBytes(file), backing: parent?.name ?? null };
}

/**
 * Checks the header of a qcow2 image that is to build on nothing. @returns its virtual length
 *
 * @throws PathNotAllowedError, VolumeStorageError
 */
export async function requireLone({ path, file }: ImageFile): Promise<number> {
  if ((await parentOf(path, "qcow2", file)) !== null) throw refused(path, "it builds on another file");
  return virtualBytes(file);
}

/** Of a qcow2 image whose header was checked. */
export async function virtualBytes(file: FileHandle): Promise<number> {
  const field = Buffer.alloc(8);
  await file.read(field, 0, field.length, 24);
  return Number(field.readBigUInt64BE(0));
}

export const closeChain = async (chain: readonly ImageFile[]): Promise<void> => {
  await Promise.all(chain.map(({ file }) => file.close()));
};

const isBelow = (path: string, root: string): boolean => path.startsWith(root.endsWith(sep) ? root : root + sep);

async function openRegular(path: string): Promise<FileHandle> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const file = await open(path, flags).catch((error: unknown) => {
    throw new SourceMissingError(`The image ${path} cannot be opened (${errnoOf(error)}).`, { cause: error });
  });
  if ((await file.stat()).isFile()) return file;
  await file.close();
  throw new SourceMissingError(`The image ${path} is not a regular file.`);
}

/** What the image builds on, after everything in its header was checked that could make QEMU open another file. */
async function parentOf(path: string, format: ImageFormat | "raw", file: FileHandle): Promise<Parent | null> {
  if (format === "raw") return null;
  const header = Buffer.alloc(headerBytesMax);
  const { bytesRead } = await file.read(header, 0, headerBytesMax, 0);
  const bytes = header.subarray(0, bytesRead);
  if (format === "qcow2") return qcow2Parent(path, bytes, file);
  if (format === "vmdk") await checkVmdk(path, bytes, file);
  else if (format === "vhdx" && bytes.toString("latin1", 0, 8) !== "vhdxfile")
    throw damaged(path, "it is no vhdx image");
  else if (format === "vdi" && (bytes.length < 512 || bytes.readUInt32LE(0x40) !== 0xbeda107f)) {
    throw damaged(path, "it is no vdi image");
  }
  return null;
}

/** https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.txt */
async function qcow2Parent(path: string, bytes: Buffer, file: FileHandle): Promise<Parent | null> {
  if (bytes.length < 72 || bytes.readUInt32BE(0) !== 0x514649fb) throw damaged(path, "it is no qcow2 image");
  const version = bytes.readUInt32BE(4);
  if (version !== 2 && version !== 3) throw damaged(path, `it is qcow2 of the unknown version ${version}`);
  if (version === 3 && bytes.length < 104) throw damaged(path, "its header is cut off");
  const virtualBytes = bytes.readBigUInt64BE(24);
  if (virtualBytes > virtualBytesMax) throw damaged(path, `it says that it has ${virtualBytes} bytes`);
  if (bytes.readUInt32BE(32) !== 0) throw refused(path, "it is encrypted");
  const incompatible = version === 3 ? bytes.readBigUInt64BE(72) : 0n;
  if ((incompatible & 4n) !== 0n) throw refused(path, "its data is in an external file");
  const extensions = qcow2Extensions(path, bytes, version === 3 ? bytes.readUInt32BE(100) : 72);
  if (extensions.dataFile) throw refused(path, "its data is in an external file");
  const [at, length] = [bytes.readBigUInt64BE(8), bytes.readUInt32BE(16)];
  if (at === 0n) return null;
  if (length === 0 || length > backingNameBytesMax || at > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw damaged(path, "the name of its backing file cannot be read");
  }
  const name = Buffer.alloc(length);
  const { bytesRead } = await file.read(name, 0, length, Number(at));
  const text = name.toString("utf8");
  if (bytesRead !== length || text.includes("\0")) throw damaged(path, "the name of its backing file cannot be read");
  if (/^[A-Za-z][A-Za-z0-9+.-]*:/.test(text)) {
    throw new PathNotAllowedError(`The backing file of ${path} is not a file, but "${printable(text)}".`);
  }
  const format = extensions.backingFormat;
  if (format === "raw" || format === "qcow2") return { name: text, format };
  const what = format === null ? "is not named in it" : `is "${printable(format)}"`;
  throw refused(
    path,
    `the format of its backing file ${what}; raw and qcow2 can be read (qemu-img rebase -u -b FILE -F FORMAT names it)`,
  );
}

function qcow2Extensions(
  path: string,
  bytes: Buffer,
  from: number,
): { backingFormat: string | null; dataFile: boolean } {
  const found: { backingFormat: string | null; dataFile: boolean } = { backingFormat: null, dataFile: false };
  for (let at = from; at + 8 <= bytes.length; ) {
    const [type, length] = [bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4)];
    if (type === 0) return found;
    const end = at + 8 + length;
    if (end > bytes.length) throw damaged(path, "an extension of its header is cut off");
    if (type === 0xe2792aca) found.backingFormat = bytes.toString("latin1", at + 8, end);
    if (type === 0x44415441) found.dataFile = true;
    at = at + 8 + Math.ceil(length / 8) * 8;
  }
  return found;
}

/** One file with everything in it (monolithicSparse, streamOptimized), which builds on nothing. */
async function checkVmdk(path: string, bytes: Buffer, file: FileHandle): Promise<void> {
  if (bytes.length < 512 || bytes.toString("latin1", 0, 4) !== "KDMV") {
    throw refused(path, "it is no vmdk image of one file (monolithicSparse or streamOptimized)");
  }
  if (bytes.readBigUInt64LE(12) === 0n) throw refused(path, "its data is in other files");
  const [sector, sectors] = [bytes.readBigUInt64LE(28), bytes.readBigUInt64LE(36)];
  if (sector > 2n ** 40n || sectors * 512n > BigInt(descriptionBytesMax))
    throw damaged(path, "its description cannot be read");
  const places = [{ at: Number(sector) * 512, length: Number(sectors) * 512 }, vmdkDescription];
  for (const { at, length } of places) {
    const description = Buffer.alloc(length);
    await file.read(description, 0, length, at);
    const text = description.toString("latin1");
    const parent = /^\s*parentCID\s*=\s*"?([0-9a-f]+)/im.exec(text)?.[1];
    if (/parentFileNameHint/i.test(text) || (parent !== undefined && !/^f{8}$/i.test(parent))) {
      throw refused(path, "it builds on another image");
    }
  }
}

const printable = (text: string): string => text.replaceAll(/[^\x20-\x7e]/g, "?").slice(0, 200);

const damaged = (path: string, why: string): VolumeStorageError =>
  new VolumeStorageError(`The image ${basename(path)} cannot be used: ${why}.`, { retryable: false });
const refused = damaged;
