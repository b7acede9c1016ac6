import { NbdSource } from "../nbd/nbd-volume.ts";
import type { VolumeSource } from "../volume.ts";
import type { ImageFile } from "./image-chain.ts";
import { serveImage } from "./qemu-nbd.ts";

/**
 * Serves an open chain for reading, and closes it with the source. `fingerprint`: of contents that never change; otherwise by the times
 * of the chain's files.
 *
 * @throws VolumeStorageError, ImageInUseError; the chain is closed then
 */
export async function serveSource(
  chain: readonly ImageFile[],
  { fingerprint, ...limits }: { fingerprint?: string | undefined; memoryBytesMax?: number } = {},
): Promise<VolumeSource> {
  await using stack = new AsyncDisposableStack();
  for (const { file } of chain) stack.defer(() => file.close());
  const { client } = stack.use(await serveImage(chain, { writable: false, ...limits }));
  const byTimes = async (): Promise<string> => {
    const stats = await Promise.all(chain.map(({ file }) => file.stat({ bigint: true })));
    return stats.map(({ ino, size, mtimeNs, ctimeNs }) => [ino, size, mtimeNs, ctimeNs].join(":")).join(" ");
  };
  const source = new NbdSource(client, fingerprint === undefined ? byTimes : async () => fingerprint);
  const owned = stack.move();
  return Object.assign(source, { [Symbol.asyncDispose]: () => owned.disposeAsync() });
}
