import { readFile } from "node:fs/promises";
import {
  errnoOf,
  InvalidVolumeUrlError,
  SourceMissingError,
  VolumeConflictError,
  VolumeStorageError,
} from "../../errors.ts";
import type { PathTarget } from "../file/file-target.ts";
import { NbdSource, openInPlace } from "../nbd/nbd-volume.ts";
import { type ServedNode, secretId, serveNode } from "../qemu/qemu-nbd.ts";
import type { VolumeSource } from "../volume.ts";
import { runRbd } from "./rbd-command.ts";
import { parseRbdName, type RbdImage, shownAs } from "./rbd-name.ts";

/*
 * Images of Ceph: their bytes by librbd in qemu-nbd (Debian's qemu-block-extra), and who uses them by `rbd` (ceph-common). Nothing in Ceph
 * keeps a second writer away: a running machine's lock on an image is handed to whoever writes next. So an image is opened only when nobody
 * watches it, and one that is being read must have had the same watchers from beginning to end.
 */

const userDefault = "admin";

/**
 * Opens a snapshot, or an image that nobody has open, to read.
 *
 * @throws InvalidVolumeUrlError, SourceMissingError; VolumeConflictError for an image in use; VolumeStorageError when Ceph cannot be
 * reached or denies access
 */
export async function openRbdSource(name: string): Promise<VolumeSource> {
  const image = parseRbdName(name);
  if (image.snapshot === null) await refuseInUse(image, "Shut its machine down, or name a snapshot.");
  else await snapshotId(image);
  const served = await serveRbd(image, { writable: false });
  const source = new NbdSource(served.client, () =>
    image.snapshot === null ? watchersOf(image) : snapshotId(image).then((id) => `snapshot ${id}`),
  );
  return Object.assign(source, { [Symbol.asyncDispose]: () => served[Symbol.asyncDispose]() });
}

/**
 * Opens an image that exists, and that nobody has open, to overwrite.
 *
 * @throws as openRbdSource; VolumeConflictError when it is too short
 */
export async function openRbdTarget(name: string, sizeBytes: number): Promise<PathTarget> {
  const image = parseRbdName(name);
  if (image.snapshot !== null) throw new InvalidVolumeUrlError(`${name} cannot be written: it is a snapshot.`);
  await refuseInUse(image, "Shut its machine down.");
  const served = await serveRbd(image, { writable: true });
  return openInPlace(served.client, { name: shownAs(image), sizeBytes, server: served });
}

async function refuseInUse(image: RbdImage, advice: string): Promise<void> {
  const watchers = await watchersOf(image);
  if (watchers !== "") throw new VolumeConflictError(`${shownAs(image)} is in use by ${watchers}. ${advice}`);
}

/** Who has an image open, by their ids and addresses in ascending order. */
async function watchersOf(image: RbdImage): Promise<string> {
  const answer = (await runRbd(["status", `--image=${image.image}`], image, shownAs(image))) as {
    watchers?: { address: string; client: number }[];
  };
  if (!Array.isArray(answer.watchers)) throw unexpected(image);
  return answer.watchers
    .map(({ address, client }) => `client.${client} at ${address}`)
    .sort()
    .join(", ");
}

/** A snapshot that is made again has another id. @throws SourceMissingError when there is none of that name any more */
async function snapshotId(image: RbdImage): Promise<number> {
  const answer = await runRbd(["snap", "ls", `--image=${image.image}`], image, shownAs(image));
  if (!Array.isArray(answer)) throw unexpected(image);
  const found = (answer as { id: number; name: string }[]).find(({ name }) => name === image.snapshot);
  if (found === undefined)
    throw new SourceMissingError(`${shownAs(image)} is not there: the image has no such snapshot.`);
  return found.id;
}

const unexpected = (image: RbdImage): VolumeStorageError =>
  new VolumeStorageError(`rbd says of ${shownAs(image)} what is not understood.`, { retryable: false });

async function serveRbd(image: RbdImage, options: { writable: boolean }): Promise<ServedNode> {
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
