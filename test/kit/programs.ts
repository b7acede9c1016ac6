import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { nodeFlags, projectNode, root } from "../../scripts/bootstrap.mjs";
import { initialiseRepository } from "../../scripts/repository.ts";
import { type Program, spawnProgram } from "../../scripts/spawn-program.ts";
import { waitFor } from "./wait-for.ts";

/** A process starts in a second; on a machine that does much else it may take long. */
const startMaxMs = 60_000;

/** Creates folders, an initialised repository and the configuration file (JSON, which is also YAML). `repository`: more of its settings. */
export async function layOut(dir: string, config: Record<string, unknown>, repository: object = {}): Promise<void> {
  mkdirSync(join(dir, "volumes"));
  const url = `posix:${join(dir, "repository")}`;
  const file = {
    repositories: [{ name: "main", url, default: true, ...repository }],
    volume_backends: [{ name: "files", driver: "file", path: join(dir, "volumes") }],
    import_roots: [dir],
    ...config,
  };
  writeFileSync(join(dir, "tephra.yml"), JSON.stringify(file, null, 2));
  await initialiseRepository(url);
}

export interface ServiceSettings {
  /** Laid out by `layOut`; also the programs' home and working folder. */
  dir: string;
  databaseUrl: string;
  redisUrl: string;
  /** Of the API. */
  port: number;
  /** Over the environment of every program. */
  env?: Readonly<Record<string, string>>;
  /** A folder that keeps the output of all programs, one file each. */
  logs?: string | undefined;
  /** Whether the service knows a worker with this process id. */
  isKnown: (pid: number) => Promise<boolean>;
  /** As `isKnown`, of a server of images. */
  servesImages?: (pid: number) => Promise<boolean>;
}

export interface StartOptions {
  /** Added to the environment. */
  env?: Readonly<Record<string, string>> | undefined;
  /** Put before the command line: a program that runs this one in a special environment. */
  prefix?: readonly string[] | undefined;
  /** Another checkout, whose compiled programs are run. */
  checkout?: string | undefined;
}

/** A host other than this machine: the command line that runs a program there, and the address at which its users reach it. */
export interface Place {
  prefix: readonly string[];
  address: string;
  /** From now on, a connection to this port of its address arrives at the same port of its loopback interface. */
  publish(port: number): Promise<void>;
}

/** The processes of one service. Each start settles when the program is at work, or has ended: its `running()` tells. */
export interface Programs {
  /** In start order; includes those that have ended. */
  readonly all: readonly Program[];
  readonly workers: readonly Program[];
  startWorker(options?: StartOptions): Promise<Program>;
  startApi(options?: StartOptions & { name?: string; port?: number; address?: string | undefined }): Promise<Program>;
  /** A server of images, where `image_transfers` is configured. */
  startTransfer(options?: StartOptions): Promise<Program>;
  /** The ends of all outputs. */
  tails(): string;
  stop(options: { signal?: NodeJS.Signals; timeoutMs?: number }): Promise<void>;
}

export function programsOf(settings: ServiceSettings): Programs {
  const { dir, databaseUrl, redisUrl, port, logs } = settings;
  const environment = {
    PATH: process.env["PATH"] ?? "",
    HOME: dir,
    DATABASE_URL: databaseUrl,
    REDIS_URL: redisUrl,
    TEPHRA_HOST: "127.0.0.1",
    TEPHRA_PORT: String(port),
    TEPHRA_DATA_DIR: dir,
    TEPHRA_CONFIG: join(dir, "tephra.yml"),
    TEPHRA_WORKING_DIR: dir,
    ...settings.env,
  };
  const all: Program[] = [];
  const workers: Program[] = [];
  let workersBegun = 0;
  const tails = (): string => all.map(({ name, pid, tail }) => `--- ${name} (${pid})\n${tail()}`).join("\n");
  const start = async (name: string, entry: string, { env, prefix = [], checkout = root }: StartOptions) => {
    const [command = projectNode(), ...args] = [...prefix, projectNode(), ...nodeFlags, join(checkout, entry)];
    const log = logs === undefined ? {} : { log: join(logs, `${name}.log`) };
    const program = await spawnProgram({ name, command, args, env: { ...environment, ...env }, ...log });
    all.push(program);
    return program;
  };
  const atWork = async (program: Program, isSeen: () => Promise<boolean>): Promise<Program> => {
    const what = `${program.name} is at work`;
    await waitFor(async () => !program.running() || (await isSeen()), { what, timeoutMs: startMaxMs, context: tails });
    return program;
  };
  return {
    all,
    workers,
    startWorker: async (options = {}) => {
      workersBegun += 1;
      const worker = await start(`worker-${workersBegun}`, "apps/worker/dist/main.js", options);
      workers.push(worker);
      return atWork(worker, () => settings.isKnown(worker.pid));
    },
    startApi: async ({ name = "api", port: own = port, address = "127.0.0.1", env, ...options } = {}) => {
      const api = await start(name, "apps/api/dist/main.js", { ...options, env: { TEPHRA_PORT: String(own), ...env } });
      return atWork(api, async () => (await fetch(`http://${address}:${own}/readyz`)).status === 200);
    },
    startTransfer: async (options = {}) => {
      const server = await start("transfer", "apps/transfer/dist/main.js", options);
      return atWork(server, async () => (await settings.servesImages?.(server.pid)) === true);
    },
    tails,
    stop: async (options) => void (await Promise.all(all.map((program) => program.stop(options)))),
  };
}
