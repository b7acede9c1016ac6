import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type House, openHouse, project } from "../test/kit/house.ts";
import { backUp, GiB, restore, timed } from "./contenders.ts";
import { changeImage, writeRandomImage } from "./engine-images.ts";
import { importVolume, liftQuotas } from "./house-work.ts";
import { type Measurement, measured, median, type Say } from "./measurement.ts";

const sizes = [
  { gib: 1, rounds: 5 },
  { gib: 10, rounds: 3 },
];
const percentChanged = 1;
/** What the service may add to the engine alone: a share, and seconds. */
const addedShareMax = 1.2;
const addedSecondsMax = 0.5;

type Work = "full" | "incremental" | "restore";
const works: readonly Work[] = ["full", "incremental", "restore"];

/** Seconds of each round. */
type Times = Record<Work, number[]>;

const newTimes = (): Times => ({ full: [], incremental: [], restore: [] });

/**
 * One volume of 1 GiB of noise, and one of 10 GiB, uncompressed, from the request to the end of its operation, with one worker and with two, and the engine
 * alone with the same bytes: what the service adds. The command line, with its start; and both in the folder of temporary files.
 */
export async function measureService(say: Say): Promise<Measurement[]> {
  const home = await mkdtemp(join(tmpdir(), "tephra-bench-"));
  try {
    const config = { repository: { compression: "none" } };
    await using house = await openHouse({ workers: 1, config, importRoots: [home], say });
    await liftQuotas(house);
    const results: Measurement[] = [];
    for (const size of sizes) results.push(...(await measureSize(house, size, { home, say })));
    return results;
  } finally {
    await rm(home, { recursive: true, force: true });
  }
}

/** The engine alone reads the file of the service's volume: the disk need not hold it twice. */
async function measureSize(
  house: House,
  { gib, rounds }: { gib: number; rounds: number },
  { home, say }: { home: string; say: Say },
): Promise<Measurement[]> {
  const image = join(home, "volume.img");
  await writeRandomImage(image, gib * GiB);
  const volumeId = await importVolume(house, image);
  await rm(image);
  const [alone, one, two] = [newTimes(), newTimes(), newTimes()];
  for (let round = 1; round <= rounds; round += 1) {
    say(`${gib} GiB, round ${round} of ${rounds}`);
    await engineAlone(home, { image: house.volumeFile(volumeId), round }, alone);
    await throughService(house, { volumeId, seed: `one ${round}` }, one);
    const helper = await house.startWorker();
    await throughService(house, { volumeId, seed: `two ${round}` }, two);
    await helper.stop();
  }
  await house.call("DELETE", `/v3/${project}/volumes/${volumeId}`);
  return works.flatMap((work) =>
    rowsOf(`${work} of ${gib} GiB`, { alone: alone[work], one: one[work], two: two[work] }),
  );
}

function rowsOf(name: string, { alone, one, two }: { alone: number[]; one: number[]; two: number[] }): Measurement[] {
  const atMost = addedShareMax * median(alone) + addedSecondsMax;
  const note = `the engine alone ${median(alone).toFixed(2)} s; at most ${addedShareMax} times that and ${addedSecondsMax} s`;
  return [
    measured(`${name}: the engine alone`, alone, { unit: "s" }),
    measured(`${name}: the service, one worker`, one, { unit: "s", atMost: rounded(atMost), note }),
    measured(`${name}: the service, two workers`, two, { unit: "s", atMost: rounded(atMost), note }),
  ];
}

const rounded = (seconds: number): number => Math.round(seconds * 100) / 100;

async function engineAlone(home: string, { image, round }: { image: string; round: number }, times: Times) {
  const folder = join(home, "alone");
  await mkdir(folder);
  const repository = `posix:${join(folder, "repository")}`;
  const full = await backUp(repository, image, { compression: "none" });
  await changeImage(image, { percent: percentChanged, seed: `alone ${round}` });
  const incremental = await backUp(repository, image, { compression: "none", parent: full.id });
  times.full.push(full.seconds);
  times.incremental.push(incremental.seconds);
  times.restore.push(await restore(repository, full.id, folder));
  await rm(folder, { recursive: true });
}

async function throughService(house: House, { volumeId, seed }: { volumeId: string; seed: string }, times: Times) {
  const backedUp: string[] = [];
  for (const work of ["full", "incremental"] as const) {
    if (work === "incremental") await changeImage(house.volumeFile(volumeId), { percent: percentChanged, seed });
    times[work].push(
      await timed(async () => {
        const body = { backup: { volume_id: volumeId, incremental: work === "incremental" } };
        const { backup } = await house.call<{ backup: { id: string } }>("POST", `/v3/${project}/backups`, body);
        backedUp.push(backup.id);
        await house.finished({ kind: "backup-create", backupId: backup.id });
      }),
    );
  }
  const [full] = backedUp;
  let restored = "";
  times.restore.push(
    await timed(async () => {
      const path = `/v3/${project}/backups/${full}/restore`;
      const answer = await house.call<{ restore: { volume_id: string } }>("POST", path, { restore: {} });
      restored = answer.restore.volume_id;
      await house.finished({ kind: "backup-restore", volumeId: restored });
    }),
  );
  // The disk would be full before the last round. What builds on another goes first.
  for (const id of backedUp.toReversed()) {
    await house.call("DELETE", `/v3/${project}/backups/${id}`);
    await house.finished({ kind: "backup-delete", backupId: id });
  }
  await house.call("DELETE", `/v3/${project}/volumes/${restored}`);
}
