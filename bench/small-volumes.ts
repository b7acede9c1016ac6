import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type House, openHouse } from "../demo/house.ts";
import { poll } from "../scripts/poll.ts";
import { importVolume, inParallel, liftQuotas, requestBackup } from "./house-work.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";
import { noiseOf } from "./sparse-file.ts";

const volumes = 200;
const volumeBytes = 1024 * 1024;
const rounds = 3;
const connections = 8;
/** A Cinder on such a machine does about four a second. */
const cinderPerSecond = 4;

/** Backups of 200 volumes of 1 MiB, from the first POST to the last `available`. */
export async function measureSmallVolumes(say: Say): Promise<Measurement[]> {
  await using house = await openHouse({ workers: 2, config: {}, say });
  await liftQuotas(house);
  say(`importing ${volumes} volumes of 1 MiB`);
  const noise = noiseOf("small volumes");
  const ids: string[] = [];
  await inParallel(
    Array.from({ length: volumes }, (_, i) => i),
    connections,
    async (i) => {
      const source = join(house.dir, `source-${i}.img`);
      await writeFile(source, noise(volumeBytes));
      ids.push(await importVolume(house, source));
    },
  );
  const perSecond: number[] = [];
  for (let round = 0; round < rounds; round += 1) {
    say(`backing them up, round ${round + 1} of ${rounds}`);
    perSecond.push(await backUpAll(house, ids));
  }
  const results = measured("backups of 1 MiB volumes", perSecond, { unit: "per s", atLeast: 10 * cinderPerSecond });
  const ratio = measured("the same, times a Cinder's", [results.value / cinderPerSecond], { unit: "x" });
  return [results, ratio];
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
