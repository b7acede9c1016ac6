import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { openHouse } from "../test/kit/house.ts";
import { importVolume, liftQuotas, requestBackup } from "./house-work.ts";
import { type Measurement, measured, median, type Say } from "./measurement.ts";
import { noiseOf } from "./sparse-file.ts";

const rangeBytes = 64 * 1024;
const ranges = 400;
const rounds = 3;

/**
 * What a task costs beside its bytes: a volume of 400 ranges of 64 KiB, stored as they are, whose bytes take well under a
 * millisecond each.
 */
export async function measureTaskOverhead(say: Say): Promise<Measurement[]> {
  await using house = await openHouse({
    workers: 2,
    config: { range_bytes: rangeBytes, repository: { object_bytes: rangeBytes, compression: "none" } },
    say,
  });
  await liftQuotas(house);
  const source = join(house.dir, "source.img");
  await writeFile(source, noiseOf("overhead")(ranges * rangeBytes));
  const volumeId = await importVolume(house, source);
  const [wall, waiting, running]: [number[], number[], number[]] = [[], [], []];
  for (let round = 0; round < rounds; round += 1) {
    say(`${ranges} ranges of 64 KiB, round ${round + 1} of ${rounds}`);
    const backupId = await requestBackup(house, volumeId);
    const { id } = await house.finished({ kind: "backup-create", backupId });
    const tasks = await house.sql<{ wait: number; run: number; copied: number }>(
      `SELECT extract(epoch FROM started_at - dispatched_at)::float * 1000 AS wait,
              extract(epoch FROM finished_at - started_at)::float * 1000 AS run,
              extract(epoch FROM max(finished_at) OVER () - min(started_at) OVER ())::float * 1000 AS copied
       FROM tasks WHERE operation_id = $1 AND kind = 'copy'`,
      [id],
    );
    wall.push((tasks[0]?.copied ?? Number.NaN) / tasks.length);
    waiting.push(median(tasks.map((task) => task.wait)));
    running.push(median(tasks.map((task) => task.run)));
  }
  return [
    measured("wall time per copy task, two workers", wall, {
      unit: "ms",
      note: "first start to last end, by number of tasks",
    }),
    measured("copy task, dispatched to started", waiting, { unit: "ms" }),
    measured("copy task, started to finished", running, { unit: "ms", note: "several run at once" }),
  ];
}
