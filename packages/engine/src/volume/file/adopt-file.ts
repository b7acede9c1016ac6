import { link, lstat } from "node:fs/promises";
import { errnoOf, SourceMissingError, VolumeConflictError } from "../../errors.ts";
import type { RunContext } from "../../run/run-context.ts";
import { guardStorage } from "../storage-error.ts";
import type { VolumeSource } from "../volume.ts";
import { copyToNewFile } from "./copy-file.ts";
import { newDraft } from "./drafts.ts";
import { type FileSource, openFileSource } from "./file-source.ts";

/** Bytes compared at a time. */
const stepBytes = 1024 * 1024;

/** The length of an existing file under a volume's name. SourceMissingError when there is none, or it is not a regular file. */
export async function measureVolume(volume: string): Promise<{ sizeBytes: number }> {
  await using source = await openFileSource(volume);
  if (!(await source.isRegular())) throw new SourceMissingError(`${volume} is not a regular file.`);
  return { sizeBytes: source.sizeBytes };
}

/**
 * Copies a file to a volume's name. An existing file there is never replaced: with the same bytes it is success, so that an interrupted
 * attempt can be repeated; with others VolumeConflictError.
 */
export async function copyIfAbsent(source: FileSource, volume: string, ctx: RunContext): Promise<void> {
  if (await holds(volume, source, ctx)) return;
  await using draft = await newDraft(volume);
  await copyToNewFile(source, draft.path, ctx);
  ctx.signal.throwIfAborted();
  ctx.fence();
  await guardStorage(`create ${volume}`, async () => {
    await link(draft.path, volume).catch((error: unknown) => {
      if (errnoOf(error) === "EEXIST") throw conflict(volume);
      throw error;
    });
  });
}

const conflict = (volume: string): VolumeConflictError =>
  new VolumeConflictError(`${volume} is there already, and has other bytes.`);

/** Whether a volume exists with these bytes. @throws VolumeConflictError when it has others */
async function holds(volume: string, source: FileSource, ctx: RunContext): Promise<boolean> {
  if ((await lstat(volume).catch(() => undefined)) === undefined) return false;
  await using existing = await openFileSource(volume);
  if (await haveSameBytes(existing, source, ctx)) return true;
  throw conflict(volume);
}

type Readable = Pick<VolumeSource, "sizeBytes" | "read">;

/** Whether two sources are of one length and have the same bytes. */
export async function haveSameBytes(one: Readable, other: Readable, ctx: RunContext): Promise<boolean> {
  if (one.sizeBytes !== other.sizeBytes) return false;
  const [left, right] = [Buffer.allocUnsafe(stepBytes), Buffer.allocUnsafe(stepBytes)];
  for (let offset = 0; offset < one.sizeBytes; offset += stepBytes) {
    ctx.signal.throwIfAborted();
    const length = Math.min(stepBytes, one.sizeBytes - offset);
    const [a, b] = [left.subarray(0, length), right.subarray(0, length)];
    await Promise.all([one.read(a, offset), other.read(b, offset)]);
    if (!a.equals(b)) return false;
    ctx.onProgress({ bytesDone: offset + length, bytesStored: 0 });
  }
  return true;
}
