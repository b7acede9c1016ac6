import { constants } from "node:fs";
import { copyFile, open, unlink } from "node:fs/promises";
import { errnoOf, PathNotAllowedError, SourceChangedError } from "../../errors.ts";
import type { Extent } from "../../format/extents.ts";
import { type RunContext, writeBytesMax } from "../../run/run-context.ts";
import { guardStorage } from "../storage-error.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { FileTarget } from "./file-target.ts";

const mode = 0o660;
/** Total attempts when the source changes during the copy. */
const triesMax = 3;

/** What can be copied to a file. */
export interface CopySource extends VolumeSource {
  /** Its name in messages. */
  readonly path: string;
  /** A path by which the kernel opens a file with these very bytes, if there is one. */
  readonly descriptorPath?: string;
}

/**
 * Copies a source to a new file at `path`, which must not exist: by sharing its blocks where the file system can, otherwise by copying
 * the non-zero data. The copy is of one point in time: when the source changed meanwhile there are two more attempts, then
 * SourceChangedError. Durable when it resolves; on any failure the new file is removed.
 */
export async function copyToNewFile(source: CopySource, path: string, ctx: RunContext): Promise<{ sizeBytes: number }> {
  ctx.signal.throwIfAborted();
  ctx.fence();
  if (source.descriptorPath !== undefined && (await shareBlocks(source.descriptorPath, path))) {
    return { sizeBytes: await settle(path) };
  }
  for (let tries = 1; ; tries++) {
    try {
      const before = await source.fingerprint();
      await copySparse(source, path, { offset: 0, sizeBytes: source.sizeBytes, isNew: true }, ctx);
      if ((await source.fingerprint()) === before) return { sizeBytes: await settle(path) };
    } catch (error) {
      await unlinkIfThere(path);
      if (!(error instanceof SourceChangedError) || tries === triesMax) throw error;
      continue;
    }
    await unlinkIfThere(path);
    if (tries === triesMax) {
      throw new SourceChangedError(
        `The source ${source.path} changed while it was being copied, ${triesMax} times in a row.`,
      );
    }
  }
}

/** Clones by reflink (FICLONE), which is atomic; false where the file system does not support it. */
export async function shareBlocks(from: string, to: string): Promise<boolean> {
  try {
    await copyFile(from, to, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE);
    return true;
  } catch (error) {
    if (errnoOf(error) === "EEXIST") throw error;
    await unlinkIfThere(to);
    return false;
  }
}

/**
 * Copies the non-zero data from `offset` of the source to the same offsets in a file of `sizeBytes`, which is new (`isNew`) or already
 * exists.
 */
export async function copySparse(
  source: VolumeSource,
  path: string,
  part: { offset: number; sizeBytes: number; isNew: boolean },
  ctx: RunContext,
): Promise<void> {
  const creating = part.isNew ? constants.O_CREAT | constants.O_EXCL : 0;
  const file = await guardStorage(`create ${path}`, () =>
    open(path, constants.O_RDWR | constants.O_NOFOLLOW | creating, mode),
  );
  await using target = new FileTarget(file, { path, sizeBytes: part.sizeBytes, isNew: true });
  await guardStorage(`write ${path}`, () => file.truncate(part.sizeBytes));
  const range = { offset: part.offset, length: Math.max(0, part.sizeBytes - part.offset) };
  await copyData(source, target, range, ctx);
  await target.flush();
}

/** Copies the non-zero data of a range to the same offsets of a target that is zero there. */
export async function copyData(
  source: VolumeSource,
  target: VolumeTarget,
  range: Extent,
  ctx: RunContext,
): Promise<void> {
  let bytesStored = 0;
  for await (const extent of source.dataExtents(range)) {
    const end = extent.offset + extent.length;
    for (let offset = extent.offset; offset < end; offset += writeBytesMax) {
      ctx.signal.throwIfAborted();
      const data = Buffer.alloc(Math.min(writeBytesMax, end - offset));
      await source.read(data, offset);
      if (!isZero(data)) {
        ctx.fence();
        await target.write(data, offset);
        bytesStored += data.length;
      }
      ctx.onProgress({ bytesDone: offset + data.length - range.offset, bytesStored });
    }
  }
}

/**
 * Sets the mode regardless of the umask, makes the file durable, and returns its length. PathNotAllowedError when another file has been
 * put in the new one's place, one that has a second name elsewhere.
 */
export async function settle(path: string): Promise<number> {
  return guardStorage(`write ${path}`, async () => {
    const file = await open(path, constants.O_RDWR | constants.O_NOFOLLOW);
    try {
      if ((await file.stat()).nlink !== 1) {
        throw new PathNotAllowedError("The file that was being written was replaced by another one.");
      }
      await file.chmod(mode);
      await file.sync();
      return (await file.stat()).size;
    } finally {
      await file.close();
    }
  });
}

export async function unlinkIfThere(path: string): Promise<void> {
  await unlink(path).catch((error: unknown) => {
    if (errnoOf(error) !== "ENOENT") throw error;
  });
}

function isZero(data: Buffer): boolean {
  return data[0] === 0 && data.compare(data, 0, data.length - 1, 1, data.length) === 0;
}
