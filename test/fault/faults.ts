import { Redis } from "ioredis";
import type { House } from "../../demo/house.ts";
import { poll } from "../../scripts/poll.ts";
import type { Program } from "../../scripts/spawn-program.ts";
import type { Random } from "../fuzz/random.ts";
import { graceMs, pause, rowsOf } from "./model.ts";

/** Where a worker can be made to die: as a task of a kind is claimed, and before each of its writes. */
export const crashPoints = [
  ...["plan-backup", "copy", "seal", "tidy", "plan-restore", "restore", "publish", "remove-backup"].flatMap((kind) => [
    `${kind}.claimed`,
    kind,
  ]),
  "take-snapshot.claimed",
  "remove-snapshot.claimed",
  "import-volume.claimed",
  "remove-volume.claimed",
];

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
  readonly #spared: Program | null;
  readonly #watched = new Set<Promise<void>>();
  readonly losses: Losses = { kills: 0, resumedMs: [] };
  #paused: Program | null = null;

  /** Nothing happens to `spared`: a process that lives as long as the house shows whether memory grows. */
  constructor(house: House, options: { wanted: number; spared: Program | null }) {
    this.#house = house;
    this.#wanted = options.wanted;
    this.#spared = options.spared;
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

  /** A further worker that dies at a named point, if it ever gets there; until `end`. */
  async doom(random: Random): Promise<void> {
    const point = crashPoints[random.below(crashPoints.length)];
    const doomed = await this.#house.startWorker({ TEPHRA_CRASH_AT: `${point}:${1 + random.below(4)}` });
    void doomed.exited.then(({ signal }) => {
      if (signal === "SIGKILL") this.#mourn(doomed);
    });
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

  async stop(random: Random): Promise<void> {
    await this.#any(random)?.stop({ signal: "SIGTERM" });
    await this.fill();
  }

  /** Settles when it is known what became of the tasks of all that died. */
  async settled(): Promise<void> {
    while (this.#watched.size > 0) await Promise.all(this.#watched);
  }

  #any(random: Random): Program | null {
    const living = this.living.filter((worker) => worker !== this.#paused && worker !== this.#spared);
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

export type Fault = (random: Random) => Promise<void>;

/** What can happen to a house, by name. Workers die most often, as they do in life. */
export function faultsOf(house: House, crew: Crew, leaseMs: number): [name: string, fault: Fault][] {
  const { servers, redisUrl } = house.services;
  const flush = async (): Promise<void> => {
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
  };
  const kill: [string, Fault] = ["a worker is killed", (random) => crew.kill(random)];
  const doom: [string, Fault] = ["a worker dies at a named point", (random) => crew.doom(random)];
  return [
    kill,
    kill,
    kill,
    doom,
    doom,
    doom,
    ["a worker is paused past its lease", (random) => crew.freeze(random, leaseMs)],
    ["a worker is stopped", (random) => crew.stop(random)],
    ["the API is killed", () => house.restartApi("SIGKILL")],
    ["Redis is emptied", flush],
    ["Redis is killed", async () => servers.redis?.().kill("SIGKILL")],
    ["PostgreSQL restarts immediately", async () => servers.postgres?.().kill("SIGQUIT")],
  ];
}
