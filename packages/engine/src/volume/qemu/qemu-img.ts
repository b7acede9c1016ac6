import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { BackendUnavailableError, VolumeStorageError, VolumeStorageFullError } from "../../errors.ts";
import type { Extent } from "../../format/extents.ts";
import type { ImageFile } from "./image-chain.ts";
import { ImageInUseError, isLockFailure, memoryLimit, nodeOf, requireNoOther } from "./qemu-nbd.ts";

/** How long a command may take: each changes or reads metadata only. */
const commandMs = 120_000;
/** Of what it writes to stderr. */
const wordsMax = 4_096;
/** One line of a map, in characters. */
const lineMax = 4_096;

interface Command {
  /** Given as descriptors, from the third on; see nodeOf. */
  chain?: readonly ImageFile[];
  /** The image's name in messages. */
  shown: string;
  onLine?: (line: string) => void;
  /** Of its address space. */
  memoryBytesMax?: number;
  /** Statuses besides 0 with which it ends well. */
  endsWellWith?: readonly number[];
  /** What it is told on its standard input, once it has asked, and has opened no other file than those of the chain. */
  orders?: string;
}

/** @throws VolumeStorageError with its own words; ImageInUseError; VolumeStorageFullError */
export const runQemuImg = (args: readonly string[], command: Command): Promise<void> =>
  run({ program: "qemu-img", verb: args[0] ?? "", args }, command);

async function run(
  { program, verb, args }: { program: "qemu-img" | "qemu-io"; verb: string; args: readonly string[] },
  command: Command,
): Promise<void> {
  const { chain = [], shown, onLine, memoryBytesMax, endsWellWith = [], orders } = command;
  const [first = "", ...rest] = [...memoryLimit(memoryBytesMax), program, ...args];
  const child = spawn(first, rest, {
    stdio: [orders === undefined ? "ignore" : "pipe", "pipe", "pipe", ...chain.map(({ file }) => file.fd)],
    timeout: commandMs,
    killSignal: "SIGKILL",
  });
  let said = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    said = (said + text).slice(-wordsMax);
  });
  const exited = once(child, "close").catch((error: NodeJS.ErrnoException) => [error]);
  if (orders !== undefined) await order(child, exited, { chain, shown, orders });
  else if (child.stdout !== null) for await (const line of createInterface(child.stdout)) onLine?.(line);
  const [status] = (await exited) as [number | null | NodeJS.ErrnoException];
  if (typeof status === "number" && [0, ...endsWellWith].includes(status)) return;
  const missing = typeof status === "object" && status?.code === "ENOENT";
  const words = said
    .trim()
    .replaceAll(/[^\x20-\x7e\n]/g, "?")
    .replace(/^qemu-(?:img|io): (?:Could not open 'json:.*?': |can't open device json:.*?\}: )?/, "")
    .split("\n")[0];
  const why = missing ? `${program} is not installed (package qemu-utils)` : words || `${program} did not end well`;
  const message = `Cannot ${verb} ${shown}: ${why}.`;
  if (isLockFailure(said)) throw new ImageInUseError(message);
  if (/No space left|Disk quota/.test(said)) throw new VolumeStorageFullError(message);
  throw new VolumeStorageError(message, { retryable: false });
}

/** Waits until it asks for orders: then its files are open. */
async function order(
  child: ReturnType<typeof spawn>,
  exited: Promise<unknown>,
  { chain, shown, orders }: Required<Pick<Command, "chain" | "shown" | "orders">>,
): Promise<void> {
  const { stdin, stdout } = child;
  if (stdin === null || stdout === null) return;
  // It may end before it has read them all.
  stdin.on("error", () => {});
  const hasAsked = await Promise.race([once(stdout, "data").then(() => true), exited.then(() => false)]);
  if (!hasAsked) return;
  try {
    await requireNoOther(child, `The image ${shown}`, chain);
  } catch (error) {
    child.kill("SIGKILL");
    await exited;
    throw error;
  }
  stdout.resume();
  stdin.end(orders);
}

/** Status of `qemu-img check` where clusters are in use by nothing: they do no harm. */
const onlyLeaks = 3;

/**
 * Whether the tables of an image are as they must be: no cluster in use twice, none outside of the file.
 *
 * @throws VolumeStorageError
 */
export async function checkImage(image: ImageFile, limits: { memoryBytesMax: number }): Promise<void> {
  const named = `json:${JSON.stringify(nodeOf([image], 0))}`;
  const command = { chain: [image], shown: image.path, endsWellWith: [onlyLeaks], ...limits };
  await runQemuImg(["check", "-q", named], command);
}

const found = new Set<string>();

/** @throws BackendUnavailableError where a program that is needed is not installed */
export async function requireQemuUtils(): Promise<void> {
  for (const name of ["qemu-img", "qemu-nbd", "qemu-io"].filter((each) => !found.has(each))) {
    await promisify(execFile)(name, ["--version"], { timeout: commandMs }).catch((cause: unknown) => {
      throw new BackendUnavailableError(`${name} is not installed (package qemu-utils).`, { cause });
    });
    found.add(name);
  }
}

/** An image of its own, or with `backing` an overlay, which names it as it is written here, without opening it. */
export async function createQcow2(
  path: string,
  sizeBytes: number,
  backing: { name: string; format: "qcow2" | "raw" } | null,
  shown = path,
): Promise<void> {
  const on = backing === null ? [] : ["-u", "-b", backing.name, "-F", backing.format];
  // The child has another /proc/self.
  const reached = path.replace(/^\/proc\/self\//, `/proc/${process.pid}/`);
  await runQemuImg(["create", "-q", "-f", "qcow2", ...on, reached, String(sizeBytes)], { shown });
}

/**
 * Makes the first image of a chain longer. By qemu-io, which does nothing before it is told to: whoever owns an image may have named another
 * file in it since it was checked, and that would be made longer.
 *
 * @throws ImageInUseError, VolumeStorageError
 */
export async function resizeImage(chain: readonly ImageFile[], sizeBytes: number): Promise<void> {
  const [image] = chain;
  if (image === undefined) return;
  const named = `json:${JSON.stringify(nodeOf(chain, 0))}`;
  const orders = `truncate ${sizeBytes}\nflush\nquit\n`;
  await run({ program: "qemu-io", verb: "resize", args: [named] }, { chain, shown: image.path, orders });
}

/** The parts of a range that an image itself holds, whatever it builds on, ascending. */
export async function allocatedExtents(image: ImageFile, range: Extent): Promise<Extent[]> {
  const extents: Extent[] = [];
  if (range.length === 0) return extents;
  const onLine = (line: string): void => {
    const text = line.replace(/^\[/, "").replace(/[,\]]+$/, "");
    if (text.trim() === "" || text.length > lineMax) return;
    const { start, length, present } = JSON.parse(text) as { start: number; length: number; present: boolean };
    if (!present) return;
    const last = extents.at(-1);
    if (last && last.offset + last.length === start) last.length += length;
    else extents.push({ offset: start, length });
  };
  const part = [`--start-offset=${range.offset}`, `--max-length=${range.length}`];
  const named = `json:${JSON.stringify(nodeOf([image], 0))}`;
  await runQemuImg(["map", "--output=json", ...part, named], { chain: [image], shown: image.path, onLine });
  return extents;
}
