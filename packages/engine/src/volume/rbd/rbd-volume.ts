import {
  InvalidVolumeUrlError,
  NotReadyYetError,
  SourceChangedError,
  SourceMissingError,
  VolumeConflictError,
  VolumeStorageError,
} from "../../errors.ts";
import type { PathTarget } from "../file/file-target.ts";
import { NbdSource, openInPlace } from "../nbd/nbd-volume.ts";
import type { ServedNode } from "../qemu/qemu-nbd.ts";
import type { VolumeSource, VolumeTarget } from "../volume.ts";
import { runRbd, shutOut } from "./rbd-command.ts";
import { parseRbdName, type RbdImage, shownAs } from "./rbd-name.ts";
import { serveRbd } from "./serve-rbd.ts";

/*
 * Images of Ceph: their bytes by librbd in qemu-nbd (Debian's qemu-block-extra), and who uses them by `rbd` (ceph-common). Nothing in Ceph
 * keeps a second writer away: a running machine's lock on an image is handed to whoever writes next. So an image is opened only when nobody
 * watches it, and nobody else may have opened it until it has been read or written.
 */

/**
 * Opens a snapshot, or an image that nobody has open, to read.
 *
 * @throws InvalidVolumeUrlError, SourceMissingError; VolumeConflictError for an image in use; VolumeStorageError when Ceph cannot be
 * reached or denies access
 */
export async function openRbdSource(name: string): Promise<VolumeSource> {
  const image = parseRbdName(name);
  if (image.snapshot === null) {
    const { served, own } = await serveAlone(image, {
      writable: false,
      advice: "Shut its machine down, or name a snapshot.",
    });
    const fingerprint = (): Promise<string> =>
      refuseOthers(image, own).then(() => `${shownAs(image)}:${served.client.sizeBytes}`);
    return ownedSource(served, fingerprint);
  }
  const id = await snapshotId(image);
  const served = await serveRbd(image, { writable: false });
  return ownedSource(served, async () => {
    if ((await snapshotId(image)) !== id) throw new SourceChangedError(`${shownAs(image)} was made anew meanwhile.`);
    return `${shownAs(image)}:${id}`;
  });
}

function ownedSource(served: ServedNode, fingerprint: () => Promise<string>): VolumeSource {
  const source = new NbdSource(served.client, fingerprint);
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
  const { served, own } = await serveAlone(image, { writable: true, advice: "Shut its machine down." });
  const opened = await openInPlace(served.client, { name: shownAs(image), sizeBytes, server: served });
  const publish = async (): Promise<void> => {
    await opened.publish();
    await refuseOthers(image, own);
  };
  return { ...opened, publish };
}

/** How long it may take until who has died is no longer seen to have an image open: Ceph's own time is 30 s. */
const lettingGoMs = 90_000;

/**
 * Opens an image to overwrite it again and again until that succeeds, by one run at a time, on any host. The last run's client is shut out
 * of the cluster first, wherever it is: what it has sent comes to nothing.
 *
 * @throws NotReadyYetError while anybody else has the image open; VolumeStorageError
 */
export async function openRbdToRewrite(
  image: RbdImage,
  writers: { readonly earlier: string | null; note(writer: string): Promise<void> },
): Promise<VolumeTarget> {
  const { earlier } = writers;
  const shown = shownAs(image);
  if (earlier !== null) await shutOut(earlier, image, { shown, doing: "taken from its last writer" });
  const isEarlier = (watcher: string): boolean => earlier !== null && watcher.endsWith(` at ${earlier}`);
  const others = async (): Promise<string[]> => (await watchersOf(image)).filter((watcher) => !isEarlier(watcher));
  const inUse = (watchers: readonly string[]): NotReadyYetError =>
    new NotReadyYetError(`${shown} is in use by ${watchers.join(", ")}.`, {
      retryAfterMs: 2_000,
      giveUpAfterMs: lettingGoMs,
    });
  const before = await others();
  if (before.length > 0) throw inUse(before);
  await using stack = new AsyncDisposableStack();
  const served = stack.use(await serveRbd(image, { writable: true }));
  const [own, ...more] = await others();
  if (own === undefined || more.length > 0) throw inUse([own ?? "nobody", ...more]);
  await writers.note(own.slice(own.indexOf(" at ") + " at ".length));
  const { target } = await openInPlace(served.client, { name: shown, sizeBytes: 0, server: served });
  const owned = stack.move();
  return Object.assign(target, { [Symbol.asyncDispose]: () => owned.disposeAsync() });
}

/** Serves an image that nobody else has open, before and after it was opened. `own`: what its one watcher, qemu-nbd, is called. */
async function serveAlone(
  image: RbdImage,
  { writable, advice }: { writable: boolean; advice: string },
): Promise<{ served: ServedNode; own: string }> {
  const inUse = (watchers: readonly string[]): VolumeConflictError =>
    new VolumeConflictError(`${shownAs(image)} is in use by ${watchers.join(", ")}. ${advice}`);
  const before = await watchersOf(image);
  if (before.length > 0) throw inUse(before);
  await using stack = new AsyncDisposableStack();
  const served = stack.use(await serveRbd(image, { writable }));
  const [own, ...others] = await watchersOf(image);
  if (own === undefined || others.length > 0) throw inUse([own ?? "nobody", ...others]);
  stack.move();
  return { served, own };
}

/** @throws SourceChangedError when anybody but `own` has the image open. `own` itself may be missing for a moment after an OSD's restart. */
async function refuseOthers(image: RbdImage, own: string): Promise<void> {
  const others = (await watchersOf(image)).filter((watcher) => watcher !== own);
  if (others.length > 0)
    throw new SourceChangedError(`${shownAs(image)} was opened by ${others.join(", ")} meanwhile.`);
}

/** Who has an image open, by their ids and addresses in ascending order. */
async function watchersOf(image: RbdImage): Promise<string[]> {
  const answer = (await runRbd(["status", `--image=${image.image}`], image, shownAs(image))) as {
    watchers?: { address: string; client: number }[];
  };
  if (!Array.isArray(answer.watchers)) throw unexpected(image);
  return answer.watchers.map(({ address, client }) => `client.${client} at ${address}`).sort();
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
