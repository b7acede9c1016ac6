import { mkdir, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Redis } from "ioredis";
import { poll } from "../../../scripts/poll.ts";
import { withClient } from "../../../scripts/postgres.ts";
import type { Program } from "../../../scripts/spawn-program.ts";
import { crashAt } from "../../kit/crash-at.ts";
import type { House } from "../../kit/house.ts";
import { stallingCalls } from "../../kit/stalling-calls.ts";
import type { SteppedClock } from "../../kit/stepped-clock.ts";
import type { TcpProxy, Trouble } from "../../kit/tcp-proxy.ts";
import type { Random } from "../fuzz/random.ts";
import { graceMs, pause, rowsOf } from "./model.ts";

/** Kinds of tasks that write nothing, or ask for nothing as they do: there is no moment before a write. */
const quietKinds: readonly string[] = ["conclude-verify", "import-backup", "rescan-repository", "provision-volume"];

/** Where a worker can be made to die, by the kind of task: when it was claimed, before each of its writes, before its report and after. */
export const pointsOf = (kind: string): string[] => [
  `${kind}.claimed`,
  ...(quietKinds.includes(kind) ? [] : [kind]),
  `${kind}.reporting`,
  `${kind}.done`,
];

/** The points of what users do in a history. */
const crashPoints = [
  ...["plan-backup", "copy", "seal", "tidy", "plan-restore", "restore", "publish", "remove-backup"],
  ...["plan-verify", "verify", "conclude-verify", "import-volume", "remove-volume"],
].flatMap(pointsOf);

/** What the killing of workers cost. */
export interface Losses {
  kills: number;
  /** From the death of a worker until each of its tasks was claimed again or had ended, in milliseconds. */
  resumedMs: number[];
}

/** The workers of a house, of which some are doomed. Those that die are replaced, so that work goes on. */
export class Crew {
  readonly #house: House;
  readonly #wanted: number;
  readonly #spared: readonly Program[];
  readonly #watched = new Set<Promise<void>>();
  readonly losses: Losses = { kills: 0, resumedMs: [] };
  #paused: Program | null = null;

  /** Nothing happens to `spared`: processes that live as long as the house show whether memory grows. */
  constructor(house: House, options: { wanted: number; spared?: readonly Program[] }) {
    this.#house = house;
    this.#wanted = options.wanted;
    this.#spared = options.spared ?? [];
  }

  get living(): Program[] {
    return this.#house.workers.filter((worker) => worker.running());
  }

