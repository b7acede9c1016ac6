import { createHash } from "node:crypto";
import { realpath } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { VolumeStorageError } from "../../errors.ts";
import { isShare, mountAt } from "../../mounts.ts";
import { openInPlace } from "../nbd/nbd-volume.ts";
import { closeChain, type ImageFile, openImageChain } from "../qemu/image-chain.ts";
import { serveSource } from "../qemu/image-source.ts";
import { serveImage } from "../qemu/qemu-nbd.ts";
import type { VolumeTarget } from "../volume.ts";
import { type ConnectionInfo, type Connector, type ConnectorPlaces, refused } from "./connector.ts";
import { openFrozenFile, openLockedFile } from "./local-connector.ts";

const NfsInfo = z.object({
  export: z.string().min(1),
  name: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$/),
  format: z.enum(["raw", "qcow2"]),
});

/**
 * What Cinder's driver calls the image into which a volume is written that has snapshots. It is always qcow2, while an attachment that is
 * shown says the format that the volume was made with (cinder/api/v3/attachments.py).
 */
const overlayName = /\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/**
 * A file of a share, as Cinder's NFS driver attaches it. The share must be mounted where Cinder and os-brick mount it, in the folder that
 * is named after the MD5 of the export. The format is what Cinder says, never detected. A volume with snapshots is a qcow2 image
 * that builds on others: all of them must be in the share.
 */
export const nfs = ({ nfsBase }: ConnectorPlaces): Connector => ({
  async openSource(info, { frozenAs }) {
    const { folder, name, format } = await fileOf(info, nfsBase);
    if (format === "raw") return openFrozenFile(join(folder, name), [folder], frozenAs);
    return serveSource(await chainOf(folder, name), { fingerprint: frozenAs });
  },
  async openTarget(info) {
    const { folder, name, format } = await fileOf(info, nfsBase);
    if (format === "raw") return openLockedFile(join(folder, name), [folder]);
    return openImage(await chainOf(folder, name));
  },
});

async function fileOf(
  info: ConnectionInfo,
  base: string | null,
): Promise<{ folder: string } & z.infer<typeof NfsInfo>> {
  const parsed = NfsInfo.safeParse(info);
  if (!parsed.success) throw refused(`${parsed.error.issues[0]?.path.join(".")} is missing or not of its form`);
  if (base === null) throw refused("it is in a share, and no folder of mounts is configured (nfs_mount_base)");
  const { export: share } = parsed.data;
  const point = join(base, createHash("md5").update(share).digest("hex"));
  const [mount, folder] = await Promise.all([mountAt(point), realpath(point).catch(() => point)]);
  if (mount === undefined) throw unmounted(point, "the share is not mounted there");
  if (!isShare(mount, share)) throw unmounted(point, "another share is mounted there");
  const { name, format } = parsed.data;
  return { ...parsed.data, format: overlayName.test(name) ? "qcow2" : format, folder };
}

const unmounted = (point: string, why: string): VolumeStorageError =>
  new VolumeStorageError(`The share of the volume cannot be used at ${point}: ${why}.`, { retryable: true });

/** An image of the share itself: a link would lead to where others may be that it builds on. */
async function chainOf(folder: string, name: string): Promise<ImageFile[]> {
  const chain = await openImageChain(join(folder, name), "qcow2", []);
  if (chain[0]?.path === join(folder, name)) return chain;
  await closeChain(chain);
  throw refused("name is a link");
}

/** QEMU's own lock keeps a second writer away. */
async function openImage(chain: readonly ImageFile[]): Promise<VolumeTarget> {
  await using stack = new AsyncDisposableStack();
  stack.defer(() => closeChain(chain));
  const served = stack.use(await serveImage(chain, { writable: true }));
  const { target } = await openInPlace(served.client, { name: "The image", sizeBytes: 0, server: served });
  const owned = stack.move();
  return Object.assign(target, { [Symbol.asyncDispose]: () => owned.disposeAsync() });
}
