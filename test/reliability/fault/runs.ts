import { chmodSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { poll } from "../../../scripts/poll.ts";
import type { Program } from "../../../scripts/spawn-program.ts";
import { type House, openHouse, project } from "../../kit/house.ts";
import type { Network } from "../../kit/network.ts";
import { makeSteppedClock, type SteppedClock } from "../../kit/stepped-clock.ts";
import { startTcpProxy, type TcpProxy } from "../../kit/tcp-proxy.ts";
import { Random } from "../fuzz/random.ts";
import { type Findings, findCorrupt, findLost, findOrphans, findStuck, noFindings } from "./checker.ts";
import { Crew, type Losses, type NamedFault, serverFaults, workerFaults } from "./faults.ts";
import {
  type AskedBackup,
  ask,
  graceMs,
  insist,
  pause,
  rested,
  rowsOf,
  scribble,
  sha256Of,
  statusOf,
  writeImage,
} from "./model.ts";
import { openStore, type Store, type StoreKind } from "./store.ts";

/** Short leases, so that a takeover is a matter of seconds; small ranges and objects, so that a death falls between them. */
export const briskConfig = {
  range_bytes: 1024 * 1024,
  worker: { slots: 3, lease_ms: 2_000, heartbeat_ms: 400, drain_ms: 1_000 },
  tasks: {
    reconcile_ms: 300,
    dispatch_timeout_ms: 1_500,
    backoff_ms: 100,
    attempts_max: 10,
    unplaced_timeout_ms: 60_000,
    quiet_ms: 3_000,
  },
  // Everything rests when the reaper is sent: nothing needs a grace time then.
  reaper: { interval_hours: null, grace_minutes: 0 },
  quotas: { volumes: -1, snapshots: -1, gigabytes: -1, backups: -1, backup_gigabytes: -1 },
  repository: { object_bytes: 256 * 1024 },
};

/** Writes down what happens, with its time: the history of a run that found something. */
type Note = (line: string) => void;

/** What all runs together came to. */
export interface Tally {
  findings: Findings;
  asked: number;
  exact: number;
  /** Backups that ended in `error`, with a reason: allowed, and counted. */
  failed: number;
  faults: Record<string, number>;
  losses: Losses;
  bytesTwice: number;
}

export const newTally = (): Tally => ({
  findings: noFindings(),
  asked: 0,
  exact: 0,
  failed: 0,
  faults: {},
  losses: { kills: 0, resumedMs: [] },
  bytesTwice: 0,
});

/** What a command is told: where to begin, how much to do, and where to say how it goes. */
export interface FaultOptions {
  seed: number;
  /** Histories, kills, submissions or clean restores; the command's own measure when null. */
  runs: number | null;
  store: StoreKind;
  say: (line: string) => void;
}

/** A house for any number of runs. */
export interface FaultHouse extends House {
  /** How many workers it has when nothing is wrong. */
  wanted: number;
  /** What stands between its programs and the servers. */
  proxies: Readonly<Record<string, TcpProxy>>;
  store: Store;
  /** The clock of its PostgreSQL. */
  clock: SteppedClock;
}

export async function openFaultHouse(options: {
  workers: number;
  say: (line: string) => void;
  store?: StoreKind;
  /** Laid over the usual configuration, key by key at the top level. */
  config?: Record<string, unknown>;
  /** The API and the workers run on its hosts, which reach the servers by its links. */
  network?: Network;
}): Promise<FaultHouse> {
  const { workers, say, config, network } = options;
  await using stack = new AsyncDisposableStack();
  const proxies: Record<string, TcpProxy> = {};
  const proxied = async (name: string, url: string): Promise<string> => {
    const proxy = stack.use(await startTcpProxy(new URL(url), network?.addressOf(name)));
    proxies[name] = proxy;
    return proxy.through(url);
  };
  const store = stack.use(await openStore(options.store ?? "posix", (url) => proxied("the object store", url)));
  const clockDir = mkdtempSync(join(tmpdir(), "tephra-clock-"));
  stack.defer(() => rmSync(clockDir, { recursive: true, force: true }));
  chmodSync(clockDir, 0o755); // As root, PostgreSQL runs as another user, who reads it.
  const clock = await makeSteppedClock(clockDir);
  const repository = { ...briskConfig.repository, ...store.repository };
  const house = stack.use(
    await openHouse({
      workers,
      config: { ...briskConfig, ...config, repository },
      say,
      postgresEnv: clock.env,
      places: network && { api: network.places[0], workers: network.places.slice(1) },
      via: async ({ databaseUrl, redisUrl }) => ({
        databaseUrl: await proxied("PostgreSQL", databaseUrl),
        redisUrl: await proxied("Redis", redisUrl),
      }),
    }),
  );
  const owned = stack.move();
  return { ...house, wanted: workers, proxies, store, clock, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** What a history may do beside its usual course. */
export interface HistoryOptions {
  seed: number;
  tally: Tally;
  say: (line: string) => void;
  /** Workers and an API that nothing happens to. */
  spared?: readonly Program[];
  /** Users that are at it at once, each with a volume that is theirs in turn. */
  users?: number;
  /** Steps of each of them, about. */
  steps?: number;
  /** What may happen, and about how often; a few of everything by default. */
  faults?: (crew: Crew) => NamedFault[];
  faultsAbout?: number;
}

/**
 * One history: volumes are made, written, backed up, restored and deleted by several users at once, while workers, the API and the
 * servers come and go. Afterwards everything is compared with what it must be, and removed. The seed decides what is done, to what
 * data, and when which fault comes.
 */
export async function runHistory(house: FaultHouse, options: HistoryOptions): Promise<void> {
  const { seed, tally, say, spared = [] } = options;
  const before = countOf(tally.findings);
  const history: string[] = [];
  const began = performance.now();
  const note = (line: string): void => {
    history.push(`${((performance.now() - began) / 1000).toFixed(3)} ${line}`);
  };
  const crew = new Crew(house, { wanted: house.wanted, spared });
  await crew.fill();
  const users = new Users(house, { seed, users: options.users ?? 3, steps: options.steps ?? 4, note });
  await users.makeVolumes();
  const faults = new AbortController();
  const everything = (): NamedFault[] => [
    ...workerFaults(crew, { leaseMs: briskConfig.worker.lease_ms, quietMs: briskConfig.tasks.quiet_ms }),
    ...(spared.includes(house.api()) ? [] : [["the API is killed", () => house.restartApi("SIGKILL")] as NamedFault]),
    ...serverFaults(house),
  ];
  const misfortune = bringFaults(options.faults?.(crew) ?? everything(), {
    random: new Random(seed * 7 + 3),
    about: options.faultsAbout ?? 3,
    tally,
    signal: faults.signal,
    note,
  });
  await users.work();
  faults.abort();
  await misfortune;
  await crew.fill();
  const { findings } = tally;
  findings.stuck.push(...(await findStuck(house)));
  await crew.settled();
  findings.lost.push(...(await findLost(house, users.backups)), ...users.wrong);
  const { corrupt, exact, failed } = await findCorrupt(house, users.backups);
  findings.corrupt.push(...corrupt);
  await reap(house, findings);
  addNew(findings.orphans, await findOrphans(house));
  tally.bytesTwice += await bytesTwiceIn(house);
  tally.asked += users.backups.length;
  tally.exact += exact;
  tally.failed += failed;
  addLosses(tally, crew);
  for (const worker of crew.living.slice(house.wanted)) await worker.stop();
  await removeAll(house);
  await reap(house, findings);
  addNew(findings.orphans, await findOrphans(house));
  await rowsOf(house, "DELETE FROM operations");
  if (countOf(findings) > before) {
    for (const line of history) say(line);
    for (const [kind, all] of Object.entries(findings) as [string, string[]][])
      for (const what of all) say(`${kind} so far: ${what}`);
  }
}

/** Of every volume that was copied, what was copied more than once. */
export async function bytesTwiceIn(house: House): Promise<number> {
  const [twice] = await rowsOf<{ sum: number }>(house, "SELECT coalesce(sum(bytes_twice), 0)::float AS sum FROM tasks");
  return twice?.sum ?? 0;
}

export function addLosses(tally: Tally, { losses }: Crew): void {
  tally.losses.kills += losses.kills;
  tally.losses.resumedMs.push(...losses.resumedMs);
}

/** Sends the reaper, as its schedule would. */
export async function reap(house: House, findings: Findings): Promise<void> {
  findings.stuck.push(...(await findStuck(house)));
  const path = "/ops/repositories/main/reap";
  const { operation } = await insist<{ operation: { id: string } }>(house, "POST", path, { dry_run: false });
  await house.finished({ id: operation.id });
}

/** What is left behind once is there in the next run as well. */
export function addNew(all: string[], found: readonly string[]): void {
  all.push(...found.filter((what) => !all.includes(what)));
}

const countOf = (findings: Findings): number => Object.values(findings).reduce((sum, all) => sum + all.length, 0);

async function bringFaults(
  faults: readonly NamedFault[],
  {
    random,
    about,
    tally,
    signal,
    note,
  }: { random: Random; about: number; tally: Tally; signal: AbortSignal; note: Note },
): Promise<void> {
  for (let left = about - 1 + random.below(4); left > 0 && !signal.aborted; left--) {
    await pause(200 + random.below(1500));
    const [name, fault] = faults[random.below(faults.length)] as NamedFault;
    tally.faults[name] = (tally.faults[name] ?? 0) + 1;
    note(name);
    await fault(random);
    note(`${name}: done`);
  }
}

/** A volume and whose turn it is: what writes to it or moves its bytes has it alone. */
interface Volume {
  id: string;
  sizeBytes: number;
  busy: boolean;
  hasBackup: boolean;
}

/** What users do, several at once, and what they know of it. */
class Users {
  readonly backups: AskedBackup[] = [];
  /** Statuses and bytes that should not be. */
  readonly wrong: string[] = [];
  readonly #house: House;
  readonly #seed: number;
  readonly #random: Random;
  readonly #volumes: Volume[] = [];
  readonly #users: number;
  readonly #note: Note;
  #steps: number;
  #serial = 0;

  constructor(house: House, { seed, users, steps, note }: { seed: number; users: number; steps: number; note: Note }) {
    this.#house = house;
    this.#seed = seed;
    this.#note = note;
    this.#random = new Random(seed);
    this.#users = users;
    this.#steps = users * (steps - 1) + this.#random.below(3 * users);
  }

  async makeVolumes(): Promise<void> {
    const folder = join(this.#house.dir, "images");
    mkdirSync(folder, { recursive: true });
    for (let index = 0; index < this.#users; index++) {
      const path = join(folder, `${this.#seed}-${index}.img`);
      const sizeBytes = await writeImage(path, this.#random, `${this.#seed} ${index}`);
      const body = { path, project_id: project };
      const { operation } = await insist<{ operation: { id: string } }>(
        this.#house,
        "POST",
        "/ops/volumes/import",
        body,
      );
      const { volume_id: id } = await this.#house.finished({ id: operation.id });
      this.#volumes.push({ id: id ?? "", sizeBytes, busy: false, hasBackup: false });
    }
  }

  async work(): Promise<void> {
    const lane = async (): Promise<void> => {
      while (this.#steps > 0) {
        this.#steps -= 1;
        await this.#step();
      }
    };
    await Promise.all(this.#volumes.map(lane));
  }

  async #step(): Promise<void> {
    const kind = this.#random.below(11);
    const free = this.#volumes.filter(({ busy }) => !busy);
    const volume = free[this.#random.below(Math.max(1, free.length))];
    const backup = this.#backups(this.#random);
    if (kind < 2 && volume) return this.#alone(volume, () => this.#write(volume));
    if (kind < 7 && volume) return this.#alone(volume, () => this.#backUp(volume, kind));
    if (kind < 8 && volume && backup) return this.#alone(volume, () => this.#restoreOnto(volume, backup));
    if (kind < 9 && backup) return this.#verify(backup);
    if (backup) return this.#remove(backup);
    await pause(50);
  }

  #backups(random: Random): AskedBackup | undefined {
    const kept = this.backups.filter(({ id, dropped }) => id !== null && !dropped);
    return kept[random.below(Math.max(1, kept.length))];
  }

  async #alone(volume: Volume, work: () => Promise<void>): Promise<void> {
    volume.busy = true;
    try {
      await work();
    } finally {
      volume.busy = false;
    }
  }

  async #write(volume: Volume): Promise<void> {
    if ((await rested(this.#house, "volumes", volume.id)) !== "available") return;
    this.#note(`write ${volume.id}`);
    await scribble(this.#house.volumeFile(volume.id), volume.sizeBytes, this.#random, `${this.#seed} ${this.#steps}`);
  }

  /** Full or incremental; now and then it is given up in the middle. */
  async #backUp(volume: Volume, kind: number): Promise<void> {
    if ((await rested(this.#house, "volumes", volume.id)) !== "available") return;
    this.#serial += 1;
    const name = `run ${this.#seed} backup ${this.#serial}`;
    const asked: AskedBackup = {
      name,
      id: null,
      sha256: await sha256Of(this.#house.volumeFile(volume.id)),
      dropped: false,
    };
    const giveUp = this.#random.below(6) === 0;
    const incremental = kind >= 4 && volume.hasBackup;
    const body = { backup: { volume_id: volume.id, name, incremental } };
    this.#note(`back up ${volume.id} (${asked.sha256.slice(0, 8)}) as "${name}"${incremental ? ", incremental" : ""}`);
    const outcome = await ask<{ backup: { id: string } }>(this.#house, "POST", "/backups", body);
    this.#note(`"${name}": ${JSON.stringify(outcome).slice(0, 200)}`);
    if (outcome.kind === "accepted") asked.id = outcome.answer.backup.id;
    if (outcome.kind === "unknown") await pause(500); // Its row is there by now, or never will be.
    if (outcome.kind !== "refused") this.backups.push(asked);
    if (outcome.kind === "accepted") volume.hasBackup = true;
    if (giveUp && asked.id !== null) {
      await pause(this.#random.below(400));
      // An admin deletes it by force, or only says that it failed: its operation ends either way.
      const byForce = this.#random.below(2) === 0;
      if (byForce) asked.dropped = true; // Otherwise it may have been deleted by another user meanwhile.
      const action = byForce ? { "os-force_delete": {} } : { "os-reset_status": { status: "error" } };
      await ask(this.#house, "POST", `/backups/${asked.id}/action`, action);
      await rested(this.#house, "backups", asked.id);
    }
    const status = await rested(this.#house, "volumes", volume.id);
    this.#note(`"${name}" rests`);
    if (status !== "available") this.wrong.push(`volume ${volume.id} is ${status} after a backup`);
  }

  async #restoreOnto(volume: Volume, backup: AskedBackup): Promise<void> {
    const { id } = backup;
    if (id === null || (await statusOf(this.#house, "backups", id)) !== "available") return;
    const body = { restore: { volume_id: volume.id } };
    this.#note(`restore ${id} onto ${volume.id}`);
    const outcome = await ask(this.#house, "POST", `/backups/${id}/restore`, body);
    if (outcome.kind === "unknown") await pause(500);
    const status = await rested(this.#house, "volumes", volume.id);
    await rested(this.#house, "backups", id);
    this.#note(`restore of ${id} onto ${volume.id}: ${outcome.kind}, ${status}`);
    if (outcome.kind !== "accepted" || status !== "available") return;
    const length = await this.#lengthOf(id);
    if (length !== volume.sizeBytes) return;
    const same = (await sha256Of(this.#house.volumeFile(volume.id))) === backup.sha256;
    if (!same) this.wrong.push(`volume ${volume.id} is available after a restore of ${id}, with other bytes`);
  }

  async #lengthOf(id: string): Promise<number | null> {
    const [row] = await rowsOf<{ bytes: number }>(
      this.#house,
      "SELECT volume_bytes::float AS bytes FROM backups WHERE id = $1",
      [id],
    );
    return row?.bytes ?? null;
  }

  /** Whatever happens to it, a sound backup is not found damaged. */
  async #verify({ id }: AskedBackup): Promise<void> {
    const mode = ["quick", "deep", "drill"][this.#random.below(3)];
    this.#note(`verify ${id}: ${mode}`);
    const path = `${this.#house.url}/ops/backups/${id}/verify`;
    const headers = { "content-type": "application/json" };
    const asked = { method: "POST", headers, body: JSON.stringify({ mode }), signal: AbortSignal.timeout(60_000) };
    const answer = await fetch(path, asked).catch(() => null);
    if (answer?.status !== 202) return;
    const { operation } = (await answer.json()) as { operation: { id: string } };
    const [row] = await poll(() => this.#endOf(operation.id), {
      what: `verification ${operation.id} has ended`,
      timeoutMs: graceMs,
      everyMs: 50,
    });
    this.#note(`verify ${id}: ${mode}: ${row.state}`);
    if (row.damaged > 0) this.wrong.push(`backup ${id} was found damaged by ${mode} and is not`);
  }

  async #endOf(operationId: string): Promise<[{ state: string; damaged: number }] | undefined> {
    const [row] = await rowsOf<{ state: string; damaged: number }>(
      this.#house,
      `SELECT state, coalesce(jsonb_array_length(result->'verify'->'damaged'), 0) AS damaged FROM operations
       WHERE id = $1 AND state NOT IN ('queued', 'running')`,
      [operationId],
    );
    return row && [row];
  }

  async #remove(backup: AskedBackup): Promise<void> {
    const outcome =
      this.#random.below(3) > 0
        ? await ask(this.#house, "DELETE", `/backups/${backup.id}`)
        : await ask(this.#house, "POST", `/backups/${backup.id}/action`, { "os-force_delete": {} });
    this.#note(`delete ${backup.id}: ${outcome.kind}`);
    if (outcome.kind !== "refused") backup.dropped = true;
    if (backup.dropped) await rested(this.#house, "backups", backup.id as string);
  }
}

/** Deletes what a run made, children before their parents. */
export async function removeAll(house: House): Promise<void> {
  for (let left = 1; left > 0; ) {
    const leaves = await rowsOf<{ id: string }>(
      house,
      `SELECT b.id FROM backups b WHERE b.deleted_at IS NULL
        AND NOT EXISTS (SELECT 1 FROM backups c WHERE c.parent_id = b.id AND c.deleted_at IS NULL)`,
    );
    for (const { id } of leaves) await ask(house, "DELETE", `/backups/${id}`);
    for (const { id } of leaves) await rested(house, "backups", id);
    left = leaves.length;
  }
  const volumes = await rowsOf<{ id: string }>(house, "SELECT id FROM volumes");
  for (const { id } of volumes) await ask(house, "DELETE", `/volumes/${id}?cascade=true`);
  for (const { id } of volumes) await rested(house, "volumes", id);
  await findStuck(house);
}
