import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { z } from "zod";
import { SourceMissingError, VolumeStorageError, VolumeStorageFullError } from "../../errors.ts";

/** Where a cluster's images are, and as whom. Null: Ceph's own default, and the pool's unnamed namespace. */
export interface RbdAccess {
  readonly pool: string;
  readonly namespace: string | null;
  readonly conf: string | null;
  readonly user: string | null;
  readonly keyring: string | null;
}

/** What is being done, for messages: `shown` cannot be `doing`. */
export interface RbdTask {
  shown: string;
  doing: string;
  signal?: AbortSignal;
}

/** A command of Ceph's has failed with this errno, which is also its exit code. */
export class RbdError extends VolumeStorageError {
  readonly errno: number;
  constructor(message: string, options: { cause?: unknown; retryable: boolean; errno: number }) {
    super(message, options);
    this.errno = options.errno;
  }
}

export const rbdErrno = { missing: 2, exists: 17, busy: 16, invalid: 22, notEmpty: 39 } as const;

/** Whether a command has failed since its image or snapshot is not there. */
export const saysMissing = (error: unknown): boolean =>
  error instanceof SourceMissingError || (error instanceof RbdError && error.errno === rbdErrno.missing);

/** Whether a command has failed with this errno. */
export const saysErrno = (error: unknown, errno: keyof typeof rbdErrno): boolean =>
  error instanceof RbdError && error.errno === rbdErrno[errno];

/** A client waits for ever for a cluster that does not answer. */
const askMs = 30_000;
/** Without a sign of life, of a change. Those that take long print how far they are. */
const changeMs = 600_000;
const answerBytesMax = 64 * 1024 * 1024;
const wordsMax = 500;
/** Of an answer that is not understood. */
const quotedMax = 200;
const unprintable = /[^\x20-\x7e]/g;
/** Of what a command writes to stderr; its last words say what went wrong. */
const saidMax = 64 * 1024;
const fullErrnos: readonly number[] = [28, 122];
/** EBUSY, ESHUTDOWN, ETIMEDOUT, ECONNREFUSED, EHOSTUNREACH. */
const passing: readonly number[] = [16, 108, 110, 111, 113];

/**
 * Asks `rbd` of the package ceph-common. `args`: with the image as `--image=NAME`.
 *
 * @returns what it prints as JSON; null when that is nothing
 * @throws SourceMissingError when there is no such image or pool; VolumeStorageError
 */
export async function runRbd(args: readonly string[], access: RbdAccess, shown: string): Promise<unknown> {
  const all = [...args, "--format=json", ...placeOf(access)];
  const text = await printed("rbd", all, { shown, doing: "opened", silenceMs: askMs });
  // An empty list of notes is printed as nothing.
  return text.trim() === "" ? null : parsed(text, "rbd", shown);
}

/** Has `rbd` change something. @returns what it prints @throws as runRbd; RbdError */
export function changeRbd(args: readonly string[], access: RbdAccess, task: RbdTask): Promise<string> {
  return printed("rbd", [...args, ...placeOf(access)], { ...task, silenceMs: changeMs });
}

/** Has `rados` change an object of the pool. @throws VolumeStorageError */
export async function changeObject(args: readonly string[], access: RbdAccess, task: RbdTask): Promise<void> {
  await printed("rados", [...args, ...placeOf(access)], { ...task, silenceMs: changeMs });
}

/** Asks `ceph`, as JSON. @throws VolumeStorageError */
export async function askCeph(args: readonly string[], access: RbdAccess, task: RbdTask): Promise<unknown> {
  const text = await printed("ceph", [...args, "--format=json", ...identityOf(access)], { ...task, silenceMs: askMs });
  return parsed(text, "ceph", task.shown);
}

/** How long a client stays shut out, in seconds: longer than anything that it has sent can take. */
const shutOutSeconds = 86_400;

/** Has a cluster refuse whatever a client sends from now on, also what is on its way. `address`: as watchers have it. @throws VolumeStorageError */
export async function shutOut(address: string, access: RbdAccess, task: RbdTask): Promise<void> {
  const args = ["osd", "blocklist", "add", address, String(shutOutSeconds), ...identityOf(access)];
  await printed("ceph", args, { ...task, silenceMs: askMs });
}

