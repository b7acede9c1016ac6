/*
 * A checkpoint is a persistent bitmap with its id as name in every layer from the one that was active at its moment up to the active one.
 * What has changed since is the union of them. It is valid while that row of bitmaps has no gap:
 *
 *     active   K2  K1              K1: in all three layers                valid
 *     layer        K1  K0          K2: begun in the active layer          valid
 *     layer        K1  K0          K0: the active layer does not record   removed, what remains is of no use
 *
 * A process that is killed loses what its active layer has recorded: QEMU then finds its bitmaps inconsistent, or not at all.
 *
 * Bitmaps of different lengths cannot be merged. So before a disk grows, its active layer takes over what the layers below have recorded,
 * and gets one more bitmap, `markOfWhole`, which says so.
 */

/** A bitmap of an image. QEMU's own have no name. */
export interface Bitmap {
  name?: string | undefined;
  persistent: boolean;
  /** What it recorded has been lost: it can only be removed. */
  inconsistent?: boolean | undefined;
}

/** What is known of a layer of a disk. */
export interface RecordingLayer {
  sizeBytes: number;
  bitmaps: readonly Bitmap[];
}

/** In bytes, of every bitmap. */
export const granularity = 65_536;

/** The name of an empty bitmap of a layer whose checkpoints include what the layers below have recorded. */
export const markOfWhole = "tephra-whole";

const isId = (name: string | undefined): name is string => name !== undefined && /^[0-9a-f-]{36}$/.test(name);

export const named = ({ bitmaps }: RecordingLayer, name: string): Bitmap | undefined =>
  bitmaps.find((bitmap) => bitmap.name === name);

export const records = (layer: RecordingLayer, id: string): boolean => {
  const bitmap = named(layer, id);
  return bitmap?.persistent === true && bitmap.inconsistent !== true;
};

/** The checkpoints of which a layer has something, valid or not. */
export const idsOf = ({ bitmaps }: RecordingLayer): string[] => bitmaps.map(({ name }) => name).filter(isId);

/** The layers whose bitmaps together are a checkpoint, of a disk's, the active one first; null when it is not valid. */
export function layersOf<Layer extends RecordingLayer>(
  [active, ...below]: readonly [Layer, ...Layer[]],
  id: string,
): Layer[] | null {
  if (!records(active, id)) return null;
  const layers = [active];
  for (const layer of below) {
    const above = layers[layers.length - 1] ?? active;
    if (named(layer, id) === undefined) break;
    if (layer.sizeBytes !== active.sizeBytes) {
      // Shorter: it grew since. Without the mark somebody else has made it longer, and nothing can be said.
      if (named(above, markOfWhole) === undefined) return null;
      break;
    }
    if (!records(layer, id)) return null;
    layers.push(layer);
  }
  return layers;
}

export const validIds = (chain: readonly [RecordingLayer, ...RecordingLayer[]]): string[] =>
  idsOf(chain[0]).filter((id) => layersOf(chain, id) !== null);
