import { SourceMissingError } from "../../errors.ts";
import type { RunContext } from "../../run/run-context.ts";
import type { SourceReference } from "../backend.ts";
import { saysErrno, saysMissing } from "./rbd-command.ts";
import { keptName, newDraftOf, type RbdImages, volumeImage } from "./rbd-images.ts";

/** Parents that a clone may have above one another before it is made independent: each costs a read of what it lacks. */
const parentsMax = 4;
/** How often a clone is begun again when another task has just let go of the snapshot that it builds on. */
const cloneTriesMax = 5;
interface NewClone {
  source: SourceReference;
  volumeId: string;
  /** In whole sectors. */
  sizeBytes: number;
}

/**
 * Makes a volume that shares with a snapshot what it does not write itself: as long as its source, or `sizeBytes` where that is more. The
 * snapshot is protected as long as it has clones, and stays for them when it is removed, or the volume that it is of.
 *
 * @throws SourceMissingError
 */
export async function cloneVolume(
  images: RbdImages,
  { source, volumeId, sizeBytes }: NewClone,
  run: RunContext,
): Promise<{ sizeBytes: number }> {
  const { pool } = images;
  const to = volumeImage(volumeId);
  const existing = await pool.info(to);
  if (existing !== null) return { sizeBytes: existing.sizeBytes };
  run.signal.throwIfAborted();
  run.fence();
  await images.removeDrafts(volumeId);
  const draft = newDraftOf(volumeId);
  const { parent, presentBytes } = await cloneTo(images, draft, source, volumeId);
  try {
    if (await isDeep(images, draft)) {
      await pool.flatten(draft, run.signal);
      await images.settle(parent);
    }
    const size = Math.max(presentBytes, sizeBytes);
    if (size > presentBytes) await pool.extend(draft, size);
    run.signal.throwIfAborted();
    run.fence();
    await images.finish(draft, to);
    return { sizeBytes: size };
  } catch (error) {
    await images.retire(draft, volumeId);
    const winner = saysErrno(error, "exists") ? await pool.info(to) : null;
    if (winner === null) throw error;
    return { sizeBytes: winner.sizeBytes };
  }
}

/** A clone of a snapshot, or of one that is made for it. @returns the image that it builds on, and its length */
async function cloneTo(
  images: RbdImages,
  draft: string,
  source: SourceReference,
  volumeId: string,
): Promise<{ parent: string; presentBytes: number }> {
  const { pool } = images;
  for (let tries = 1; ; tries++) {
    const { image, name } = await snapshotToClone(images, source, volumeId);
    try {
      await pool.protect(image, name);
      await pool.clone(image, name, draft);
      return { parent: image, presentBytes: (await pool.info(draft))?.sizeBytes ?? 0 };
    } catch (error) {
      const isGone = saysMissing(error) || saysErrno(error, "invalid");
      if (isGone && tries < cloneTriesMax) continue;
      await images.settle(image);
      throw error;
    }
  }
}

async function snapshotToClone(
  images: RbdImages,
  source: SourceReference,
  volumeId: string,
): Promise<{ image: string; name: string }> {
  if ("snapshotId" in source) {
    const { image, snapshot } = await images.frozen(source.snapshotId);
    return { image, name: snapshot.name };
  }
  const [image, name] = [volumeImage(source.volumeId), keptName(volumeId)];
  if ((await images.volume(source.volumeId)) === null)
    throw new SourceMissingError(`There is no volume ${source.volumeId}.`);
  await images.pool.freeze(image, name);
  return { image, name };
}

async function isDeep({ pool }: RbdImages, image: string): Promise<boolean> {
  let at = await pool.info(image);
  for (let parents = 0; at?.parent; parents++) {
    if (parents === parentsMax) return true;
    if (at.parent.place !== pool.place) return false;
    at = await pool.info(at.parent.image);
  }
  return false;
}
