import { createHash } from "node:crypto";
import { stat } from "node:fs/promises";
import { HypervisorRefusedError } from "../../../errors.ts";
import { identityOf } from "../../../folder.ts";
import { closeChain, openImageChain } from "../../../volume/qemu/image-chain.ts";
import { ImageInUseError, isLockFailure } from "../../../volume/qemu/qemu-nbd.ts";
import { type Bitmap, listNodes, type Node, pathOf } from "../nodes.ts";
import type { QmpClient } from "../qmp-client.ts";

/** One image of a disk, as QEMU has it open. */
export interface Layer {
  path: string;
  format: "qcow2" | "raw";
  node: string;
  /** By which name QEMU has it open. */
  openedAs: string;
  sizeBytes: number;
  cache: Node["cache"];
  bitmaps: Bitmap[];
}

/** A disk's layers, the active one first. */
export type Chain = readonly [Layer, ...Layer[]];

interface Image {
  path: string;
  format: "qcow2" | "raw";
}

/** `roots`: folders, besides an image's own, in which its backing files may be. */
export interface ImagePlaces {
  roots: readonly string[];
}

/** The same for the same text. At most 27 characters, since nodes have at most 31, and begins with a letter, as ids of jobs and nodes must. */
export const nameFor = (text: string): string =>
  `tephra-${createHash("sha256").update(text).digest("hex").slice(0, 20)}`;

/**
 * The disk's layers as QEMU has them open.
 *
 * @throws HypervisorRefusedError when it has not, or one of them more than once; errors of openImageChain
 */
export async function findChain(qmp: QmpClient, image: Image, places: ImagePlaces): Promise<Chain> {
  const found = await nodesByFile(qmp);
  const layers: Layer[] = [];
  for (const { path, format, identity } of await readChain(image, places)) {
    const nodes = found.get(identity) ?? [];
    const [node, second] = nodes.filter(({ drv }) => drv === format);
    if (node === undefined) throw new HypervisorRefusedError(`The machine does not have ${path} open.`);
    if (second !== undefined) throw new HypervisorRefusedError(`The machine has ${path} open more than once.`);
    layers.push(layerOf(node, path, format));
  }
  return layers as unknown as Chain;
}

/**
 * Opens an image with all that it builds on, unless it is open. Nothing but the image itself is opened for writing, and that only with
 * `writable`; QEMU follows no name that is written in an image, and detects no format.
 *
 * @throws ImageInUseError when another process writes one of them
 */
export async function openChain(
  qmp: QmpClient,
  image: Image,
  { roots, writable }: ImagePlaces & { writable: boolean },
): Promise<Chain> {
  const found = await nodesByFile(qmp);
  const images = (await readChain(image, { roots })).reverse();
  let backing: string | null = null;
  for (const [index, { path, format, identity }] of images.entries()) {
    const existing = found.get(identity)?.find(({ drv }) => drv === format);
    const node = existing?.["node-name"] ?? nameFor(path);
    const readOnly = !(writable && index === images.length - 1);
    if (existing === undefined) await addImage(qmp, { node, path, format, backing, readOnly });
    backing = node;
  }
  return await findChain(qmp, image, { roots });
}

interface ImageToAdd extends Image {
  node: string;
  backing: string | null;
  readOnly: boolean;
  cache?: Node["cache"];
}

/** Opens one image as a node. */
export async function addImage(qmp: QmpClient, image: ImageToAdd): Promise<void> {
  const { node, path, format, backing, readOnly, cache } = image;
  const cached = cache === undefined ? {} : { cache };
  const file = { driver: "file", filename: path, "auto-read-only": true, discard: "unmap", ...cached };
  const options = { "node-name": node, "read-only": readOnly, discard: "unmap", ...cached };
  const added = format === "raw" ? { driver: "raw", file } : { driver: "qcow2", file, backing };
  await qmp.execute("blockdev-add", { ...added, ...options }).catch((error: unknown) => {
    if (error instanceof HypervisorRefusedError && isLockFailure(error.message)) {
      throw new ImageInUseError(`The image ${path} is in use by another process.`);
    }
    throw error;
  });
}

/**
 * Whether an image can come to be open by another of its names. A node for which whoever started the machine has chosen no name cannot be
 * opened again, and in QEMU 7.2 is damaged by the attempt.
 */
export const canReopen = ({ node }: Layer): boolean => !node.startsWith("#");

/**
 * QEMU has the image open by another of its names from now on. It opens a file again, by name, when it begins or ends to write it: whatever
 * has come to have the old name by then would be taken for the image. Nothing writes it, and it can be (canReopen).
 */
export async function reopenAs(qmp: QmpClient, layer: Layer, below: Layer | undefined, path: string): Promise<void> {
  const { node, format, cache, openedAs } = layer;
  // The file that a name leads to changes: a node of that name may be of another.
  const file = nameFor(`name ${path} ${identityOf(await stat(path, { bigint: true }))}`);
  const isThere = (await listNodes(qmp)).some((each) => each["node-name"] === file);
  const opened = { driver: "file", filename: path, "auto-read-only": true, discard: "unmap", cache };
  if (!isThere) await qmp.execute("blockdev-add", { ...opened, "node-name": file });
  const backing = format === "qcow2" ? { backing: below?.node ?? null } : {};
  const image = { driver: format, "node-name": node, file, ...backing, "read-only": true, discard: "unmap", cache };
  await qmp.execute("blockdev-reopen", { options: [image] });
  await dropFiles(qmp, openedAs);
}

/** Files that were opened by that name for reopenAs, and that no image has any more. */
export async function dropFiles(qmp: QmpClient, path: string): Promise<void> {
  for (const { "node-name": node, drv, file } of await listNodes(qmp)) {
    if (drv !== "file" || file !== path || !node.startsWith("tephra-")) continue;
    await qmp.execute("blockdev-del", { "node-name": node }).catch((error: unknown) => {
      if (!(error instanceof HypervisorRefusedError)) throw error;
    });
  }
}

/** Nodes over image files, by the file's identity. */
async function nodesByFile(qmp: QmpClient): Promise<Map<string, Node[]>> {
  const found = new Map<string, Node[]>();
  for (const node of await listNodes(qmp)) {
    if (node.drv !== "qcow2" && node.drv !== "raw") continue;
    const status = await stat(pathOf(node), { bigint: true }).catch(() => undefined);
    if (status === undefined) continue;
    const identity = identityOf(status);
    found.set(identity, [...(found.get(identity) ?? []), node]);
  }
  return found;
}

/** The node over a file that may have no name any more; undefined when it is not open. */
export async function nodeAt(qmp: QmpClient, path: string): Promise<Node | undefined> {
  return (await listNodes(qmp)).find((node) => ["qcow2", "raw"].includes(node.drv) && pathOf(node) === path);
}

async function readChain({ path, format }: Image, { roots }: ImagePlaces): Promise<(Image & { identity: string })[]> {
  const files = await openImageChain(path, format, roots);
  try {
    return await Promise.all(
      files.map(async (image) => ({
        path: image.path,
        format: image.format === "raw" ? "raw" : "qcow2",
        identity: identityOf(await image.file.stat({ bigint: true })),
      })),
    );
  } finally {
    await closeChain(files);
  }
}

const layerOf = (node: Node, path: string, format: "qcow2" | "raw"): Layer => ({
  path,
  format,
  node: node["node-name"],
  openedAs: pathOf(node),
  sizeBytes: node.image["virtual-size"],
  cache: node.cache,
  bitmaps: node["dirty-bitmaps"] ?? [],
});