const Monitors = z.object({
  mons: z.array(
    z.object({
      addr: z.string(),
      public_addrs: z.object({ addrvec: z.array(z.object({ addr: z.string() })) }).optional(),
    }),
  ),
});

/** The addresses of a cluster's monitors, each `HOST:PORT`, without the brackets of IPv6. @throws VolumeStorageError */
export async function monitorsOf(access: RbdAccess): Promise<ReadonlySet<string>> {
  const shown = `The cluster of the pool ${access.pool}`;
  const answer = Monitors.safeParse(await askCeph(["mon", "dump"], access, { shown, doing: "asked" }));
  if (!answer.success) {
    throw new VolumeStorageError(`ceph says of its monitors what is not understood.`, { retryable: false });
  }
  const all = answer.data.mons.flatMap(({ addr, public_addrs: more }) => [
    addr,
    ...(more?.addrvec ?? []).map((each) => each.addr),
  ]);
  return new Set(all.map((address) => address.replace(/\/[0-9]+$/, "").replace(/^\[(.*)\]/, "$1")));
}

function parsed(text: string, program: string, shown: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const start = text.trim().slice(0, quotedMax).replaceAll(unprintable, "?");
    throw new VolumeStorageError(`${program} says of ${shown} what is not understood: ${JSON.stringify(start)}.`, {
      retryable: false,
      cause: error,
    });
  }
}

/** Diffs of older clients have had wrong offsets. https://tracker.ceph.com/issues/54440 */
const exactDiffs = [16, 2, 8];

/** Whether the client that is installed tells changes rightly. @throws VolumeStorageError when none is */
export async function hasExactDiffs(): Promise<boolean> {
  const text = await printed("rbd", ["--version"], { shown: "rbd", doing: "started", silenceMs: askMs });
  const release = (/ceph version ([0-9.]+)/.exec(text)?.[1] ?? "0").split(".").map(Number);
  for (const [at, part] of exactDiffs.entries()) {
    const found = release[at] ?? 0;
    if (found !== part) return found > part;
  }
  return true;
}

/**
 * Each line that `rbd` prints, as it comes. `silenceMs`: how long to wait for the next; the time that the reader takes does not count.
 *
 * @throws as runRbd, after the last line
 */
export async function* linesOfRbd(
  args: readonly string[],
  access: RbdAccess,
  task: RbdTask,
  { silenceMs = changeMs } = {},
): AsyncGenerator<string, void> {
  const { child, ended, patience } = start("rbd", [...args, ...placeOf(access)], { ...task, silenceMs });
  try {
    for await (const line of child.stdout ? createInterface({ input: child.stdout }) : []) {
      patience.hold();
      yield line;
      patience.goOn();
    }
    await ended;
  } finally {
    child.kill("SIGKILL");
  }
}

const placeOf = (access: RbdAccess): string[] => [
  `--pool=${access.pool}`,
  ...(access.namespace === null ? [] : [`--namespace=${access.namespace}`]),
  ...identityOf(access),
];

const identityOf = ({ conf, user, keyring }: RbdAccess): string[] => [
  ...(conf === null ? [] : [`--conf=${conf}`]),
  ...(user === null ? [] : [`--id=${user}`]),
  ...(keyring === null ? [] : [`--keyring=${keyring}`]),
];

interface Limits extends RbdTask {
  silenceMs: number;
}

async function printed(program: string, args: readonly string[], task: Limits): Promise<string> {
  const { child, ended } = start(program, args, task);
  const pieces: Buffer[] = [];
  let bytes = 0;
  child.stdout?.on("data", (piece: Buffer) => {
    bytes += piece.length;
    if (bytes > answerBytesMax) child.kill("SIGKILL");
    else pieces.push(piece);
  });
  await ended;
  return Buffer.concat(pieces).toString();
}

interface Started {
  child: ReturnType<typeof spawn>;
  /** When it has ended with success, and closed its outputs. */
  ended: Promise<void>;
  /** While its output is not read, it cannot give a sign of life. */
  patience: { hold(): void; goOn(): void };
}

