import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { VolumeStorageError } from "../../errors.ts";
import { NbdClient } from "../nbd/nbd-client.ts";
import type { ImageFile } from "./image-chain.ts";

/** How long the program may take to open an image and listen. */
const startMs = 30_000;
const lookEveryMs = 10;
/** How long it may take to end when nobody is connected any more. */
const endMs = 5_000;
/** Of what it writes to stderr. */
const wordsMax = 4_096;
const exportName = "volume";

type Child = ReturnType<typeof spawn>;

/** Another program has the image open in a way that excludes this one; its lock is respected. */
export class ImageInUseError extends VolumeStorageError {
  constructor(message: string) {
    super(message, { retryable: true });
  }
}

/** Whether QEMU's words say that somebody else has locked the image. */
export const isLockFailure = (words: string): boolean => /Failed to get .*lock/.test(words);

/** A qemu-nbd with a connection to its one export. It ends with that connection, and so with this process, however that ends. */
export interface ServedImage extends AsyncDisposable {
  readonly client: NbdClient;
}

/** The first descriptor that a child gets beyond its three streams. */
const firstDescriptor = 3;

/**
 * Serves an image read-only, or with `writable` its one file. The image and all it builds on are given as descriptors: QEMU follows no name
 * that is written in an image, detects no format, and refuses an image that another program has open for writing.
 *
 * @throws VolumeStorageError when qemu-nbd is not installed or cannot open the image, with its own words; ImageInUseError
 */
export async function serveImage(chain: readonly ImageFile[], options: { writable: boolean }): Promise<ServedImage> {
  await using stack = new AsyncDisposableStack();
  const folder = await mkdtemp(join(tmpdir(), "tephra-nbd-"));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const socket = join(folder, "s");
  const shown = `qemu-nbd for ${chain[0]?.path}`;
  const args = [
    ...(options.writable ? ["--discard=unmap", "--detect-zeroes=unmap"] : ["--read-only"]),
    ...["--shared=16", `--socket=${socket}`, `--export-name=${exportName}`, `json:${JSON.stringify(nodeOf(chain, 0))}`],
  ];
  const child = spawn("qemu-nbd", args, {
    stdio: ["ignore", "ignore", "pipe", ...chain.map(({ file }) => file.fd)],
  });
  const words = listenTo(child, chain);
  const exited = once(child, "exit").catch((error: NodeJS.ErrnoException) => error);
  stack.defer(() => endOf(child, exited));
  const failed = (error: unknown): VolumeStorageError => {
    const missing = (error as NodeJS.ErrnoException | undefined)?.code === "ENOENT";
    const why = missing ? "qemu-nbd is not installed (package qemu-utils)" : words() || `${shown} does not start`;
    const message = `The image ${chain[0]?.path} cannot be opened: ${why}.`;
    return isLockFailure(why) ? new ImageInUseError(message) : new VolumeStorageError(message, { retryable: false });
  };
  const client = await connectTo(socket, shown, exited, failed);
  stack.use(client);
  // Nobody connects any more: a process that is killed leaves nothing behind.
  await rm(folder, { recursive: true, force: true });
  const owned = stack.move();
  return { client, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/**
 * The image as a node of QEMU's block layer, with everything of the chain that it builds on, for a child that has the chain's files as
 * descriptors.
 */
export function nodeOf(chain: readonly ImageFile[], at: number): object | null {
  const image = chain[at];
  if (image === undefined) return null;
  const file = { driver: "file", filename: `/proc/self/fd/${firstDescriptor + at}` };
  if (image.format !== "qcow2") return { driver: image.format, file };
  return { driver: "qcow2", file, backing: nodeOf(chain, at + 1) };
}

/** @returns what the child has written to stderr so far, in one line, with the names of files in place of descriptors */
function listenTo(child: Child, chain: readonly ImageFile[]): () => string {
  let said = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    said = (said + text).slice(-wordsMax);
  });
  const nameOf = (descriptor: string): string => chain[Number(descriptor) - firstDescriptor]?.path ?? descriptor;
  return () =>
    said
      .trim()
      .replaceAll(/[^\x20-\x7e\n]/g, "?")
      .split("\n")
      .map((line) => line.replace(/^qemu-nbd: (?:Failed to blk_new_open 'json:.*?': )?/, "").trim())
      .filter((line) => line !== "")
      .join("; ")
      .replaceAll(/\/proc\/self\/fd\/([0-9]+)/g, (_, descriptor: string) => nameOf(descriptor))
      .replace(/[.?]$/, "");
}

async function connectTo(
  socket: string,
  shown: string,
  exited: Promise<unknown>,
  failed: (error: unknown) => VolumeStorageError,
): Promise<NbdClient> {
  const ended = exited.then((error) => ({ error }));
  for (const until = performance.now() + startMs; performance.now() < until; ) {
    const client = await NbdClient.open({ path: socket }, exportName, shown).catch(() => null);
    if (client !== null) return client;
    const end = await Promise.race([ended, sleep(lookEveryMs)]);
    if (end !== undefined) throw failed(end.error);
  }
  throw failed(undefined);
}

/** Without `--persistent` it ends with its last connection. */
async function endOf(child: Child, exited: Promise<unknown>): Promise<void> {
  if (child.pid === undefined) return;
  await Promise.race([exited, sleep(endMs, undefined, { ref: false })]);
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGKILL");
  await exited;
}
