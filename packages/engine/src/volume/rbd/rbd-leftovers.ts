import { idsIn } from "../../format/ids-in.ts";
import type { BackendLeftover } from "../backend.ts";
import { isRetired, type RbdImages, volumeImage } from "./rbd-images.ts";

const uuid = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}";
const kinds: readonly (readonly [RegExp, BackendLeftover["kind"]])[] = [
  [new RegExp(`^volume-${uuid}$`), "volume"],
  [new RegExp(`^(?:restore-${uuid}-[0-9]+|draft-${uuid}(?:-[0-9]+)?-${uuid})$`), "private"],
  [new RegExp(`^(?:replaced-${uuid}-${uuid}-[0-9]+|retired-${uuid}(?:-[0-9]+)?-${uuid})$`), "private"],
];

/** What was replaced may hold the only copy of a volume until another image has its name. */
const replacedOf = (name: string): string | null => new RegExp(`^replaced-(${uuid})-`).exec(name)?.[1] ?? null;

/** Whose images have had the name of a volume. */
const volumeOf = (name: string): string | null =>
  new RegExp(`^(?:volume|replaced|retired)-(${uuid})`).exec(name)?.[1] ?? null;
const strayPattern = new RegExp(`^snapshot-(${uuid})$`);

/**
 * Images by the names that are given here, and snapshots by their notes, or without one where a command that was given up has made them
 * late. Retired images only once nothing of them is needed.
 */
export async function* listLeftovers(images: RbdImages): AsyncGenerator<BackendLeftover> {
  const { pool } = images;
  const names = await pool.list();
  const all = new Set(names);
  const found = await frozenIn(images, names);
  for (const name of names) {
    const kind = kinds.find(([pattern]) => pattern.test(name))?.[1];
    if (kind === undefined) continue;
    const volumeId = replacedOf(name);
    if (volumeId !== null && !all.has(volumeImage(volumeId))) continue;
    if (isRetired(name) && !(await images.isDone(name))) continue;
    const info = await pool.info(name);
    if (info === null) continue;
    // What an operation made last tells whose it is; the uuid that ends the name is nobody's.
    yield { kind, path: pool.shown(name), ids: ownersIn(name), modifiedAt: info.modifiedAt };
  }
  for await (const [id, { frozenAt }] of images.listFrozen()) {
    found.delete(id);
    yield { kind: "snapshot", path: pool.shown(`snapshot-${id}`), ids: [id], modifiedAt: frozenAt };
  }
  for (const [id, { image, madeAt }] of found) {
    yield { kind: "snapshot", path: pool.shown(image, `snapshot-${id}`), ids: [id], modifiedAt: madeAt };
  }
}

/** The snapshots of volumes, by their ids. To be read before their notes, which are made first. */
async function frozenIn(
  { pool }: RbdImages,
  names: readonly string[],
): Promise<Map<string, { image: string; madeAt: Date }>> {
  const found = new Map<string, { image: string; madeAt: Date }>();
  for (const image of names) {
    if (volumeOf(image) === null) continue;
    for (const { name, madeAt } of (await pool.snapshots(image)) ?? []) {
      const id = strayPattern.exec(name)?.[1];
      if (id !== undefined) found.set(id, { image, madeAt });
    }
  }
  return found;
}

/** A snapshot that was yielded without a note gets one, by which it is found whatever its image is called by now. */
export async function noteStray(
  images: RbdImages,
  { path, ids: [id = ""], modifiedAt }: BackendLeftover,
): Promise<void> {
  const name = path.slice(images.pool.shown("").length).split("@");
  const volumeId = name.length === 2 ? volumeOf(name[0] as string) : null;
  if (volumeId === null || (await images.find(id)) !== null) return;
  await images.noteFrozen(id, { volumeId, isWhole: false, frozenAt: modifiedAt });
}

/** Of kind `private`. A missing one is removed. */
export async function removeLeftover(images: RbdImages, { path }: BackendLeftover): Promise<void> {
  const name = path.slice(images.pool.shown("").length);
  const volumeId = replacedOf(name);
  if (volumeId !== null) await images.putBack(name, volumeId);
  else if (isRetired(name)) await images.settle(name);
  else await images.retire(name, ownersIn(name)[0] ?? "");
}

/** The ids in a name, without the one that only makes it unlike others. */
const ownersIn = (name: string): string[] => {
  const ids = idsIn(name);
  return /^(?:draft|retired)-/.test(name) ? ids.slice(0, -1) : ids;
};
