import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { poll } from "../scripts/poll.ts";
import { openHouse } from "../test/kit/house.ts";
import { MiB } from "./contenders.ts";
import { importVolume, liftQuotas, peakMib, requestBackup } from "./house-work.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";
import { noiseOf } from "./sparse-file.ts";

const TiB = 1024 ** 4;
/** Pieces of data, at equal distances. */
const islands = 64;
const goals = { tasks: 1_100, planSeconds: 2, sealSeconds: 60, peakMib: 1_024 };
const hoursMax = 2;

interface TaskSums {
  kind: string;
  tasks: number;
  /** Of the longest. */
  seconds: number;
}

/**
 * A volume of 16 TiB with 64 MiB of data, backed up by two workers: into how many tasks it is cut, and how long those take that are about all
 * of it. Blocks of 1 MiB, and zeros by zstd: the hashes of smaller ones, or zeros by zlib, would take more room than the machine has. Run it on tmpfs.
 */
export async function measureHuge(say: Say, { tib = 16 }: { tib?: number } = {}): Promise<Measurement[]> {
  const home = await mkdtemp(join(tmpdir(), "tephra-bench-"));
  try {
    const config = { repository: { compression: "zstd", block_bytes: MiB } };
    await using house = await openHouse({ workers: 2, config, importRoots: [home], say });
    await liftQuotas(house);
    const image = join(home, "volume.img");
    await writeIslands(image, tib * TiB);
    const volumeId = await importVolume(house, image);
    say(`a backup of ${tib} TiB`);
    const began = performance.now();
    const backupId = await requestBackup(house, volumeId);
    const state = async (): Promise<string | undefined> => {
      const [row] = await house.sql(
        "SELECT state FROM operations WHERE backup_id = $1 AND state NOT IN ('queued', 'running')",
        [backupId],
      );
      return row?.["state"];
    };
    const ended = await poll(state, { what: "the backup ends", timeoutMs: hoursMax * 3_600_000, everyMs: 500 });
    if (ended !== "succeeded") throw new Error(`the backup ${ended}`);
    const seconds = (performance.now() - began) / 1000;
    const sums = await house.sql<TaskSums>(
      `SELECT t.kind, count(*)::int AS tasks, max(extract(epoch FROM t.finished_at - t.started_at))::float8 AS seconds
       FROM tasks t JOIN operations o ON o.id = t.operation_id WHERE o.backup_id = $1 AND t.finished_at IS NOT NULL GROUP BY t.kind`,
      [backupId],
    );
    const of = (kind: string): TaskSums =>
      sums.find((each) => each.kind === kind) ?? { kind, tasks: 0, seconds: Number.NaN };
    const name = `a volume of ${tib} TiB, nearly all of it a hole`;
    const most = Math.max(...sums.map(({ tasks }) => tasks));
    return [
      measured(`${name}: backup`, [seconds], { unit: "s" }),
      measured(`${name}: tasks of a kind`, [most], { unit: "", atMost: goals.tasks }),
      measured(`${name}: planning`, [of("plan-backup").seconds], { unit: "s", atMost: goals.planSeconds }),
      measured(`${name}: seal`, [of("seal").seconds], { unit: "s", atMost: goals.sealSeconds }),
      measured(`${name}: most memory of a worker`, [Math.max(...house.workers.map(peakMib))], {
        unit: "MiB",
        atMost: goals.peakMib,
      }),
    ];
  } finally {
    await rm(home, { recursive: true, force: true });
  }
}

async function writeIslands(path: string, sizeBytes: number): Promise<void> {
  await using file = await open(path, "w");
  await file.truncate(sizeBytes);
  const noise = noiseOf("huge");
  const stride = Math.floor(sizeBytes / islands / 4096) * 4096;
  for (let island = 0; island < islands; island += 1) await file.write(noise(MiB), 0, MiB, island * stride);
}
