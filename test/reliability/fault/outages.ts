import { mkdirSync, rmSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { poll } from "../../../scripts/poll.ts";
import { randomBytesOf } from "../../kit/bytes.ts";
import { project } from "../../kit/house.ts";
import { findCorrupt, findLost, findOrphans, findStuck } from "./checker.ts";
import { flushRedis } from "./faults.ts";
import { type AskedBackup, graceMs, pause, rested, rowsOf, sha256Of } from "./model.ts";
import { isClean, reportOf } from "./report.ts";
import {
  addNew,
  bytesTwiceIn,
  type FaultHouse,
  type FaultOptions,
  newTally,
  openFaultHouse,
  reap,
  removeAll,
  type Tally,
} from "./runs.ts";

const MiB = 1024 * 1024;
const volumes = 8;
const volumeBytes = 20 * MiB;
const rangeBytes = 256 * 1024;
const pausedMs = 60_000;
const sampleMs = 100;
/** Eight backups at once, on whatever machine, with an outage in the middle. */
const backupsMaxMs = 15 * 60_000;
/** Full speed is this part of what was done in a second before. */
const fullSpeed = 0.8;

type Outage = readonly [name: string, bring: (house: FaultHouse) => Promise<void>];

const outages: readonly Outage[] = [
  ["Redis is killed and comes back with what it had", killRedis],
  [
    "Redis is killed and comes back empty",
    async (house) => {
      rmSync(join(house.dir, "redis", "appendonlydir"), { recursive: true, force: true });
      await killRedis(house);
    },
  ],
  ["Redis is emptied", (house) => flushRedis(house.services.redisUrl)],
  [
    `Redis is paused for ${pausedMs / 1000} s`,
    async ({ services: { servers } }) => {
      const redis = servers.redis?.();
      redis?.kill("SIGSTOP");
      await pause(pausedMs);
      redis?.kill("SIGCONT");
    },
  ],
  [
    "PostgreSQL restarts immediately",
    async (house) => {
      const { postgres } = house.services.servers;
      const before = postgres?.();
      before?.kill("SIGQUIT");
      await before?.exited;
      // Its death is the beginning of the outage; the answer to a question is the end.
      await rowsOf(house, "SELECT 1 AS one");
    },
  ],
];

async function killRedis({ services: { servers } }: FaultHouse): Promise<void> {
  const before = servers.redis?.();
  before?.kill("SIGKILL");
  await before?.exited;
  await poll(() => servers.redis?.() !== before, { what: "Redis is started again", timeoutMs: graceMs });
}

interface Sample {
  atMs: number;
  done: number;
}

/** Counts finished ranges until it is stopped. */
function countRanges(house: FaultHouse, signal: AbortSignal): { samples: Sample[]; ended: Promise<void> } {
  const samples: Sample[] = [];
  const count = async (): Promise<void> => {
    while (!signal.aborted) {
      const text = "SELECT count(*)::int AS done FROM tasks WHERE kind = 'copy' AND state = 'succeeded'";
      const [row] = await rowsOf<{ done: number }>(house, text);
      samples.push({ atMs: performance.now(), done: row?.done ?? 0 });
      await pause(sampleMs);
    }
  };
  return { samples, ended: count() };
}

/** Ranges per second over the second that begins at a moment. */
function rateAt(samples: readonly Sample[], atMs: number): number | null {
  const first = samples.find((sample) => sample.atMs >= atMs);
  const last = samples.find((sample) => sample.atMs >= atMs + 1_000);
  if (first === undefined || last === undefined) return null;
  return ((last.done - first.done) * 1_000) / (last.atMs - first.atMs);
}

/** How long after a moment it takes until work goes on as fast as before; null when it was done before. */
function recoveryMs(samples: readonly Sample[], { before, end }: { before: number; end: number }): number | null {
  for (const { atMs } of samples.filter((sample) => sample.atMs >= end)) {
    const rate = rateAt(samples, atMs);
    if (rate === null) return null;
    if (rate >= before * fullSpeed) return atMs - end;
  }
  return null;
}

async function bringOutage(
  house: FaultHouse,
  [name, bring]: Outage,
  { ids, tally }: { ids: readonly string[]; tally: Tally },
): Promise<string> {
  const { findings } = tally;
  const asked: AskedBackup[] = [];
  for (const [index, id] of ids.entries()) {
    const backup = { volume_id: id, name: `${name} ${index}` };
    const answer = await house.call<{ backup: { id: string } }>("POST", `/v3/${project}/backups`, { backup });
    const sha256 = await sha256Of(house.volumeFile(id));
    asked.push({ name: backup.name, id: answer.backup.id, sha256, dropped: false });
  }
  const stop = new AbortController();
  const { samples, ended } = countRanges(house, stop.signal);
  const total = (volumes * volumeBytes) / rangeBytes;
  await poll(() => (samples.at(-1)?.done ?? 0) > total / 4, { what: "a quarter is done", timeoutMs: backupsMaxMs });
  const began = performance.now();
  const before = rateAt(samples, began - 1_500) ?? rateAt(samples, samples[0]?.atMs ?? 0) ?? 0;
  await bring(house);
  const end = performance.now();
  const doneAtEnd = samples.at(-1)?.done ?? 0;
  for (const { id } of asked) await rested(house, "backups", id ?? "", backupsMaxMs);
  stop.abort();
  await ended;
  tally.faults[name] = 1;
  findings.stuck.push(...(await findStuck(house)));
  findings.lost.push(...(await findLost(house, asked)));
  const { corrupt, exact, failed } = await findCorrupt(house, asked);
  findings.corrupt.push(...corrupt);
  tally.asked += asked.length;
  tally.exact += exact;
  tally.failed += failed;
  const recovery = recoveryMs(samples, { before, end });
  const state = `${before.toFixed(0)} ranges a second before, ${doneAtEnd} of ${total} done at its end`;
  const speed = recovery === null ? "done before a second of it had passed" : `${(recovery / 1_000).toFixed(1)} s`;
  return `${name} (${((end - began) / 1_000).toFixed(1)} s): ${state}, full speed after ${speed}`;
}

async function makeVolumes(house: FaultHouse, seed: number): Promise<string[]> {
  const folder = join(house.dir, "images");
  mkdirSync(folder, { recursive: true });
  const ids: string[] = [];
  for (let index = 0; index < volumes; index++) {
    const path = join(folder, `${index}.img`);
    {
      await using file = await open(path, "w");
      for (let at = 0; at < volumeBytes; at += MiB)
        await file.write(randomBytesOf(`${seed} ${index} ${at}`, MiB), 0, MiB, at);
    }
    const body = { path, project_id: project };
    const { operation } = await house.call<{ operation: { id: string } }>("POST", "/ops/volumes/import", body);
    ids.push((await house.finished({ id: operation.id })).volume_id ?? "");
    rmSync(path);
  }
  return ids;
}

/** Redis and PostgreSQL go away and come back, each in the middle of eight backups. */
export async function runOutages({ seed, store, say }: FaultOptions): Promise<boolean> {
  const tally = newTally();
  const lines: string[] = [];
  {
    await using house = await openFaultHouse({ workers: 3, store, say, config: { range_bytes: rangeBytes } });
    const ids = await makeVolumes(house, seed);
    for (const outage of outages) {
      lines.push(await bringOutage(house, outage, { ids, tally }));
      say(lines.at(-1) ?? "");
      for (const { id } of await rowsOf<{ id: string }>(house, "SELECT id FROM backups WHERE deleted_at IS NULL")) {
        await house.call("DELETE", `/v3/${project}/backups/${id}`);
      }
      await findStuck(house);
      tally.bytesTwice += await bytesTwiceIn(house);
      await rowsOf(house, "DELETE FROM operations");
    }
    await removeAll(house);
    await reap(house, tally.findings);
    addNew(tally.findings.orphans, await findOrphans(house));
  }
  for (const line of lines) process.stdout.write(`${line}\n`);
  for (const line of reportOf(tally, { seed, runs: outages.length, name: "outages" }))
    process.stdout.write(`${line}\n`);
  return isClean(tally);
}
