import { createHash } from "node:crypto";
import { lstat, open, readdir, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { errnoOf, HypervisorRefusedError } from "../../errors.ts";
import { unlinkIfThere } from "../../volume/file/copy-file.ts";
import { syncFolder } from "../../volume/file/sync-folder.ts";
import { guardStorage } from "../../volume/storage-error.ts";
import { createImage } from "./create-image.ts";
import { jobEnd, listJobs } from "./jobs.ts";
import { listNodes, type Node, pathOf } from "./nodes.ts";
import type { QmpClient } from "./qmp-client.ts";

/*
 * While snapshots are copied, the machine's writes go to overlays, one qcow2 file beside each disk:
 *
 *     before            between                                      after
 *     guest             guest ──▶ .volume-A.overlay-<operation>      guest
 *       │                                   │ backing                  │
 *     volume-A                          volume-A (still)             volume-A
 *
 * An overlay in use holds the only copy of what the machine has written since. So it is never removed by age or name alone, but only
 * after QEMU has confirmed that a job committed all of it back to the disk.
 */

/** A disk as opened by QEMU. */
export interface OpenDisk {
  volumePath: string;
  node: string;
  sizeBytes: number;
  cache: { direct: boolean; "no-flush": boolean };
}

export interface Overlay {
  node: string;
  path: string;
}

/**
 * Finds the topmost node of a disk, through which all its users access it: the raw format over the file, or the file itself.
 * HypervisorRefusedError when the machine does not have it open as a raw disk.
 */
export async function findDisk(qmp: QmpClient, volumePath: string): Promise<OpenDisk> {
  const wanted = await guardStorage(`read ${volumePath}`, () => stat(volumePath, { bigint: true }));
  const nodes: Node[] = [];
  for (const node of await listNodes(qmp)) {
    if (!node.file.startsWith("/")) continue;
    const status = await stat(node.file, { bigint: true }).catch(() => undefined);
    if (status?.dev === wanted.dev && status.ino === wanted.ino) nodes.push(node);
  }
  // A filter (throttling, a running backup) reports its disk's name as well, and stays above the overlay.
  const raws = nodes.filter(({ drv }) => drv === "raw");
  const [disk, second] = raws.length > 0 ? raws : nodes.filter(({ drv }) => ["file", "host_device"].includes(drv));
  if (disk === undefined) throw new HypervisorRefusedError(`The machine does not have ${volumePath} open.`);
  if (second !== undefined) {
    throw new HypervisorRefusedError(`The machine has ${volumePath} open more than once, so its top is not known.`);
  }
  const format = nodes.find(({ drv }) => ["qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "luks"].includes(drv));
  if (format !== undefined) {
    throw new HypervisorRefusedError(`The machine has ${volumePath} open as ${format.drv}; volumes are raw.`);
  }
  return { volumePath, node: disk["node-name"], sizeBytes: disk.image["virtual-size"], cache: disk.cache };
}

/**
 * Creates an empty overlay beside a disk and opens it in QEMU, without using it yet. QEMU creates the file: it may run as another user
 * and must be able to write it.
 */
export async function prepareOverlay(qmp: QmpClient, disk: OpenDisk, operationId: string): Promise<Overlay> {
  const path = `${overlayStart(disk.volumePath)}${operationId}`;
  // Node names have at most 31 characters.
  const digest = createHash("sha256").update(path).digest("hex");
  const node = `tephra-${digest.slice(0, 20)}`;
  const backing = { path: disk.volumePath, format: "raw" } as const;
  await createImage(qmp, { node, path, sizeBytes: disk.sizeBytes, cache: disk.cache, backing });
  const file = { driver: "file", filename: path, cache: disk.cache, discard: "unmap" };
  await qmp.execute("blockdev-add", {
    driver: "qcow2",
    "node-name": node,
    file,
    backing: null, // The snapshot sets it; the name in the file is for an operator who has to commit it by hand.
    cache: disk.cache,
    discard: "unmap",
  });
  return { node, path };
}

/** Atomically redirects the machine's writes to the overlays: all of them or none. */
export async function switchToOverlays(
  qmp: QmpClient,
  pairs: readonly { disk: OpenDisk; overlay: Overlay }[],
): Promise<void> {
  const actions = pairs.map(({ disk, overlay }) => ({
    type: "blockdev-snapshot",
    data: { node: disk.node, overlay: overlay.node },
  }));
  await qmp.execute("transaction", { actions });
}

/**
 * Returns a disk to its state without overlays: what the machine has written since is committed to the disk, and the overlay is removed.
 * Also handles leftovers of interrupted runs; a disk without overlays is left alone.
 *
 * @throws HypervisorRefusedError when an overlay that holds writes is no longer open in QEMU
 */
export async function withdrawOverlays(qmp: QmpClient, volumePath: string): Promise<void> {
  const start = overlayStart(volumePath);
  for (const node of await listNodes(qmp)) {
    const path = pathOf(node);
    const name = node["node-name"];
    if (!path.startsWith(start)) continue;
    if (node.drv === "qcow2") await writeBack(qmp, { volumePath, path, node });
    else if (name.startsWith("tephra-")) await qmp.execute("blockdev-del", { "node-name": name });
  }
  await removeUnused(volumePath);
}

/**
 * Removes overlay files that hold no writes, and throws when one does: for when QEMU does not have them open.
 *
 * @throws HypervisorRefusedError
 */
export async function removeUnused(volumePath: string): Promise<void> {
  const folder = dirname(volumePath);
  for (const name of await guardStorage(`list ${folder}`, () => readdir(folder))) {
    const path = join(folder, name);
    if (!path.startsWith(overlayStart(volumePath))) continue;
    if (await holdsWrites(path)) {
      throw new HypervisorRefusedError(
        `QEMU ended while snapshots were being taken: ${path} holds what the machine wrote last, and ${volumePath} does not. With the machine off, write it back with \`qemu-img commit ${path}\` and remove it; if the machine has run since without it, remove it.`,
      );
    }
    await unlinkIfThere(path);
  }
  await syncFolder(folder);
}

async function writeBack(qmp: QmpClient, overlay: { volumePath: string; path: string; node: Node }): Promise<void> {
  const { volumePath, path } = overlay;
  const { "node-name": node, backing_file_depth } = overlay.node;
  const job = (await listJobs(qmp)).find(({ id }) => id === node);
  // Without a backing node it was never used. With one, either its file is gone, which happens after its job has succeeded and before
  // that job is dismissed, or it must be assumed to be in use.
  if (backing_file_depth > 0 && (job !== undefined || (await lstat(path).catch(() => undefined)) !== undefined)) {
    if (job === undefined) {
      const base = await findDisk(qmp, volumePath);
      const args = { "job-id": node, device: node, "base-node": base.node, "auto-dismiss": false };
      await qmp.execute("block-commit", args);
    }
    await jobEnd(qmp, node);
    await unlinkIfThere(path);
    await qmp.execute("job-dismiss", { id: node });
  }
  await qmp.execute("blockdev-del", { "node-name": node });
  await unlinkIfThere(path);
}

/** QEMU opens no qcow2 file with a larger L1 table. */
const l1TableMaxBytes = 32 * 1024 * 1024;

/** Whether the guest has written to a qcow2 overlay: only then does its L1 table have an entry (qcow2 format, L1 table). */
async function holdsWrites(path: string): Promise<boolean> {
  const file = await open(path, "r").catch((error: unknown) => {
    if (errnoOf(error) !== "ENOENT") throw error;
  });
  if (file === undefined) return false;
  try {
    const header = Buffer.alloc(48);
    const { bytesRead } = await file.read(header, 0, header.length, 0);
    if (bytesRead < header.length) return false; // Interrupted before it became a qcow2 file.
    const bytes = header.readUInt32BE(36) * 8;
    if (bytes > l1TableMaxBytes) return true; // Damaged, or not QEMU's: kept for somebody to look at.
    const table = Buffer.alloc(bytes);
    await file.read(table, 0, table.length, Number(header.readBigUInt64BE(40)));
    return table.some((byte) => byte !== 0);
  } finally {
    await file.close();
  }
}

const overlayStart = (volumePath: string): string => join(dirname(volumePath), `.${basename(volumePath)}.overlay-`);
