import { link, lstat, rename } from "node:fs/promises";
import { dirname, join } from "node:path";
import { HypervisorRefusedError } from "../../errors.ts";
import { identityOf } from "../../folder.ts";
import type { RunContext } from "../../run/run-context.ts";
import type { LayersToMerge, RunningImages, RunningLayer } from "../backend.ts";
import { unlinkIfThere } from "../file/copy-file.ts";
import { syncFolder } from "../file/sync-folder.ts";
import { guardStorage } from "../storage-error.ts";
import { inspectImage } from "./image-chain.ts";
import { type Layers, layerName } from "./layers.ts";

/*
 * Layers of volumes that a machine writes while they change. Whoever starts the machine again opens `volume-ID`, so that name must lead to
 * what it writes; and QEMU opens a file again by the name that it knows, so that name must not lead elsewhere:
 *
 *     before            prepared                        switched                        named
 *
 *     volume-A          volume-A = .layer-1             volume-A = .layer-1             .layer-1
 *                       .layer-S = .live-S  (empty)     .layer-S = .live-S  (written)   .layer-S = volume-A (written)
 *
 * S is the snapshot's id. The new image gets both of its names before it is written: under `.layer-S` QEMU has it open for good, also
 * when it is a layer one day; `.live-S` becomes `volume-A` in one rename, and until then keeps everybody from taking it for a layer on which
 * nothing builds. QEMU has the old image open as `.layer-1` before its other name goes.
 */

interface Part {
  volumeId: string;
  /** The volume's image. */
  image: string;
  /** The snapshot's. */
  to: string;
  /** The snapshot's id. */
  id: string;
}

const liveName = (id: string): string => `.live-${id}`;

const pathsOf = ({ image, id }: Pick<Part, "image" | "id">): { overlayPath: string; livePath: string } => ({
  overlayPath: join(dirname(image), layerName(id)),
  livePath: join(dirname(image), liveName(id)),
});

/** See VolumeBackend.freezeRunning. */
export async function branchRunning<Taken>(
  layers: Layers,
  parts: readonly Part[],
  images: RunningImages<Taken>,
  { signal, fence }: RunContext,
): Promise<{ taken: Taken; sizesBytes: number[] }> {
  await using _locked = await layers.lock();
  const prepared: RunningLayer[] = [];
  for (const part of parts) {
    signal.throwIfAborted();
    fence();
    prepared.push(await prepare(layers, part, images));
  }
  signal.throwIfAborted();
  fence();
  const taken = await images.switchOver(prepared);
  const sizesBytes: number[] = [];
  for (const [index, part] of parts.entries()) {
    fence();
    await nameLive(part);
    fence();
    const { keptPath, overlayPath } = prepared[index] as RunningLayer;
    const { sizeBytes } = await inspectImage(overlayPath);
    if ((await identityAt(part.to)) === null) {
      await using branched = await layers.overlay(part.to, keptPath, sizeBytes);
      await guardStorage(`create ${part.to}`, () => rename(branched.path, part.to));
    }
    sizesBytes.push(sizeBytes);
    await syncFolder(dirname(part.to));
  }
  return { taken, sizesBytes };
}

/** The new image, under both of its names; what an interrupted run has prepared is made anew, unless the machine writes it. */
async function prepare(layers: Layers, part: Part, images: RunningImages<unknown>): Promise<RunningLayer> {
  const { volumeId, image } = part;
  const { overlayPath, livePath } = pathsOf(part);
  const existing = await identityAt(overlayPath);
  const isNamed = existing !== null && existing === (await identityAt(image));
  if (isNamed || (existing !== null && (await images.writes(overlayPath)))) {
    const { backing } = await inspectImage(overlayPath);
    return { volumeId, path: image, keptPath: join(dirname(image), backing ?? ""), overlayPath };
  }
  await removeUnused(part);
  const keptPath = await layers.layerNameOf(image);
  await using draft = await layers.overlay(image, keptPath, (await inspectImage(image)).sizeBytes);
  await guardStorage(`create ${overlayPath}`, async () => {
    await link(draft.path, livePath);
    await link(draft.path, overlayPath);
  });
  await syncFolder(dirname(image));
  return { volumeId, path: image, keptPath, overlayPath };
}

/** The volume's name leads to the image that the machine writes. */
async function nameLive(part: Pick<Part, "image" | "id">): Promise<void> {
  const { livePath } = pathsOf(part);
  if ((await identityAt(livePath)) === null) return;
  await guardStorage(`create ${part.image}`, () => rename(livePath, part.image));
  await syncFolder(dirname(part.image));
}

async function removeUnused(part: Pick<Part, "image" | "id">): Promise<void> {
  const { overlayPath, livePath } = pathsOf(part);
  await guardStorage(`remove ${overlayPath}`, async () => {
    await unlinkIfThere(overlayPath);
    await unlinkIfThere(livePath);
  });
}

/** See VolumeBackend.settleRunning. What a machine that is off has written into the new image, or would have, is the volume's. */
export async function settleRunning(
  layers: Layers,
  part: Pick<Part, "image" | "id">,
  images: Pick<RunningImages<unknown>, "writes"> | null,
): Promise<void> {
  const { overlayPath, livePath } = pathsOf(part);
  if ((await identityAt(livePath)) === null) return;
  await using _locked = await layers.lock();
  const existing = await identityAt(overlayPath);
  if (existing !== null && (images === null || (await images.writes(overlayPath)))) await nameLive(part);
  else await removeUnused(part);
}

/** See VolumeBackend.mergeRunning. A pair that is refused, such as one that somebody else reads, is left for the next time. */
export async function mergeRunning(
  layers: Layers,
  image: string,
  merge: (layers: LayersToMerge) => Promise<void>,
): Promise<void> {
  const tried = new Set<string>();
  for (;;) {
    const pairs = await layers.pairsBelow(image);
    const pair = pairs.find(({ layerPath, intoPath }) => !tried.has(`${layerPath} ${intoPath}`));
    if (pair === undefined) return;
    tried.add(`${pair.layerPath} ${pair.intoPath}`);
    await merge(pair).catch((error: unknown) => {
      if (!(error instanceof HypervisorRefusedError)) throw error;
    });
  }
}

/** Null where there is no file. */
async function identityAt(path: string): Promise<string | null> {
  const status = await lstat(path, { bigint: true }).catch(() => undefined);
  return status === undefined ? null : identityOf(status);
}
