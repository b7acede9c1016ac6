import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openHouse } from "../test/kit/house.ts";
import { GiB, MiB } from "./contenders.ts";
import { writeRandomImage } from "./engine-images.ts";
import { importVolume, liftQuotas, requestBackup } from "./house-work.ts";
import { type Measurement, measured, median, type Say } from "./measurement.ts";

const counts = [1, 2, 4, 8];
const rounds = 3;
const volumeBytes = 2 * GiB;
/** Of what each worker may send to the store. */
const bytesPerSecond = 20_000_000;
const shareMin = 0.9;

/**
 * One volume, copied by one worker and by several, each of which may send 20 MB a second to the repository: how many times as fast as one.
 * A folder and the service's own limit, since a real store on the same cores takes in no more than four workers send.
 */
export async function measureManyWorkers(say: Say): Promise<Measurement[]> {
  const home = await mkdtemp(join(tmpdir(), "tephra-bench-"));
  try {
    const config = {
      range_bytes: 32 * MiB,
      repository: { compression: "none", object_bytes: 8 * MiB },
      worker: { slots: 2 },
    };
    await using house = await openHouse({ workers: 1, config, importRoots: [home], say });
    await liftQuotas(house);
    await house.call("PUT", "/ops/limits/repositories/worker/*", { bytes_per_second: bytesPerSecond });
    const image = join(home, "volume.img");
    await writeRandomImage(image, volumeBytes);
    const volumeId = await importVolume(house, image);
    const seconds = new Map<number, number[]>(counts.map((count) => [count, []]));
    for (let round = 1; round <= rounds; round += 1) {
      for (const count of counts) {
        const running = house.workers.filter((worker) => worker.running());
        await Promise.all(Array.from({ length: count - running.length }, () => house.startWorker()));
        say(`${count} workers with 20 MB/s each, round ${round} of ${rounds}`);
        const began = performance.now();
        const backupId = await requestBackup(house, volumeId);
        await house.finished({ kind: "backup-create", backupId });
        seconds.get(count)?.push((performance.now() - began) / 1000);
      }
      const [, ...others] = house.workers.filter((worker) => worker.running());
      await Promise.all(others.map((worker) => worker.stop()));
    }
    const alone = seconds.get(1) ?? [];
    return counts.flatMap((count) => {
      const times = seconds.get(count) ?? [];
      const name = `one volume of 2 GiB, ${count} workers with 20 MB/s each`;
      const ratios = times.map((time, round) => (alone[round] ?? Number.NaN) / time / count);
      const note = `${(median(ratios) * count).toFixed(2)} times the speed of one`;
      return [
        measured(name, times, { unit: "s" }),
        ...(count > 1
          ? [measured(`${name}: speed over that of as many alone`, ratios, { unit: "×", atLeast: shareMin, note })]
          : []),
      ];
    });
  } finally {
    await rm(home, { recursive: true, force: true });
  }
}
