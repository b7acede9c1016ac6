import { spawn } from "node:child_process";
import { once } from "node:events";
import { constants } from "node:fs";
import { type FileHandle, mkdtemp, open, readdir, rm, stat, unlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { VolumeStorageError } from "../../errors.ts";
import { identityOf } from "../../folder.ts";
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
/**
 * qemu-nbd takes a new buffer for every request. By default the C library gives each of them back to the kernel, which fills the next with
 * zeros page by page: most of the processor time of a server that only reads. So it keeps them, for at most 16 requests of each connection.
 */
const keepBuffers = ["MALLOC_MMAP_THRESHOLD_=268435456", "MALLOC_TRIM_THRESHOLD_=268435456"];

/** One connection of NbdClient, and those of threads. */
const connectionsMax = 64;
/** open(2) on Linux: a descriptor that only names what is there, here a socket, also when it has lost its name. */
const O_PATH = 0o10000000;

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
export interface ServedNode extends AsyncDisposable {
  readonly client: NbdClient;
}

/** What qemu-nbd is to serve. */
export interface NodeToServe {
  /** What it is called in messages, as the subject of a sentence. */
  shown: string;
  /** A node of QEMU's block layer: what `-blockdev` takes, without names. It may refer to `files` by descriptorPath. */
  node: object;
  /** Given to the child as open descriptors. */
  files?: readonly { readonly path: string; readonly file: FileHandle }[];
  /** A secret that the node refers to as `secretId`. It is never in an argument, nor in a file that has a name. */
  secret?: { text: string; format: "raw" | "base64" };
  /** Whether what qemu-nbd says when it cannot open the node may pass by itself. Otherwise it may not. */
  mayPass?: (words: string) => boolean;
}

export interface ServeOptions {
  writable: boolean;
  /** Of its address space. */
  memoryBytesMax?: number;
}

/** What precedes a command whose address space is limited. */
export const memoryLimit = (bytes: number | undefined): string[] =>
  bytes === undefined ? [] : ["prlimit", `--as=${bytes}`];

export const secretId = "secret";

/** The first descriptor that a child gets beyond its three streams. */
const firstDescriptor = 3;

/** By which a child opens the file at `index` of those that it is given. */
const descriptorPath = (index: number): string => `/proc/self/fd/${firstDescriptor + index}`;

/**
 * Serves an image read-only, or with `writable` its first file. The image and all it builds on are given as descriptors: QEMU follows no name
 * that is written in an image, detects no format, and refuses an image that another program has open for writing.
 *
 * @throws VolumeStorageError when qemu-nbd is not installed or cannot open the image, with its own words; ImageInUseError
 */
export function serveImage(chain: readonly ImageFile[], options: ServeOptions): Promise<ServedNode> {
  return serveNode({ shown: `The image ${chain[0]?.path}`, node: nodeOf(chain, 0) ?? {}, files: chain }, options);
}

/**
 * Serves what QEMU can open.
 *
 * @throws VolumeStorageError when qemu-nbd is not installed or cannot open it, with its own words; ImageInUseError
 */
export async function serveNode(what: NodeToServe, options: ServeOptions): Promise<ServedNode> {
  await using stack = new AsyncDisposableStack();
  const folder = await mkdtemp(join(tmpdir(), "tephra-nbd-"));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const files = [...(what.files ?? [])];
  const socket = join(folder, "s");
  const args = [
    ...(options.writable ? ["--discard=unmap", "--detect-zeroes=unmap"] : ["--read-only"]),
    ...[`--shared=${connectionsMax}`, `--socket=${socket}`, `--export-name=${exportName}`],
  ];
  if (what.secret !== undefined) {
    args.push(`--object=secret,id=${secretId},format=${what.secret.format},file=${descriptorPath(files.length)}`);
    const file = stack.adopt(await namelessFile(folder, what.secret.text), (handle) => handle.close());
    files.push({ path: "a secret", file });
  }
  // Killed with this process even before it is connected to: until then, nothing else would end it.
  const command = [
    "--pdeathsig",
    "KILL",
    ...memoryLimit(options.memoryBytesMax),
    "env",
    ...keepBuffers,
    "qemu-nbd",
    ...args,
    `json:${JSON.stringify(what.node)}`,
  ];
  const child = spawn("setpriv", command, {
    stdio: ["ignore", "ignore", "pipe", ...files.map(({ file }) => file.fd)],
  });
  const words = listenTo(child, files);
  const exited = once(child, "exit").catch((error: NodeJS.ErrnoException) => error);
  stack.defer(() => endOf(child, exited));
  const failed = (error: unknown): VolumeStorageError => startFailure(what, words(), error);
  const { client, held } = await connectTo(socket, `qemu-nbd for ${nameOf(what)}`, exited, failed);
  stack.defer(() => held.close());
  stack.use(client);
  if (what.files !== undefined) await requireNoOther(child, what.shown, files);
  // Nobody else connects, and threads do by `held`: a process that is killed leaves nothing behind.
  await rm(folder, { recursive: true, force: true });
  const owned = stack.move();
  return { client, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** For so long QEMU may have files open that no image names, as its C library does when a thread begins. */
const passingMs = 2_000;

/**
 * Whoever owns an image may have written another header into it since it was checked: then QEMU has opened what that names, and keeps it.
 *
 * @throws VolumeStorageError
 */
export async function requireNoOther(
  { pid }: Child,
  shown: string,
  files: readonly { file: FileHandle }[],
): Promise<void> {
  const given = await Promise.all(files.map(async ({ file }) => identityOf(await file.stat({ bigint: true }))));
  const hasOther = async (): Promise<boolean> => {
    for (const descriptor of await readdir(`/proc/${pid}/fd`)) {
      const status = await stat(`/proc/${pid}/fd/${descriptor}`, { bigint: true }).catch(() => undefined);
      const isImage = status?.isFile() || status?.isBlockDevice();
      if (status !== undefined && isImage && !given.includes(identityOf(status))) return true;
    }
    return false;
  };
  for (const until = performance.now() + passingMs; await hasOther(); await sleep(lookEveryMs)) {
    if (performance.now() < until) continue;
    throw new VolumeStorageError(`${shown} cannot be opened: another file is named in it by now.`, {
      retryable: false,
    });
  }
}

const nameOf = ({ shown, files }: NodeToServe): string => files?.[0]?.path ?? shown;

/** `error`: undefined when it neither listened in time nor ended. */
function startFailure(what: NodeToServe, words: string, error: unknown): VolumeStorageError {
  const missing = (error as NodeJS.ErrnoException | undefined)?.code === "ENOENT";
  const why = missing
    ? "setpriv is not installed (package util-linux)"
    : /^env: .*qemu-nbd.*: No such file/.test(words)
      ? "qemu-nbd is not installed (package qemu-utils)"
      : words || (error === undefined ? `nothing happened for ${startMs / 1000} s` : "qemu-nbd ended without a word");
  const message = `${what.shown} cannot be opened: ${why}.`;
  if (isLockFailure(why)) return new ImageInUseError(message);
  return new VolumeStorageError(message, { retryable: error === undefined || what.mayPass?.(words) === true });
}

/** A file of these contents that no path leads to, readable by this user alone. */
async function namelessFile(folder: string, contents: string): Promise<FileHandle> {
  const path = join(folder, "f");
  const file = await open(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
  try {
    await unlink(path);
    await file.write(contents);
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}

/**
 * The image as a node of QEMU's block layer, with everything of the chain that it builds on, for a child that has the chain's files as
 * descriptors.
 */
export function nodeOf(chain: readonly ImageFile[], at: number): object | null {
  const image = chain[at];
  if (image === undefined) return null;
  const file = { driver: "file", filename: descriptorPath(at) };
  if (image.format === "raw") return { driver: "raw", file };
  // Null, too, must be said: QEMU looks for the name of a parent where nobody else would.
  return { driver: image.format, file, backing: image.format === "qcow2" ? nodeOf(chain, at + 1) : null };
}

/** @returns what the child has written to stderr so far, in one line, with the names of files in place of descriptors */
function listenTo(child: Child, files: readonly { path: string }[]): () => string {
  let said = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    said = (said + text).slice(-wordsMax);
  });
  const pathOf = (descriptor: string): string => files[Number(descriptor) - firstDescriptor]?.path ?? descriptor;
  return () =>
    said
      .trim()
      .replaceAll(/[^\x20-\x7e\n]/g, "?")
      .split("\n")
      .map((line) => line.replace(/^qemu-nbd: (?:Failed to blk_new_open 'json:.*?': )?/, "").trim())
      .filter((line) => line !== "")
      .join("; ")
      .replaceAll(/\/proc\/self\/fd\/([0-9]+)/g, (_, descriptor: string) => pathOf(descriptor))
      .replace(/[.?]$/, "");
}

/** @returns also the socket's own descriptor, by which others connect as long as it is open */
async function connectTo(
  socket: string,
  shown: string,
  exited: Promise<unknown>,
  failed: (error: unknown) => VolumeStorageError,
): Promise<{ client: NbdClient; held: FileHandle }> {
  await using stack = new AsyncDisposableStack();
  let held: FileHandle | null = null;
  const ended = exited.then((error) => ({ error }));
  for (const until = performance.now() + startMs; performance.now() < until; ) {
    held ??= await holdSocket(socket, stack);
    const client = held === null ? null : await tryToOpen(held, shown);
    if (held !== null && client !== null) {
      stack.move();
      return { client, held };
    }
    const end = await Promise.race([ended, sleep(lookEveryMs)]);
    if (end !== undefined) throw failed(end.error);
  }
  throw failed(undefined);
}

/** Null where there is none yet. It is closed with the stack. */
async function holdSocket(path: string, stack: AsyncDisposableStack): Promise<FileHandle | null> {
  const file = await open(path, O_PATH | constants.O_NOFOLLOW).catch(() => null);
  return file === null ? null : stack.adopt(file, (handle) => handle.close());
}

const tryToOpen = ({ fd }: FileHandle, shown: string): Promise<NbdClient | null> =>
  NbdClient.open({ path: `/proc/self/fd/${fd}` }, exportName, shown).catch(() => null);

/** Without `--persistent` it ends with its last connection. */
async function endOf(child: Child, exited: Promise<unknown>): Promise<void> {
  if (child.pid === undefined) return;
  await Promise.race([exited, sleep(endMs, undefined, { ref: false })]);
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill("SIGKILL");
  await exited;
}
