import { rm } from "node:fs/promises";
import { join } from "node:path";
import { type House, openHouse, project } from "../test/kit/house.ts";
import { importVolume, liftQuotas, peakMib, requestBackup } from "./house-work.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";
import { writeSparseFile } from "./sparse-file.ts";

const GiB = 1024 ** 3;
const workers = 2;
const limitMib = 400;

/** Peak resident memory of every worker process while a 20 GiB volume with 1 GiB of data is backed up, and restored. */
export async function measureMemory(say: Say): Promise<Measurement[]> {
  await using house = await openHouse({ workers, config: {}, say });
  await liftQuotas(house);
  const source = join(house.dir, "source.img");
  await writeSparseFile(source, { sizeBytes: 20 * GiB, dataBytes: GiB, seed: "memory" });
  const volumeId = await importVolume(house, source);
  await rm(source);

  const idle = (await renewWorkers(house)).map(peakMib);
  say("backup of 20 GiB with 1 GiB of data");
  const backupStarted = performance.now();
  const backupId = await requestBackup(house, volumeId);
  await house.finished({ kind: "backup-create", backupId });
  const backupSeconds = (performance.now() - backupStarted) / 1000;
  const backup = house.workers.slice(-workers).map(peakMib);

  const fresh = await renewWorkers(house);
  say("restore of it");
  const restoreStarted = performance.now();
  const { restore } = await house.call<{ restore: { volume_id: string } }>(
    "POST",
    `/v3/${project}/backups/${backupId}/restore`,
    { restore: {} },
  );
  await house.finished({ kind: "backup-restore", volumeId: restore.volume_id });
  const restoreSeconds = (performance.now() - restoreStarted) / 1000;
  const restored = fresh.map(peakMib);

  const perWorker = (values: number[]): string => `per worker: ${values.map((value) => value.toFixed(0)).join(", ")}`;
  return [
    measured("worker memory, idle", [Math.max(...idle)], { unit: "MiB", note: perWorker(idle) }),
    measured("worker memory, backup", [Math.max(...backup)], {
      unit: "MiB",
      atMost: limitMib,
      note: perWorker(backup),
    }),
    measured("worker memory, restore", [Math.max(...restored)], {
      unit: "MiB",
      atMost: limitMib,
      note: perWorker(restored),
    }),
    measured("backup of that volume", [backupSeconds], { unit: "s" }),
    measured("restore of that volume", [restoreSeconds], { unit: "s" }),
  ];
}

/** The peak is of a process's whole life: new processes start a new one. */
async function renewWorkers(house: House) {
  await Promise.all(house.workers.map((worker) => worker.stop()));
  return Promise.all(Array.from({ length: workers }, () => house.startWorker()));
}
