import { HypervisorRefusedError } from "../../../errors.ts";
import type { Bitmap } from "../nodes.ts";
import type { QmpClient } from "../qmp-client.ts";
import type { Chain, Layer } from "./chain.ts";

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

export const granularity = 65_536;

/** The name of an empty bitmap of a layer whose checkpoints include what the layers below have recorded. */
export const markOfWhole = "tephra-whole";

const isId = (name: string | undefined): name is string => name !== undefined && /^[0-9a-f-]{36}$/.test(name);

const named = ({ bitmaps }: Layer, name: string): Bitmap | undefined => bitmaps.find((bitmap) => bitmap.name === name);
const records = (layer: Layer, id: string): boolean => {
  const bitmap = named(layer, id);
  return bitmap?.persistent === true && bitmap.inconsistent !== true;
};

/** The checkpoints of which a layer has something, valid or not. */
export const idsOf = ({ bitmaps }: Layer): string[] => bitmaps.map(({ name }) => name).filter(isId);

/** The layers whose bitmaps together are a checkpoint; null when it is not valid. */
export function layersOf(chain: Chain, id: string): Layer[] | null {
  const [active, ...below] = chain;
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

export const validIds = (chain: Chain): string[] => idsOf(chain[0]).filter((id) => layersOf(chain, id) !== null);

/** Removes what is left of invalid checkpoints from the active layer, so that no later change of layers can make them look valid. */
export async function dropInvalid(qmp: QmpClient, chain: Chain): Promise<void> {
  const valid = validIds(chain);
  for (const id of idsOf(chain[0]).filter((each) => !valid.includes(each))) await removeBitmap(qmp, chain[0], id);
}

/** The active layer stops recording; what the layers below have recorded is of no use without it, and goes where QEMU may write it. */
export async function removeCheckpointOf(qmp: QmpClient, chain: Chain, id: string): Promise<void> {
  for (const layer of chain) {
    if (named(layer, id) === undefined) continue;
    await removeBitmap(qmp, layer, id).catch((error: unknown) => {
      if (layer === chain[0] || !(error instanceof HypervisorRefusedError)) throw error;
    });
  }
}

export async function removeBitmap(qmp: QmpClient, { node }: Layer, name: string): Promise<void> {
  await qmp.execute("block-dirty-bitmap-remove", { node, name });
}

interface Action {
  type: string;
  data: object;
}

export const addBitmap = (node: string, name: string, more: object = { persistent: true }): Action => ({
  type: "block-dirty-bitmap-add",
  data: { node, name, granularity, ...more },
});

/** One bitmap gets what others have. Never without any: QEMU 7.2 ends with a segmentation fault, and the machine with it. */
export function mergeBitmaps(
  node: string,
  target: string,
  bitmaps: readonly { node: string; name: string }[],
): Action[] {
  return bitmaps.length === 0 ? [] : [{ type: "block-dirty-bitmap-merge", data: { node, target, bitmaps } }];
}

/** The union of what a valid checkpoint's layers have recorded, in `target`. */
export const mergeCheckpoint = (
  layers: readonly Layer[],
  id: string,
  target: { node: string; name: string },
): Action[] =>
  mergeBitmaps(
    target.node,
    target.name,
    layers.map(({ node }) => ({ node, name: id })),
  );

export async function transact(qmp: QmpClient, actions: readonly Action[]): Promise<void> {
  if (actions.length > 0) await qmp.execute("transaction", { actions });
}

/** Before a layer below the active one is written into a raw image, which records nothing: the active layer takes its checkpoints over. */
export async function liftCheckpoints(qmp: QmpClient, chain: Chain, upper: Layer): Promise<void> {
  const [active] = chain;
  const ids = validIds(chain).filter((id) => layersOf(chain, id)?.includes(upper));
  await transact(
    qmp,
    ids.flatMap((id) => mergeCheckpoint([upper], id, { node: active.node, name: id })),
  );
}

/**
 * Before an upper layer's end: the lower one, into which it is written, takes its checkpoints over. What the upper has not recorded is
 * removed from the lower, which would else look valid. Both are as they are now, the lower writable and as long as the upper.
 */
export async function moveCheckpoints(qmp: QmpClient, upper: Layer, lower: Layer): Promise<void> {
  const kept = idsOf(upper).filter((id) => records(upper, id));
  for (const id of idsOf(lower)) {
    if (!kept.includes(id) || !records(lower, id)) await removeBitmap(qmp, lower, id);
  }
  const moved = kept.filter((id) => named(lower, id) === undefined || records(lower, id));
  const names = named(upper, markOfWhole) === undefined ? moved : [...moved, markOfWhole];
  await transact(
    qmp,
    names.flatMap((name) => [
      ...(named(lower, name) === undefined ? [addBitmap(lower.node, name, recordingOf(name))] : []),
      ...mergeBitmaps(lower.node, name, [{ node: upper.node, name }]),
    ]),
  );
}

/** Before the active layer grows: see above. */
export async function takeOver(qmp: QmpClient, chain: Chain): Promise<void> {
  const [{ node, ...active }, ...below] = chain;
  if (below.length === 0) return;
  const mark =
    named({ node, ...active }, markOfWhole) === undefined
      ? [addBitmap(node, markOfWhole, recordingOf(markOfWhole))]
      : [];
  const merges = validIds(chain).flatMap((name) => {
    const [, ...lower] = layersOf(chain, name) ?? [];
    return mergeCheckpoint(lower, name, { node, name });
  });
  await transact(qmp, [...merges, ...mark]);
}

const recordingOf = (name: string): object =>
  name === markOfWhole ? { persistent: true, disabled: true } : { persistent: true };
