import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, existsSync, mkdirSync } from "node:fs";
import { createServer } from "node:net";
import { dirname } from "node:path";
import { createInterface } from "node:readline";
import { keepToOwner } from "./owner-only.ts";

export interface Exit {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** A running child process. It is in its own session: Ctrl-C at the terminal reaches only its parent. */
export interface Program {
  readonly name: string;
  readonly pid: number;
  /** Settles when the process has exited and its output has been read completely; never rejects. */
  readonly exited: Promise<Exit>;
  running(): boolean;
  /** The last lines of its output, from both streams. */
  tail(): string;
  /** Does nothing when the process has already exited. */
  kill(signal: NodeJS.Signals): void;
  /** Sends `signal` (SIGTERM), and SIGKILL if it has not exited within `timeoutMs` (15 s). Idempotent. */
  stop(options?: { signal?: NodeJS.Signals; timeoutMs?: number }): Promise<Exit>;
}

export interface ProgramOptions {
  name: string;
  command: string;
  args: readonly string[];
  /** The complete environment of the program. */
  env: NodeJS.ProcessEnv;
  cwd?: string;
  uid?: number;
  gid?: number;
  /** File to which both streams are appended, readable by its owner only; its folder is created. */
  log?: string;
  /** Written to stdin, which is then closed. Without it stdin is empty. */
  input?: string;
  onLine?: (line: string) => void;
  /** The signal that the program receives when this process dies without having stopped it. */
  orphanSignal?: "INT" | "TERM" | "KILL";
}

const tailLinesMax = 60;

/**
 * Starts a program that does not outlive this process: a shell beside it waits on a pipe from this process and ends the program when the
 * pipe closes, which happens however this process dies.
 *
 * @throws when the command cannot be started
 */
export async function spawnProgram(options: ProgramOptions): Promise<Program> {
  const child = spawn(options.command, options.args, {
    env: options.env,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.uid === undefined ? {} : { uid: options.uid }),
    ...(options.gid === undefined ? {} : { gid: options.gid }),
    stdio: ["pipe", "pipe", "pipe"],
    detached: true,
  });
  await once(child, "spawn");
  const pid = child.pid;
  if (pid === undefined) throw new Error(`${options.name} has no process id`);
  child.stdin.on("error", () => {}); // It may close its input without reading it; its exit status tells why.
  child.stdin.end(options.input ?? "");
  const tail = collectOutput(child, options);
  const release = watchFor(pid, options.orphanSignal ?? "KILL");
  let gone = false;
  const exited = once(child, "close").then(([code, signal]): Exit => {
    gone = true;
    release();
    return { code, signal };
  });
  const kill = (signal: NodeJS.Signals): void => {
    if (!gone) child.kill(signal);
  };
  return {
    name: options.name,
    pid,
    exited,
    running: () => !gone,
    tail: () => tail.join("\n"),
    kill,
    stop: async ({ signal = "SIGTERM", timeoutMs = 15_000 } = {}) => {
      kill(signal);
      const timer = setTimeout(() => kill("SIGKILL"), timeoutMs);
      const exit = await exited;
      clearTimeout(timer);
      return exit;
    },
  };
}

/** A TCP port on 127.0.0.1 that was free a moment ago; another process may take it before it is bound. */
export async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port was given");
  server.close();
  await once(server, "close");
  return address.port;
}

function collectOutput(child: ChildProcess, { log, onLine }: ProgramOptions): string[] {
  const tail: string[] = [];
  if (log !== undefined) mkdirSync(dirname(log), { recursive: true, mode: 0o700 });
  if (log !== undefined && existsSync(log)) keepToOwner(log);
  const file = log === undefined ? null : createWriteStream(log, { flags: "a", mode: 0o600 });
  file?.on("error", () => {}); // A full disk must not crash the program's supervisor.
  child.once("close", () => file?.end());
  for (const stream of [child.stdout, child.stderr]) {
    if (stream === null) continue;
    createInterface({ input: stream }).on("line", (line) => {
      file?.write(`${line}\n`);
      tail.push(line);
      if (tail.length > tailLinesMax) tail.shift();
      onLine?.(line);
    });
  }
  return tail;
}

/** @returns a function that ends the watch without a signal, to be called when the watched process has exited */
function watchFor(pid: number, signal: "INT" | "TERM" | "KILL"): () => void {
  const script = `read -r _; kill -s ${signal} ${pid} 2>/dev/null`;
  const watch = spawn("/bin/sh", ["-c", script], { stdio: ["pipe", "ignore", "ignore"], detached: true });
  watch.on("error", () => {}); // Without a shell this safeguard is missing; everything else works.
  watch.stdin.on("error", () => {});
  watch.unref();
  if ("unref" in watch.stdin && typeof watch.stdin.unref === "function") watch.stdin.unref();
  return () => watch.kill("SIGKILL");
}
