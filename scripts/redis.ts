import { randomBytes } from "node:crypto";
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { connect, type Socket } from "node:net";
import { delimiter, join } from "node:path";
import { connect as connectTls } from "node:tls";
import { keepToOwner } from "./owner-only.ts";
import { poll } from "./poll.ts";
import { commandLine, type Server } from "./postgres.ts";
import { unpackRedis } from "./redis-package.ts";
import { freePort, type Program, spawnProgram } from "./spawn-program.ts";

export interface RedisOptions {
  /** A folder for this server only: contains its append-only file. */
  dir: string;
  log: string;
  /** Default: a free one. */
  port?: number;
  /** Default: a new one. */
  password?: string;
  /** Additional lines for its configuration. */
  settings?: readonly string[];
  /** PEM files; with them it accepts TLS only. */
  tls?: { ca: string; cert: string; key: string };
  say?: (line: string) => void;
}

// More than the usual 16, so that many tests can share one server without sharing keys.
export const redisDatabases = 1000;

/**
 * Starts a private Redis on 127.0.0.1: this machine's `redis-server` or `valkey-server`, otherwise Debian's packages, unpacked beside the
 * data and not installed. A server left over from a killed run on the same folder is stopped first.
 *
 * @throws when Redis is unavailable (the message says what to run), or it does not respond
 */
export async function startRedis(options: RedisOptions): Promise<Server> {
  const say = options.say ?? (() => {});
  mkdirSync(options.dir, { recursive: true, mode: 0o700 });
  keepToOwner(options.dir);
  await stopLeftover(options.dir, say);
  const { command, env } = await redisProgram(say);
  const password = options.password ?? randomBytes(24).toString("hex");
  for (let attempt = 1; ; attempt += 1) {
    const port = options.port ?? (await freePort());
    const program = await spawnProgram({
      name: "redis",
      command,
      args: ["-"],
      env: { PATH: process.env["PATH"], ...env },
      cwd: options.dir,
      input: configuration(options, port, password), // On stdin: a command line would expose the password.
      log: options.log,
      orphanSignal: "TERM",
    });
    writeFileSync(join(options.dir, "redis.pid"), `${program.pid}`, { mode: 0o600 });
    const state = await untilAnswering(program, { port, password, ca: options.tls?.ca });
    if (state === "answering") {
      const secured = options.tls === undefined ? "" : `?ca=${encodeURIComponent(options.tls.ca)}`;
      const url = `${options.tls === undefined ? "redis" : "rediss"}://:${password}@127.0.0.1:${port}/0${secured}`;
      return { url, port, program, stop: async () => void (await program.stop()) };
    }
    const taken = program.tail().includes("Address already in use");
    if (!taken || options.port !== undefined || attempt === 5) {
      throw new Error(`Redis did not start; the end of ${options.log}:\n${program.tail()}`);
    }
  }
}

/** @throws when Redis is unavailable */
export async function redisProgram(say: (line: string) => void): Promise<{ command: string; env: NodeJS.ProcessEnv }> {
  return onPath("redis-server") ?? onPath("valkey-server") ?? (await unpackRedis(say));
}

function onPath(name: string): { command: string; env: Record<string, string> } | null {
  for (const folder of (process.env["PATH"] ?? "").split(delimiter)) {
    const command = join(folder, name);
    try {
      accessSync(command, constants.X_OK);
      return { command, env: {} };
    } catch {
      // Not in this folder.
    }
  }
  return null;
}

function configuration({ dir, tls, settings = [] }: RedisOptions, port: number, password: string): string {
  const listens = tls
    ? [
        "port 0",
        `tls-port ${port}`,
        `tls-ca-cert-file "${tls.ca}"`,
        `tls-cert-file "${tls.cert}"`,
        `tls-key-file "${tls.key}"`,
      ]
    : [`port ${port}`];
  return [
    "bind 127.0.0.1",
    ...listens,
    ...(tls ? ["tls-auth-clients no"] : []),
    `dir "${dir}"`,
    `requirepass ${password}`,
    `databases ${redisDatabases}`,
    "appendonly yes",
    "appendfsync everysec",
    "maxmemory-policy noeviction",
    'save ""',
    ...settings,
    "",
  ].join("\n");
}

/** While loading its append-only file, the server responds with an error; only PONG counts. */
async function untilAnswering(
  program: Program,
  { port, password, ca }: { port: number; password: string; ca: string | undefined },
): Promise<"answering" | "gone"> {
  return poll(
    async () => {
      if (!program.running()) return "gone";
      const answer = await ask({ port, ca }, `AUTH ${password}\r\nPING\r\nQUIT\r\n`);
      return answer.includes("+PONG") ? ("answering" as const) : undefined;
    },
    { what: "Redis answers", timeoutMs: 60_000 },
  );
}

function ask({ port, ca }: { port: number; ca: string | undefined }, text: string): Promise<string> {
  return new Promise((done, failed) => {
    let answer = "";
    const write = (): void => void socket.write(text);
    const place = { port, host: "127.0.0.1" };
    const socket: Socket =
      ca === undefined ? connect(place, write) : connectTls({ ...place, ca: readFileSync(ca) }, write);
    socket.setTimeout(2000, () => socket.destroy(new Error("no answer in 2 s")));
    socket.on("data", (chunk) => {
      answer += chunk.toString();
    });
    socket.on("end", () => socket.end());
    socket.on("close", () => done(answer));
    socket.on("error", failed);
  });
}

async function stopLeftover(dir: string, say: (line: string) => void): Promise<void> {
  const pidFile = join(dir, "redis.pid");
  if (!existsSync(pidFile)) return;
  const pid = Number(readFileSync(pidFile, "utf8"));
  const ours = (): boolean => /(redis|valkey)-server/.test(commandLine(pid)) && workingFolder(pid) === dir;
  if (ours()) {
    say("stopping the Redis of an earlier run");
    process.kill(pid, "SIGTERM");
    await poll(() => !ours(), { what: `the earlier Redis (process ${pid}) ends`, timeoutMs: 30_000 });
  }
  rmSync(pidFile, { force: true });
}

function workingFolder(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/cwd`);
  } catch {
    return "";
  }
}
