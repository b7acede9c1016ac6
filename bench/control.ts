import { readdirSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { poll } from "../scripts/poll.ts";
import { type House, openHouse } from "../test/kit/house.ts";
import { importVolume, inParallel, liftQuotas, processorTicks, requestBackup, ticksPerSecond } from "./house-work.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";
import { noiseOf } from "./sparse-file.ts";

const crews = [1, 8, 24, 48];
const volumes = 60;
const volumeBytes = 1024 * 1024;
const rounds = 3;
const connections = 8;
const idleMs = 10_000;
/** Cost for one backup with many workers, in those with one. */
const growthMax = 1.3;

/** What a backup of 1 MiB costs PostgreSQL, and what idle workers do, with more and more workers of one slot. */
export async function measureControl(say: Say): Promise<Measurement[]> {
  await using house = await openHouse({ workers: 1, config: { worker: { slots: 1 } }, say });
  await liftQuotas(house);
  const ids: string[] = [];
  await inParallel([...Array(volumes).keys()], connections, async (i) => {
    const source = join(house.dir, `source-${i}.img`);
    await writeFile(source, noiseOf(`noise ${i}`)(volumeBytes));
    ids.push(await importVolume(house, source));
  });
  const results: Measurement[] = [];
  let alone: number | null = null;
  for (const crew of crews) {
    while (house.workers.length < crew) await house.startWorker();
    await sleep(idleMs / 2);
    const idle = await measureIdle(house);
    const [perSecond, cost]: [number[], number[]] = [[], []];
    for (let round = 1; round <= rounds; round += 1) {
      say(`${volumes} backups with ${crew} workers, round ${round} of ${rounds}`);
      const before = await postgresSeconds(house);
      perSecond.push(await backUpAll(house, ids));
      cost.push((((await postgresSeconds(house)) - before) / ids.length) * 1000);
    }
    const note = crew === 1 ? "1 worker" : `${crew} workers`;
    const median = measured("PostgreSQL's processor time for one backup of 1 MiB", cost, { unit: "ms", note });
    alone ??= median.value;
    results.push(
      measured("backups of 1 MiB volumes", perSecond, { unit: "per s", note }),
      median,
      measured("the same, times that with one worker", [median.value / alone], { unit: "x", atMost: growthMax, note }),
      measured("transactions of an idle service", [idle.transactions], { unit: "per s", note }),
      measured("PostgreSQL's processor time meanwhile", [idle.percent], { unit: "% of a core", note }),
    );
  }
  return results;
}

async function measureIdle(house: House): Promise<{ transactions: number; percent: number }> {
  const [transactions, seconds, started] = [
    await countTransactions(house),
    await postgresSeconds(house),
    performance.now(),
  ];
  await sleep(idleMs);
  const lasted = (performance.now() - started) / 1000;
  return {
    transactions: ((await countTransactions(house)) - transactions) / lasted,
    percent: (((await postgresSeconds(house)) - seconds) / lasted) * 100,
  };
}

async function countTransactions(house: House): Promise<number> {
  const [row] = await house.sql<{ n: number }>(
    "SELECT (xact_commit + xact_rollback)::float8 AS n FROM pg_stat_database WHERE datname = current_database()",
  );
  return row?.n ?? 0;
}

/** Processor seconds of the server and all its backends so far, those that have ended included. */
async function postgresSeconds(house: House): Promise<number> {
  const [row] = await house.sql<{ path: string }>("SELECT current_setting('data_directory') AS path");
  const postmaster = Number(readFileSync(join(row?.path ?? "", "postmaster.pid"), "utf8").split("\n")[0]);
  let ticks = 0;
  for (const name of readdirSync("/proc").filter((entry) => /^\d+$/.test(entry))) {
    const used = processorTicks(Number(name));
    if (used === null) continue;
    if (Number(name) === postmaster) ticks += used.own + used.ended;
    else if (used.parent === postmaster) ticks += used.own;
  }
  return ticks / ticksPerSecond;
}

async function backUpAll(house: House, volumeIds: readonly string[]): Promise<number> {
  const backups: string[] = [];
  const started = performance.now();
  await inParallel(volumeIds, connections, async (id) => {
    backups.push(await requestBackup(house, id));
  });
  const left = "SELECT 1 FROM backups WHERE id = ANY($1::uuid[]) AND status <> 'available' LIMIT 1";
  const done = async (): Promise<boolean> => (await house.sql(left, [backups])).length === 0;
  await poll(done, { what: "all backups are available", timeoutMs: 300_000, everyMs: 50 });
  return volumeIds.length / ((performance.now() - started) / 1000);
}