  async fill(): Promise<void> {
    for (let missing = this.#wanted - this.living.length; missing > 0; missing--) await this.#house.startWorker();
  }

  async kill(random: Random): Promise<void> {
    const worker = this.#any(random);
    if (worker === null) return;
    worker.kill("SIGKILL");
    await worker.exited;
    this.#mourn(worker);
    await this.fill();
  }

  /** A further worker that dies at a named point, if it ever gets there. */
  async doom(random: Random): Promise<void> {
    const point = crashPoints[random.below(crashPoints.length)];
    await this.startDoomed(`${point}:${1 + random.below(4)}`);
  }

  /** A further worker that dies the n-th time it is at a point (`POINT:N`). */
  async startDoomed(point: string): Promise<Program> {
    const doomed = await this.#house.startWorker(crashAt(point));
    void doomed.exited.then(({ signal }) => {
      if (signal === "SIGKILL") this.#mourn(doomed);
    });
    return doomed;
  }

  /** Past its lease: others take over, and it wakes up late. */
  async freeze(random: Random, leaseMs: number): Promise<void> {
    const worker = this.#any(random);
    if (worker === null || this.#paused !== null) return;
    this.#paused = worker;
    worker.kill("SIGSTOP");
    await pause(leaseMs * 1.5);
    worker.kill("SIGCONT");
    this.#paused = null;
  }

  /** A further worker, in which calls of one kind stand still for longer than its tasks may, and then return. */
  async hang(random: Random, quietMs: number): Promise<void> {
    const calls = await stallingCalls(this.#house.dir, hangs[random.below(hangs.length)] as (typeof hangs)[number]);
    const fromTheStart = random.below(2) === 0;
    if (fromTheStart) calls.stall();
    try {
      await this.#house.startWorker(calls.env);
      calls.stall();
      await pause(quietMs * 2 + random.below(2_000));
    } finally {
      calls.release();
    }
  }

  async stop(random: Random): Promise<void> {
    await this.#any(random)?.stop({ signal: "SIGTERM" });
    await this.fill();
  }

  /** Stops all that are not spared. */
  async stopAll(): Promise<void> {
    await Promise.all(this.living.map((worker) => worker.stop({ signal: "SIGTERM" })));
  }

  /** Settles when it is known what became of the tasks of all that died. */
  async settled(): Promise<void> {
    while (this.#watched.size > 0) await Promise.all(this.#watched);
  }

  #any(random: Random): Program | null {
    const living = this.living.filter((worker) => worker !== this.#paused && !this.#spared.includes(worker));
    return living[random.below(Math.max(1, living.length))] ?? null;
  }

  #mourn(worker: Program): void {
    const died = performance.now();
    this.losses.kills += 1;
    const watch = this.#watch(worker, died).catch(() => {}); // What is stuck is found by the checker.
    this.#watched.add(watch);
    void watch.finally(() => this.#watched.delete(watch));
  }

  async #watch(worker: Program, died: number): Promise<void> {
    const held = await rowsOf<{ id: string; claim: number }>(
      this.#house,
      "SELECT id, claim FROM tasks WHERE state = 'running' AND worker_id LIKE $1",
      [`%:${worker.pid}:%`],
    );
    const resumed = async (id: string, claim: number): Promise<void> => {
      const left = "SELECT 1 FROM tasks WHERE id = $1 AND claim = $2 AND state IN ('running', 'ready', 'dispatched')";
      await poll(async () => (await rowsOf(this.#house, left, [id, claim])).length === 0, {
        what: "the task goes on",
        timeoutMs: graceMs,
        everyMs: 50,
      });
      this.losses.resumedMs.push(performance.now() - died);
    };
    await Promise.all(held.map(({ id, claim }) => resumed(id, claim)));
  }
}

/** What may stand still in a worker whose places hang. */
const hangs = [
  { call: "link", path: "/repository/" },
  { call: "open", path: "/repository/" },
  { call: "pread", path: "/volumes/" },
  { call: "pwrite", path: "/volumes/" },
  { call: "fsync", path: "/volumes/" },
] as const;

export type Fault = (random: Random) => Promise<void>;
export type NamedFault = [name: string, fault: Fault];

export async function flushRedis(redisUrl: string): Promise<void> {
  const redis = new Redis(redisUrl, { lazyConnect: true, retryStrategy: () => null });
  redis.on("error", () => {}); // It may be down just now: then there is nothing to be emptied.
  try {
    await redis.connect();
    await redis.flushall();
  } catch {
    // As above.
  } finally {
    redis.disconnect();
  }
}

const troubles: readonly [name: string, trouble: Trouble][] = [
  ["come late", { kind: "late", ms: 150 }],
  ["are cut off", { kind: "cut" }],
  ["arrive by half", { kind: "half" }],
  ["are lost", { kind: "lost" }],
  ["trickle in", { kind: "trickle" }],
  ["end in silence", { kind: "silent" }],
];

/** For a while, the answers of a server do not arrive as they were sent. */
function networkFaults(proxies: Readonly<Record<string, TcpProxy>>): NamedFault[] {
  return Object.entries(proxies).flatMap(([server, proxy]) =>
    troubles.map(
      ([name, trouble]): NamedFault => [
        `answers of ${server} ${name}`,
        async (random) => {
          proxy.trouble(trouble);
          await pause(200 + random.below(1_300));
          proxy.trouble(null);
        },
      ],
    ),
  );
}

const lockable = ["tasks", "backups", "operations", "volumes", "workers"];

/** Somebody else holds a whole table for a while, as a migration or a careless dump does. */
async function lockTable(databaseUrl: string, random: Random): Promise<void> {
  const table = lockable[random.below(lockable.length)];
  const hold = withClient(databaseUrl, async (client) => {
    await client.query("BEGIN");
    await client.query(`LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`);
    await pause(500 + random.below(2_500));
    await client.query("ROLLBACK");
  });
  await hold.catch(() => {}); // PostgreSQL may be down just now: then nothing is locked.
}

/** Things in a repository that are nobody's backup, and must hinder nobody. */
async function leaveForeignEntries(repositoryDir: string, random: Random): Promise<void> {
  const name = join(repositoryDir, `foreign-${random.below(1e9)}`);
  const kinds = [
    () => writeFile(name, "not ours"),
    () => mkdir(join(name, "lost+found"), { recursive: true, mode: 0o700 }),
    () => symlink("/nowhere", name),
    () => writeFile(`${name}_metadata`, ""),
  ];
  await kinds[random.below(kinds.length)]?.().catch(() => {}); // Where the repository is a folder.
}

/** The clock of PostgreSQL is wrong by 10 s to 1 h for a while, then somebody sets it right: it steps twice. */
async function stepClock(clock: SteppedClock, random: Random, sign: 1 | -1): Promise<void> {
  clock.set(sign * (10 + random.below(3_591)));
  await pause(500 + random.below(3_000));
  clock.set(0);
}

/** What can happen to servers, and to the way to them. */
export function serverFaults(
  house: House & { proxies: Readonly<Record<string, TcpProxy>>; clock: SteppedClock },
): NamedFault[] {
  const { proxies, clock } = house;
  const { servers, redisUrl, databaseUrl } = house.services;
  return [
    ["Redis is emptied", () => flushRedis(redisUrl)],
    ["Redis is killed", async () => servers.redis?.().kill("SIGKILL")],
    ["a table is locked", (random) => lockTable(databaseUrl, random)],
    ["foreign entries are in the repository", (random) => leaveForeignEntries(join(house.dir, "repository"), random)],
    ["the clock of PostgreSQL steps back", (random) => stepClock(clock, random, -1)],
    ["the clock of PostgreSQL steps forth", (random) => stepClock(clock, random, 1)],
    ["PostgreSQL restarts immediately", async () => servers.postgres?.().kill("SIGQUIT")],
    ...networkFaults(proxies),
  ];
}

const repeated = (fault: NamedFault, times: number): NamedFault[] => Array.from({ length: times }, () => fault);

/** A further worker joins whose repository or volumes hang, from its start or a while later. */
export function hangingPlaces(crew: Crew, quietMs: number): NamedFault {
  return ["the places of a worker hang", (random) => crew.hang(random, quietMs)];
}

/** What can happen to workers, by name. They die most often, as they do in life. */
export function workerFaults(crew: Crew, { leaseMs, quietMs }: { leaseMs: number; quietMs: number }): NamedFault[] {
  return [
    ...repeated(["a worker is killed", (random) => crew.kill(random)], 5),
    ...repeated(["a worker dies at a named point", (random) => crew.doom(random)], 5),
    ...repeated(["a worker is paused past its lease", (random) => crew.freeze(random, leaseMs)], 2),
    ...repeated(hangingPlaces(crew, quietMs), 2),
    ...repeated(["a worker is stopped", (random) => crew.stop(random)], 2),
  ];
}