function start(program: string, args: readonly string[], task: Limits): Started {
  task.signal?.throwIfAborted();
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
  let isSilent = false;
  let isHeld = false;
  const timer = setTimeout(() => {
    if (isHeld) return void timer.refresh();
    isSilent = true;
    child.kill("SIGKILL");
  }, task.silenceMs);
  const patience: Started["patience"] = {
    hold: () => {
      isHeld = true;
    },
    goOn: () => {
      isHeld = false;
      timer.refresh();
    },
  };
  let said = "";
  child.stdout?.on("data", () => timer.refresh());
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    timer.refresh();
    said = (said + text).slice(-saidMax);
  });
  const abort = (): unknown => child.kill("SIGKILL");
  task.signal?.addEventListener("abort", abort);
  const { promise: ended, resolve, reject } = Promise.withResolvers<void>();
  const settle = (): void => {
    clearTimeout(timer);
    task.signal?.removeEventListener("abort", abort);
  };
  child.once("error", (error) => {
    settle();
    reject(failureOf(program, task, { error, code: null, said: "" }));
  });
  child.once("close", (code) => {
    settle();
    if (code === 0) resolve();
    else if (task.signal?.aborted) reject(task.signal.reason);
    else reject(failureOf(program, task, { code, said, isSilent }));
  });
  // Who reads its output line by line asks only afterwards how it has ended.
  ended.catch(() => {});
  return { child, ended, patience };
}

interface Ending {
  code: number | null;
  said: string;
  error?: NodeJS.ErrnoException;
  isSilent?: boolean;
}

function failureOf(program: string, task: Limits, { code, said, error, isSilent = false }: Ending): Error {
  const { shown, doing, silenceMs } = task;
  const message = (why: string): string => `${shown} cannot be ${doing}: ${why}.`;
  const refuse = (why: string, retryable: boolean): VolumeStorageError =>
    new VolumeStorageError(message(why), { cause: error, retryable });
  if (error?.code === "ENOENT") return refuse(`${program} is not installed (package ceph-common)`, false);
  if (error !== undefined) return refuse(`${program} does not start (${error.code})`, true);
  if (isSilent) return refuse(`Ceph did not answer for ${silenceMs / 1000} s`, true);
  if (code === null) return refuse(`${program} was stopped`, true);
  const words = wordsOf(said) || `${program} ended with ${code}`;
  if (/\(2\) No such file or directory$/.test(words) && /^error opening (image|pool)/.test(words))
    return new SourceMissingError(`${shown} is not there: ${words}.`);
  // Without a keyring this ends as a missing image does.
  if (isUnreached(words)) return refuse(words, passing.includes(errnoIn(words) ?? code));
  const errno = errnoIn(words) ?? code;
  if (fullErrnos.includes(errno)) return new VolumeStorageFullError(message(words));
  return new RbdError(message(words), { retryable: passing.includes(errno), errno });
}

const isUnreached = (words: string): boolean => /couldn't connect to the cluster|config file/.test(words);

const errnoIn = (words: string): number | null => {
  const [, errno] = /\(([0-9]+)\)/.exec(words) ?? [];
  return errno === undefined ? null : Number(errno);
};

/** What the program itself says, without the log lines of its libraries unless there is nothing else. */
function wordsOf(stderr: string): string {
  const lines = stderr
    .split(/[\r\n]/)
    .map((line) => line.replaceAll(unprintable, "?").trim())
    .filter((line) => line !== "");
  const own = lines.filter((line) => line.startsWith("rbd: "));
  const why = lines.filter((line) => /keyring|handle_auth/.test(line)).map((line) => line.replace(/^\S+ \S+ +-1 /, ""));
  const said = own.length === 0 ? lines : own;
  const isVague = said.some((line) => line.includes("couldn't connect to the cluster"));
  return [...said.map((line) => line.replace(/^rbd: /, "")), ...(isVague ? why.slice(0, 1) : [])]
    .join("; ")
    .slice(0, wordsMax)
    .replace(/[.!]$/, "");
}
