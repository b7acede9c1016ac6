import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, readlink, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { BackendUnavailableError, HypervisorUnavailableError } from "../../errors.ts";
import type { Daemon } from "../machine-disks.ts";
import { QmpClient } from "./qmp-client.ts";

const program = "qemu-storage-daemon";
const startMs = 30_000;
/** How long it may take to write what it has recorded, and to end. */
const endMs = 30_000;
const lookEveryMs = 20;
/** Of what it writes to stderr. */
const wordsMax = 4_096;

/** A qemu-storage-daemon of this process, with nothing open yet. */
export interface Pool extends AsyncDisposable {
  readonly daemon: Daemon;
  readonly monitorPath: string;
}

/**
 * Starts one. It is asked to end when this process ends, however that happens, and then still writes its bitmaps.
 *
 * @throws BackendUnavailableError when it is not installed; HypervisorUnavailableError when it does not start
 */
export async function startPool(runFolder: string): Promise<Pool> {
  await using stack = new AsyncDisposableStack();
  const folder = await mkdtemp(join(runFolder, "tephra-pool-"));
  stack.defer(() => rm(folder, { recursive: true, force: true }));
  const monitorPath = join(folder, "monitor");
  const monitor = [
    "--chardev",
    `socket,path=${monitorPath},server=on,wait=off,id=monitor`,
    "--monitor",
    "chardev=monitor",
  ];
  const child = spawn("setpriv", ["--pdeathsig", "TERM", program, ...monitor], { stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    said = (said + text).slice(-wordsMax);
  });
  const exited = once(child, "exit").catch((error: NodeJS.ErrnoException) => error);
  const hasEnded = (): boolean => child.exitCode !== null || child.signalCode !== null || child.pid === undefined;
  stack.defer(async () => {
    if (hasEnded()) return;
    child.kill("SIGTERM");
    await Promise.race([exited, sleep(endMs, undefined, { ref: false })]);
    if (!hasEnded()) child.kill("SIGKILL");
    await exited;
  });
  for (const until = performance.now() + startMs; ; ) {
    using qmp = await QmpClient.connect(monitorPath, [folder]);
    if (qmp !== null) break;
    if (hasEnded()) throw startFailure(said);
    if (performance.now() > until) throw new HypervisorUnavailableError(`${program} does not start: ${said.trim()}`);
    await sleep(lookEveryMs);
  }
  const { pid } = child as { pid: number };
  const startTicks = await startTicksOf(pid);
  if (startTicks === null) throw startFailure(said);
  const owned = stack.move();
  return { daemon: { pid, startTicks, folder }, monitorPath, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

function startFailure(said: string): Error {
  if (!/failed to execute|No such file/.test(said) && said !== "") {
    return new HypervisorUnavailableError(`${program} has ended: ${said.trim()}`);
  }
  return new BackendUnavailableError(`${program} is not installed (package qemu-system-common).`);
}

/**
 * Ends a process that another one of this service has left behind, and removes its folder. Anything else that has its pid by now is left
 * alone.
 */
export async function endDaemon({ pid, startTicks, folder }: Daemon): Promise<void> {
  const isIt = async (): Promise<boolean> =>
    (await startTicksOf(pid)) === startTicks &&
    basename(await readlink(`/proc/${pid}/exe`).catch(() => "")) === program;
  for (const [signal, ms] of [
    ["SIGTERM", endMs],
    ["SIGKILL", endMs],
  ] as const) {
    if (!(await isIt())) break;
    process.kill(pid, signal);
    for (const until = performance.now() + ms; performance.now() < until && (await isIt()); ) await sleep(lookEveryMs);
  }
  if (basename(folder).startsWith("tephra-pool-")) await rm(folder, { recursive: true, force: true });
}

/** Null when there is no such process. Field 22 of proc(5); the second, in brackets, may hold anything. */
async function startTicksOf(pid: number): Promise<number | null> {
  const text = await readFile(`/proc/${pid}/stat`, "latin1").catch(() => null);
  if (text === null) return null;
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return fields[0] === "Z" ? null : Number(fields[19]);
}
