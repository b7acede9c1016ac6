import { readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { type EventReader, openEventReader } from "../test/kit/events.ts";
import { type House, openHouse, project } from "../test/kit/house.ts";
import { importVolume, inParallel, liftQuotas, requestBackup, uuidOf } from "./house-work.ts";
import { type Measurement, measured, quantile, type Say } from "./measurement.ts";
import { noiseOf } from "./sparse-file.ts";

const MiB = 1024 * 1024;
const manyStreams = 200;
const fewStreams = 20;
/** A process serves one user no more. */
const streamsOfUser = 8;
const growthMaxMib = 20;
const delayMaxMs = 1500;
const slowerMin = 0.95;
const rounds = 5;
const requestsPerRound = 192;
const backups = 40;

/** What consoles that are open cost: memory of the API with 200 streams, requests a second with 20; and how soon they are told of a commit. */
export async function measureConsoles(say: Say): Promise<Measurement[]> {
  await using house = await openHouse({ workers: 1, config: { tasks: { unplaced_timeout_ms: 3_600_000 } }, say });
  await liftQuotas(house);
  const volumes = await importVolumes(house);
  await backUp(house, volumes); // What a first backup loads is not to be counted.
  const alone = residentMib(house);
  say(`${manyStreams} streams`);
  const { open, told, delays } = await readWhile(house, manyStreams, async () => {
    await delay(10_000);
    const open = residentMib(house);
    await backUp(house, volumes);
    return { open, told: residentMib(house) };
  });
  await Promise.all(house.workers.map((worker) => worker.stop()));
  const [without, beside]: [number[], number[]] = [[], []];
  for (let round = 0; round < rounds; round += 1) {
    say(`POST /backups without and with ${fewStreams} streams, round ${round + 1} of ${rounds}`);
    without.push(await requestsPerSecond(house, `without ${round}`));
    beside.push(
      (await readWhile(house, fewStreams, async () => ({ rate: await requestsPerSecond(house, `${round}`) }))).rate,
    );
  }
  const ratios = beside.map((rate, round) => rate / (without[round] ?? Number.NaN));
  const note = `${manyStreams} streams`;
  return [
    measured("memory of the API without consoles", [alone], { unit: "MiB" }),
    measured("the same, more", [open - alone], { unit: "MiB", atMost: growthMaxMib, note }),
    measured(`the same, after ${backups} backups that they were told of`, [told - alone], {
      unit: "MiB",
      atMost: growthMaxMib,
      note,
    }),
    measured("a transition until a console is told, half", [quantile(delays, 0.5)], { unit: "ms", note }),
    measured("a transition until a console is told, p99", [quantile(delays, 0.99)], {
      unit: "ms",
      atMost: delayMaxMs,
      note,
    }),
    measured("POST /backups without consoles", without, { unit: "per s", note: "8 connections" }),
    measured(`POST /backups with ${fewStreams}, in those without`, ratios, { unit: "x", atLeast: slowerMin }),
  ];
}

const residentMib = (house: House): number =>
  Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${house.api().pid}/status`, "utf8"))?.[1]) / 1024;

async function importVolumes(house: House): Promise<string[]> {
  const ids: string[] = [];
  await inParallel(
    Array.from({ length: backups }, (_, i) => i),
    4,
    async (i) => {
      const source = join(house.dir, `source-${i}.img`);
      await writeFile(source, noiseOf(`console ${i}`)(MiB));
      ids.push(await importVolume(house, source));
    },
  );
  return ids;
}

async function backUp(house: House, volumes: readonly string[]): Promise<void> {
  await inParallel(volumes, 4, async (id) => {
    await house.finished({ kind: "backup-create", backupId: await requestBackup(house, id) });
  });
}

/** Does the work while so many consoles read; `delays`: from each transition to its arrival at each of them, in milliseconds. */
async function readWhile<T>(house: House, count: number, work: () => Promise<T>): Promise<T & { delays: number[] }> {
  const readers: EventReader[] = [];
  const delays: number[] = [];
  try {
    for (let i = 0; i < count; i += 1) {
      const headers = { "x-auth-token": `user-${Math.floor(i / streamsOfUser)}:${project}` };
      const onEvent = ({ event, data }: { event: string; data: { at?: string } }): void => {
        if (event === "change" && data.at !== undefined) delays.push(Date.now() - Date.parse(data.at));
      };
      readers.push(await openEventReader(`${house.url}/ops/events`, { headers, onEvent }));
    }
    return { ...(await work()), delays };
  } finally {
    await Promise.all(readers.map((reader) => reader[Symbol.asyncDispose]()));
  }
}

/** POST /backups that are accepted, with nobody at work on them. */
async function requestsPerSecond(house: House, round: string): Promise<number> {
  const ids = Array.from({ length: requestsPerRound }, (_, i) => uuidOf(`console ${round} ${i}`));
  await house.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     SELECT id, $2, 'admin', 'volume', 'available', 1, 1048576, 'files', 'nova' FROM unnest($1::uuid[]) AS id`,
    [ids, project],
  );
  const began = performance.now();
  await inParallel(ids, 8, async (id) => void (await requestBackup(house, id)));
  return ids.length / ((performance.now() - began) / 1000);
}
