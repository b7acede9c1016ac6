import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type House, openHouse, project } from "../test/kit/house.ts";
import { GiB } from "./contenders.ts";
import { writeRandomImage } from "./engine-images.ts";
import { importVolume, liftQuotas, requestBackup } from "./house-work.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";

const MiB = 2 ** 20;
const bytesPerSecond = 20 * MiB;
/** Over which a limit is held against what went through. */
const windowSeconds = 30;
const rounds = 2;
const limitOfMain = "/ops/limits/repositories/repository/main";

/** Bandwidth limits of one repository: how exactly they hold, how soon they do, and what is left to a restore beside backups. */
export async function measureLimits(say: Say): Promise<Measurement[]> {
  const home = await mkdtemp(join(tmpdir(), "tephra-bench-"));
  try {
    return await measureIn(home, say);
  } finally {
    await rm(home, { recursive: true });
  }
}

async function measureIn(home: string, say: Say): Promise<Measurement[]> {
  const image = join(home, "volume.img");
  await writeRandomImage(image, GiB);
  const results: Measurement[] = [];
  for (const workers of [1, 4]) {
    // Backups have more ranges than there are slots.
    const config = {
      range_bytes: 64 * MiB,
      repository: { compression: "none", object_bytes: 4 * MiB },
      worker: { slots: 2 },
    };
    await using house = await openHouse({ workers, config, importRoots: [home], say });
    await liftQuotas(house);
    const volumeId = await importVolume(house, image);
    const shares: number[] = [];
    for (let round = 1; round <= rounds; round += 1) {
      say(`${workers} workers, 20 MiB/s, round ${round} of ${rounds}`);
      await setLimit(house, bytesPerSecond);
      const backup = await requestBackup(house, volumeId);
      await sleep(5_000);
      shares.push((await throughput(house.dir, windowSeconds)) / bytesPerSecond);
      await house.call("DELETE", limitOfMain);
      await house.finished({ kind: "backup-create", backupId: backup });
    }
    const name = `a repository's limit of 20 MiB/s over ${windowSeconds} s, ${workers} workers: share of it that is used`;
    const off = shares.map((share) => Math.abs(share - 1));
    results.push(
      measured(name, shares, { unit: "×" }),
      measured(`the same: how far off`, off, { unit: "", atMost: 0.05 }),
    );
    if (workers === 4) results.push(...(await measureRestoreBeside(house, image, say)));
  }
  return results;
}

async function setLimit(house: House, rate: number): Promise<void> {
  await house.call("PUT", limitOfMain, { bytes_per_second: rate });
  await sleep(4_000);
}

/** Bytes a second that the repository grows by. */
async function throughput(path: string, seconds: number): Promise<number> {
  const [before, began] = [await bytesBelow(path), performance.now()];
  await sleep(seconds * 1000);
  return ((await bytesBelow(path)) - before) / ((performance.now() - began) / 1000);
}

async function bytesBelow(path: string): Promise<number> {
  let bytes = 0;
  for (const entry of await readdir(path, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    // A temporary file may have got its name meanwhile.
    bytes += (await stat(join(entry.parentPath, entry.name)).catch(() => ({ size: 0 }))).size;
  }
  return bytes;
}

/** A restore, alone and while two backups go into the repository: at a limit, and without one. */
async function measureRestoreBeside(house: House, image: string, say: Say): Promise<Measurement[]> {
  const [first, second] = [await importVolume(house, image), await importVolume(house, image)];
  const backup = await requestBackup(house, first);
  await house.finished({ kind: "backup-create", backupId: backup });
  const restore = async (): Promise<number> => {
    const began = performance.now();
    const { restore: asked } = await house.call<{ restore: { volume_id: string } }>(
      "POST",
      `/v3/${project}/backups/${backup}/restore`,
      { restore: {} },
    );
    await house.finished({ kind: "backup-restore", volumeId: asked.volume_id });
    return (performance.now() - began) / 1000;
  };
  const measure = async (name: string, beforeBackups: () => Promise<void>): Promise<Measurement> => {
    const shares: number[] = [];
    const notes: string[] = [];
    for (let round = 1; round <= rounds; round += 1) {
      say(`a restore ${name}, round ${round} of ${rounds}: alone`);
      await setLimit(house, 4 * bytesPerSecond);
      await beforeBackups();
      const alone = await restore();
      say("the same beside backups");
      const beside = [await requestBackup(house, first), await requestBackup(house, second)];
      await sleep(1_000);
      const together = await restore();
      await house.call("DELETE", limitOfMain).catch(() => {});
      for (const each of beside) await house.finished({ kind: "backup-create", backupId: each });
      shares.push(alone / together);
      notes.push(`${alone.toFixed(1)} s alone, ${together.toFixed(1)} s beside them`);
    }
    const title = `a restore ${name} beside two backups: share of its speed alone`;
    return measured(title, shares, { unit: "×", atLeast: 0.9, note: notes.join("; ") });
  };
  return [
    await measure("at a limit of 80 MiB/s", async () => {}),
    await measure("without a limit", async () => house.call("DELETE", limitOfMain)),
  ];
}
