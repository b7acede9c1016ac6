import { type FileHandle, open } from "node:fs/promises";
import { VolumeStorageError } from "../../errors.ts";
import type { RunContext } from "../../run/run-context.ts";
import { copyData } from "../file/copy-file.ts";
import { guardStorage } from "../storage-error.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { type ImageFile, requireLone } from "./image-chain.ts";
import { serveSource } from "./image-source.ts";
import { checkImage } from "./qemu-img.ts";

/** Of QEMU's programs with an image from outside, which says itself how long its tables are. */
const memoryBytesMax = 2 * 1024 ** 3;

/** Its name in messages: where it is, is nothing to those who sent it. */
const shown = "uploaded.qcow2";

/**
 * Writes what a guest sees of a qcow2 image from outside, which nobody can change any more, to a target that is all zeros and at least as
 * long. Nothing in the image is believed before its header was checked: QEMU never opens one that names another file, is encrypted, or is
 * longer than the target. The target is durable when this resolves.
 *
 * @param received the image's own bytes, and maybe zeros behind them
 * @throws VolumeStorageError with `retryable` false for an image that cannot be used; VolumeStorageFullError
 */
export async function unpackImage(received: VolumeSource, target: VolumeTarget, run: RunContext): Promise<void> {
  const { descriptor } = received;
  if (descriptor === undefined) {
    throw new VolumeStorageError("Images can be received where they are files only.", { retryable: false });
  }
  const opened = await guardStorage("open the image", () => open(`/proc/self/fd/${descriptor}`, "r"));
  await using source = await openChecked(opened, target.sizeBytes);
  await copyData(source, target, { offset: 0, length: source.sizeBytes }, run);
  await target.flush();
}

/** The file is closed with what is returned, and when it is refused. */
async function openChecked(file: FileHandle, sizeMax: number): Promise<VolumeSource> {
  await using stack = new AsyncDisposableStack();
  stack.defer(() => file.close());
  const image: ImageFile = { path: shown, format: "qcow2", file };
  const sizeBytes = await requireLone(image);
  if (sizeBytes > sizeMax) {
    const message = `The image ${shown} cannot be used: it is of a disk of ${sizeBytes} bytes, and this one has ${sizeMax}.`;
    throw new VolumeStorageError(message, { retryable: false });
  }
  await checkImage(image, { memoryBytesMax });
  stack.move();
  return serveSource([image], { memoryBytesMax });
}
