import { HypervisorRefusedError } from "../../../errors.ts";
import {
  granularity,
  idsOf,
  layersOf,
  markOfWhole,
  named,
  records,
  validIds,
} from "../../../volume/qemu/checkpoint-bitmaps.ts";
import type { QmpClient } from "../qmp-client.ts";
import type { Chain, Layer } from "./chain.ts";

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
  const [active, ...below] = chain;
  const { node } = active;
  if (below.length === 0) return;
  const mark = named(active, markOfWhole) === undefined ? [addBitmap(node, markOfWhole, recordingOf(markOfWhole))] : [];
  const merges = validIds(chain).flatMap((name) => {
    const [, ...lower] = layersOf(chain, name) ?? [];
    return mergeCheckpoint(lower, name, { node, name });
  });
  await transact(qmp, [...merges, ...mark]);
}

const recordingOf = (name: string): object =>
  name === markOfWhole ? { persistent: true, disabled: true } : { persistent: true };
