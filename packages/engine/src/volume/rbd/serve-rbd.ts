import { readFile } from "node:fs/promises";
import { errnoOf, VolumeStorageError } from "../../errors.ts";
import { type ServedNode, secretId, serveNode } from "../qemu/qemu-nbd.ts";
import { type RbdImage, shownAs } from "./rbd-name.ts";

export const userDefault = "admin";

/** Serves an image or snapshot by librbd in qemu-nbd (Debian's qemu-block-extra). @throws VolumeStorageError */
export async function serveRbd(image: RbdImage, options: { writable: boolean }): Promise<ServedNode> {
  const key = image.keyring === null ? null : await readKey(image.keyring, image.user ?? userDefault);
  const file = {
    driver: "rbd",
    pool: image.pool,
    image: image.image,
    ...(image.namespace === null ? {} : { namespace: image.namespace }),
    ...(image.snapshot === null ? {} : { snapshot: image.snapshot }),
    ...(image.conf === null ? {} : { conf: image.conf }),
    ...(image.user === null ? {} : { user: image.user }),
    ...(key === null ? {} : { "key-secret": secretId }),
  };
  const what = {
    shown: shownAs(image),
    node: { driver: "raw", file },
    ...(key === null ? {} : { secret: { text: key, format: "base64" as const } }),
    mayPass: (words: string) => /timed out|Connection refused|Shutdown/i.test(words),
  };
  return serveNode(what, options);
}

/**
 * The key of `client.USER` in a keyring. https://docs.ceph.com/en/latest/man/8/ceph-authtool/#keyring-file
 *
 * @throws VolumeStorageError
 */
async function readKey(path: string, user: string): Promise<string> {
  const text = await readFile(path, "utf8").catch((error: unknown) => {
    throw new VolumeStorageError(`The keyring ${path} cannot be read (${errnoOf(error)}).`, { retryable: false });
  });
  let section = "";
  for (const line of text.split("\n")) {
    section = /^\s*\[(.*)\]\s*$/.exec(line)?.[1] ?? section;
    const key = /^\s*key\s*=\s*"?([A-Za-z0-9+/]+=*)"?\s*$/.exec(line)?.[1];
    if (key !== undefined && section === `client.${user}`) return key;
  }
  throw new VolumeStorageError(`The keyring ${path} has no key of client.${user}.`, { retryable: false });
}
