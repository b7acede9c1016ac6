import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { link, lstat, open, unlink } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { errnoOf, PathTakenError } from "../../errors.ts";
import type { PathTarget } from "../file/file-target.ts";
import { syncFolder } from "../file/sync-folder.ts";
import { NbdTarget } from "../nbd/nbd-volume.ts";
import { guardStorage } from "../storage-error.ts";
import { createQcow2 } from "./qemu-img.ts";
import { serveImage } from "./qemu-nbd.ts";

/**
 * Creates a qcow2 image of that length, which appears under its name only when complete.
 *
 * @throws PathTakenError when there is something of that name, also when it was put there meanwhile; VolumeStorageError
 */
export async function createImage(named: string, sizeBytes: number): Promise<PathTarget> {
  const path = resolve(named);
  const taken = new PathTakenError(`${path} exists already: an image is restored to a new file.`);
  if (await isThere(path)) throw taken;
  await using stack = new AsyncDisposableStack();
  const temporary = join(dirname(path), `.${basename(path).slice(0, 200)}.${randomUUID()}`);
  stack.defer(() => unlink(temporary).catch(() => {}));
  await createQcow2(temporary, sizeBytes, null, path);
  const file = await guardStorage(`create ${path}`, () => open(temporary, constants.O_RDWR | constants.O_NOFOLLOW));
  stack.defer(() => file.close());
  const served = stack.use(await serveImage([{ path, format: "qcow2", file }], { writable: true }));
  const target = new NbdTarget(served.client, { isNew: true });
  const publish = async (): Promise<void> => {
    await target.flush();
    await served[Symbol.asyncDispose]();
    await guardStorage(`write ${path}`, () => file.sync());
    // A link replaces nothing, unlike a new name.
    await link(temporary, path).catch((error: unknown) => {
      throw errnoOf(error) === "EEXIST" ? taken : error;
    });
    await syncFolder(dirname(path));
  };
  const owned = stack.move();
  return { target, publish, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

const isThere = (path: string): Promise<boolean> =>
  lstat(path).then(
    () => true,
    () => false,
  );
