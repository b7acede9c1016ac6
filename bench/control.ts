import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { poll } from "../scripts/poll.ts";
import { type House, openHouse } from "../test/kit/house.ts";
import { measureDispatch } from "./dispatch.ts";
import { importVolume, inParallel, liftQuotas, postgresSeconds, requestBackup } from "./house-work.ts";
import { measureIdle, measureIdleWorkers } from "./idle-workers.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";
import { noiseOf } from "./sparse-file.ts";

const crews = [1, 8, 24, 48];
const volumes = 60;
const volumeBytes = 1024 * 1024;
const rounds = 3;
const connections = 8;
const settleMs = 5_000;
/** Cost for one backup with many workers, in those with one. */
const growthMax = 1.3;

/** What PostgreSQL has to do with many workers, busy or idle, and how long many tasks of many projects wait for a slot. */
export async function measureControl(say: Say): Promise<Measurement[]> {
  return [...(await measureDispatch(say)), ...(await measureIdleWorkers(say)), ...(await measureCrews(say))];
}

/** What a backup of 1 MiB costs PostgreSQL, and what idle workers do, with more and more workers of one slot. */
async function measureCrews(say: Say): Promise<Measurement[]> {
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
    await sleep(settleMs);
    const idle = await measureIdle(house);
    // A connection's first statements cost ten times the later ones, and every worker has its own.
    await backUpAll(house, ids);
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
