import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { poll } from "../scripts/poll.ts";
import { type House, openHouse } from "../test/kit/house.ts";
import { cpuSeconds, importVolume, inParallel, liftQuotas, requestBackup } from "./house-work.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";
import { noiseOf, textOf } from "./sparse-file.ts";

const volumes = 200;
const volumeBytes = 1024 * 1024;
const rounds = 3;
const connections = 8;
/** A Cinder on such a machine does about four a second. */
const cinderPerSecond = 4;

/** What the volumes hold. Compressing noise alone takes about 26 ms of a core per volume, a bound that mixed data shows less of. */
const contents: Readonly<Record<string, (i: number) => Buffer>> = {
  "40 % holes, 30 % text, 30 % noise": (i) => {
    const part = Math.floor((volumeBytes * 0.3) / 4096) * 4096;
    const bytes = Buffer.alloc(volumeBytes);
    textOf(`text ${i}`, part).copy(bytes);
    noiseOf(`noise ${i}`)(part).copy(bytes, volumeBytes - part);
    return bytes;
  },
  "noise, which does not compress": (i) => noiseOf(`noise ${i}`)(volumeBytes),
};

/** Backups of 200 volumes of 1 MiB, from the first POST to the last `available`. */
export async function measureSmallVolumes(say: Say): Promise<Measurement[]> {
  const results: Measurement[] = [];
  for (const [note, content] of Object.entries(contents)) {
    await using house = await openHouse({ workers: 2, config: {}, say });
    await liftQuotas(house);
    say(`importing ${volumes} volumes of 1 MiB (${note})`);
    const ids = await importAll(house, content);
    const perSecond: number[] = [];
    const cpu: number[] = [];
    const bytesBefore = await databaseBytes(house);
    for (let round = 0; round < rounds; round += 1) {
      say(`backing them up, round ${round + 1} of ${rounds}`);
      const before = cpuSeconds(house.programs);
      perSecond.push(await backUpAll(house, ids));
      cpu.push(((cpuSeconds(house.programs) - before) / ids.length) * 1000);
    }
    const result = measured("backups of 1 MiB volumes", perSecond, {
      unit: "per s",
      atLeast: 10 * cinderPerSecond,
      note,
    });
    const ratio = measured("the same, times a Cinder's", [result.value / cinderPerSecond], { unit: "x" });
    // Tells more than the clock where other programs share the processors.
    const cost = measured("processor time of API and workers for one", cpu, { unit: "ms" });
    const rows = (await databaseBytes(house)) - bytesBefore;
    const stored = measured("what PostgreSQL stores for one", [rows / rounds / ids.length / 1024], {
      unit: "KiB",
      note: "with indexes, audit, events, ended tasks",
    });
    results.push(result, ratio, cost, stored);
  }
  return results;
}

async function databaseBytes(house: House): Promise<number> {
  const [row] = await house.sql<{ bytes: number }>("SELECT pg_database_size(current_database())::float8 AS bytes");
  if (row === undefined) throw new Error("PostgreSQL does not tell the size of its database");
  return row.bytes;
}

async function importAll(house: House, content: (i: number) => Buffer): Promise<string[]> {
  const ids: string[] = [];
  const numbers = Array.from({ length: volumes }, (_, i) => i);
  await inParallel(numbers, connections, async (i) => {
    const source = join(house.dir, `source-${i}.img`);
    await writeFile(source, content(i));
    ids.push(await importVolume(house, source));
  });
  return ids;
}

async function backUpAll(house: House, volumeIds: readonly string[]): Promise<number> {
  const backups: string[] = [];
  const started = performance.now();
  await inParallel(volumeIds, connections, async (id) => {
    backups.push(await requestBackup(house, id));
  });
  const count = "SELECT status, count(*)::int AS backups FROM backups WHERE id = ANY($1::uuid[]) GROUP BY status";
  const allAvailable = async (): Promise<boolean | "failed"> => {
    const rows = await house.sql<{ status: string; backups: number }>(count, [backups]);
    if (rows.some((row) => !["creating", "available"].includes(row.status))) return "failed";
    return rows.every((row) => row.status === "available");
  };
  const outcome = await poll(allAvailable, { what: "all backups are available", timeoutMs: 300_000, everyMs: 20 });
  if (outcome === "failed") throw new Error("a backup failed");
  return volumeIds.length / ((performance.now() - started) / 1000);
}
