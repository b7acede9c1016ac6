import { randomUUID } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { poll } from "../../../scripts/poll.ts";
import type { Program } from "../../../scripts/spawn-program.ts";
import { randomBytesOf } from "../../kit/bytes.ts";
import { project } from "../../kit/house.ts";
import { Random } from "../fuzz/random.ts";
import { findCorrupt, findLost, findOrphans, findStuck } from "./checker.ts";
import { Crew, pointsOf } from "./faults.ts";
import { type AskedBackup, graceMs, rested, rowsOf, scribble, sha256Of, writeImage } from "./model.ts";
import { isClean, reportOf } from "./report.ts";
import {
  addLosses,
  addNew,
  bytesTwiceIn,
  type FaultHouse,
  type FaultOptions,
  newTally,
  openFaultHouse,
  reap,
  removeAll,
  runHistory,
  type Tally,
} from "./runs.ts";

/** A volume with a full backup, for operations to be done with. */
interface Ground {
  house: FaultHouse;
  random: Random;
  /** Of several ranges. */
  volume: string;
  sizeBytes: number;
  /** Of one range. */
  small: string;
  asked: AskedBackup[];
  serial: number;
}

/** An operation: what must be there before, what is asked for, and the kinds of its tasks, in the order of its life. */
interface Deed {
  name: string;
  kinds: readonly string[];
  prepare?: (ground: Ground) => Promise<string>;
  /** `prepared` is what `prepare` gave. */
  begin: (ground: Ground, prepared: string) => Promise<void>;
  /** Refused where no worker lives: asked for when the first one is there. */
  wantsWorker?: boolean;
  /** Asked for when the first worker has died, before another one comes. */
  thereupon?: (ground: Ground) => Promise<void>;
}

const base = `/v3/${project}`;
interface ExportRecord {
  backup_service: string;
  backup_url: string;
}
/** Nothing to do for so long: whoever was to die on the way has not. */
const idleMs = 2_000;

async function backUp(
  ground: Ground,
  options: { volume?: string; incremental?: boolean; dropped?: boolean } = {},
): Promise<string> {
  const { house, random, sizeBytes, asked } = ground;
  const { volume = ground.volume } = options;
  ground.serial += 1;
  const name = `backup ${ground.serial}`;
  await rested(house, "volumes", volume);
  if (volume === ground.volume) await scribble(house.volumeFile(volume), sizeBytes, random, name);
  const sha256 = await sha256Of(house.volumeFile(volume));
  const body = { backup: { volume_id: volume, name, incremental: options.incremental === true } };
  const { backup } = await house.call<{ backup: { id: string } }>("POST", `${base}/backups`, body);
  asked.push({ name, id: backup.id, sha256, dropped: options.dropped === true });
  return backup.id;
}

async function backedUp(ground: Ground): Promise<string> {
  const id = await backUp(ground, { dropped: true });
  await rested(ground.house, "backups", id);
  return id;
}

/** The record of a backup under another id: two rows then share its objects. */
async function importTwin({ house, asked }: Ground): Promise<void> {
  const [original] = asked;
  const path = `${base}/backups/${original?.id}/export_record`;
  const { "backup-record": record } = await house.call<{ "backup-record": ExportRecord }>("GET", path);
  const twin = { ...JSON.parse(Buffer.from(record.backup_url, "base64").toString()), id: randomUUID() };
  const body = { ...record, backup_url: Buffer.from(JSON.stringify(twin)).toString("base64") };
  await house.call("POST", `${base}/backups/import_record`, { "backup-record": body });
  asked.push({ name: "twin", id: twin.id, sha256: original?.sha256 ?? "", dropped: false });
}

const available = ({ asked }: Ground): string => asked.find(({ dropped }) => !dropped)?.id ?? "";

const made = async ({ house }: Ground, kind: string, body: object): Promise<string> => {
  const answer = await house.call<Record<string, { id: string }>>("POST", `${base}/${kind}s`, { [kind]: body });
  const id = answer[kind]?.id ?? "";
  await poll(
    async () => {
      const [row] = await rowsOf<{ status: string }>(house, `SELECT status FROM ${kind}s WHERE id = $1`, [id]);
      return row?.status === "available";
    },
    { what: `${kind} ${id} is available`, timeoutMs: graceMs },
  );
  return id;
};

const remove = ({ house }: Ground, path: string): Promise<unknown> => house.call("DELETE", `${base}/${path}`);

const deeds: readonly Deed[] = [
  {
    name: "create",
    kinds: ["plan-backup", "copy", "seal", "tidy"],
    begin: async (ground) => void (await backUp(ground)),
  },
  {
    name: "create of one range",
    kinds: ["plan-backup"],
    begin: async (ground) => void (await backUp(ground, { volume: ground.small })),
  },
  {
    name: "incremental",
    kinds: ["plan-backup", "copy", "seal", "tidy"],
    begin: async (ground) => void (await backUp(ground, { incremental: true })),
  },
  {
    name: "restore",
    kinds: ["plan-restore", "restore", "publish", "tidy"],
    begin: async (ground) =>
      void (await ground.house.call("POST", `${base}/backups/${available(ground)}/restore`, { restore: {} })),
  },
  {
    name: "import",
    kinds: ["import-backup"],
    begin: importTwin,
    wantsWorker: true,
  },
  {
    name: "delete",
    kinds: ["remove-backup"],
    prepare: backedUp,
    begin: async (ground, id) => void (await remove(ground, `backups/${id}`)),
  },
  {
    name: "cancel",
    kinds: ["copy", "tidy", "remove-backup"],
    begin: async (ground) => void (await backUp(ground, { dropped: true })),
    thereupon: async ({ house, asked }) => {
      const path = `${base}/backups/${asked.at(-1)?.id}/action`;
      await house.call("POST", path, { "os-force_delete": {} });
    },
  },
  ...(["deep", "drill"] as const).map(
    (mode): Deed => ({
      name: `verify (${mode})`,
      kinds: ["plan-verify", "verify", "conclude-verify", "tidy"],
      begin: async (ground) =>
        void (await ground.house.call("POST", `/ops/backups/${available(ground)}/verify`, { mode })),
    }),
  ),
  {
    name: "create volume",
    kinds: ["provision-volume"],
    begin: async ({ house }) => void (await house.call("POST", `${base}/volumes`, { volume: { size: 1 } })),
  },
  {
    name: "import volume",
    kinds: ["import-volume"],
    begin: async ({ house }) => {
      const body = { path: join(house.dir, "images", "ground.img"), project_id: project };
      await house.call("POST", "/ops/volumes/import", body);
    },
  },
  {
    name: "adopt volume",
    kinds: ["adopt-volume"],
    begin: async ({ house }) => {
      const body = { path: join(house.dir, "images", "ground.img"), id: randomUUID(), project_id: project };
      await house.call("POST", "/ops/volumes/import", body);
    },
  },
  {
    name: "export volume",
    kinds: ["export-volume"],
    begin: async ({ house, volume }) => {
      await rested(house, "volumes", volume);
      const path = join(house.dir, "images", `exported-${randomUUID()}.img`);
      await house.call("POST", `/ops/volumes/${volume}/export`, { path });
    },
  },
  {
    name: "clone volume",
    kinds: ["clone-volume"],
    begin: async ({ house, volume }) => {
      await rested(house, "volumes", volume);
      await house.call("POST", `${base}/volumes`, { volume: { size: 1, source_volid: volume } });
    },
  },
  {
    name: "extend volume",
    kinds: ["extend-volume"],
    prepare: (ground) => made(ground, "volume", { size: 1 }),
    begin: async ({ house }, id) =>
      void (await house.call("POST", `${base}/volumes/${id}/action`, { "os-extend": { new_size: 2 } })),
  },
  {
    name: "delete volume",
    kinds: ["remove-volume"],
    prepare: (ground) => made(ground, "volume", { size: 1 }),
    begin: async (ground, id) => void (await remove(ground, `volumes/${id}`)),
  },
  {
    name: "take snapshot",
    kinds: ["take-snapshot"],
    begin: async ({ house, volume }) => {
      await rested(house, "volumes", volume);
      await house.call("POST", `${base}/snapshots`, { snapshot: { volume_id: volume } });
    },
  },
  {
    name: "delete snapshot",
    kinds: ["remove-snapshot"],
    prepare: (ground) => made(ground, "snapshot", { volume_id: ground.volume }),
    begin: async (ground, id) => void (await remove(ground, `snapshots/${id}`)),
  },
  {
    name: "reap",
    kinds: ["reap-repository"],
    prepare: async (ground) => {
      // Something to be removed: what a restore has left that nobody knows of.
      writeFileSync(join(ground.house.dir, "volumes", ".restore-00000000-0000-4000-8000-000000000000-1"), "");
      return "";
    },
    begin: async ({ house }) => void (await house.call("POST", "/ops/repositories/main/reap", { dry_run: false })),
  },
  {
    name: "rescan",
    kinds: ["rescan-repository"],
    begin: async ({ house }) => void (await house.call("POST", "/ops/repositories/main/rescan", {})),
  },
];

/** Operations whose tasks of a kind have nothing to write: what is planned for others to do, and what is only read. */
const writeless: Readonly<Record<string, readonly string[]>> = {
  create: ["plan-backup"],
  incremental: ["plan-backup"],
  "verify (deep)": ["verify"],
  // The first worker that dies is the last that copies.
  cancel: ["copy", "copy.reporting", "copy.done"],
};

const pointsIn = ({ name, kinds }: Deed): string[] =>
  kinds.flatMap(pointsOf).filter((point) => !writeless[name]?.includes(point));

async function prepareGround(house: FaultHouse, random: Random): Promise<Ground> {
  const folder = join(house.dir, "images");
  mkdirSync(folder, { recursive: true });
  const imported = async (path: string): Promise<string> => {
    const body = { path, project_id: project };
    const { operation } = await house.call<{ operation: { id: string } }>("POST", "/ops/volumes/import", body);
    return (await house.finished({ id: operation.id })).volume_id ?? "";
  };
  const image = join(folder, "ground.img");
  const sizeBytes = await writeImage(image, random, "ground", 4_000_000);
  const smallImage = join(folder, "small.img");
  writeFileSync(smallImage, randomBytesOf("small", 400_000));
  const volume = await imported(image);
  const ground: Ground = {
    house,
    random,
    volume,
    sizeBytes,
    small: await imported(smallImage),
    asked: [],
    serial: 0,
  };
  await rested(house, "backups", await backUp(ground));
  return ground;
}

/** Waits until a worker has died; false when there was nothing left for it to do. */
async function dies(house: FaultHouse, doomed: Program): Promise<boolean> {
  let idleSince: number | null = null;
  const over = async (): Promise<boolean> => {
    if (!doomed.running()) return true;
    const unfinished = "SELECT 1 FROM tasks WHERE state IN ('ready', 'dispatched', 'running', 'blocked') LIMIT 1";
    const isIdle = (await rowsOf(house, unfinished)).length === 0;
    idleSince = isIdle ? (idleSince ?? performance.now()) : null;
    return idleSince !== null && performance.now() - idleSince > idleMs;
  };
  await poll(over, { what: "a worker has died or nothing is left to do", timeoutMs: graceMs, everyMs: 20 });
  return !doomed.running();
}

/**
 * One operation in whose life the only worker dies at each of the points, one after the other: the next goes on from there. Another one
 * brings it to its end. Returns the points that were not reached.
 */
async function dieAtEach(ground: Ground, crew: Crew, deed: Deed): Promise<string[]> {
  const { house } = ground;
  const missed: string[] = [];
  await crew.fill();
  const prepared = (await deed.prepare?.(ground)) ?? "";
  await findStuck(house);
  await crew.stopAll();
  if (!deed.wantsWorker) await deed.begin(ground, prepared);
  for (const [index, point] of pointsIn(deed).entries()) {
    const doomed = await crew.startDoomed(`${point}:1`);
    if (index === 0 && deed.wantsWorker) await deed.begin(ground, prepared);
    if (!(await dies(house, doomed))) {
      missed.push(`${deed.name} at ${point}`);
      await doomed.stop();
    }
    if (index === 0) await deed.thereupon?.(ground);
  }
  await crew.fill();
  return missed;
}

async function check(ground: Ground, tally: Tally): Promise<void> {
  const { house, asked } = ground;
  const { findings } = tally;
  findings.stuck.push(...(await findStuck(house)));
  findings.lost.push(...(await findLost(house, asked)));
  const { corrupt, exact, failed } = await findCorrupt(house, asked);
  findings.corrupt.push(...corrupt);
  tally.asked += asked.length;
  tally.exact += exact;
  tally.failed += failed;
  await reap(house, findings);
  addNew(findings.orphans, await findOrphans(house));
}

/** The worker dies at every named point of every operation. */
async function killAtPoints(house: FaultHouse, { seed, say }: FaultOptions, tally: Tally): Promise<string[]> {
  const crew = new Crew(house, { wanted: 1 });
  await crew.fill();
  const ground = await prepareGround(house, new Random(seed));
  const missed: string[] = [];
  let points = 0;
  for (const deed of deeds) {
    const began = performance.now();
    missed.push(...(await dieAtEach(ground, crew, deed)));
    points += pointsIn(deed).length;
    tally.findings.stuck.push(...(await findStuck(house)));
    say(`${deed.name}: ${pointsIn(deed).length} points in ${((performance.now() - began) / 1000).toFixed(0)} s`);
  }
  await crew.settled();
  tally.faults["a worker dies at a named point"] = points - missed.length;
  await check(ground, tally);
  tally.bytesTwice += await bytesTwiceIn(house);
  addLosses(tally, crew);
  await crew.fill();
  await removeAll(house);
  await rowsOf(house, "DELETE FROM operations");
  return missed;
}

/** SIGKILL of workers at every named point of every operation, and at as many random moments (200) of histories. */
export async function runKills(options: FaultOptions): Promise<boolean> {
  const { seed, store, say } = options;
  const wanted = options.runs ?? 200;
  const tally = newTally();
  let runs = 0;
  let missed: string[];
  {
    await using house = await openFaultHouse({ workers: 2, store, say });
    missed = await killAtPoints(house, options, tally);
    const killed = (): number => tally.faults["a worker is killed"] ?? 0;
    while (killed() < wanted) {
      await runHistory(house, {
        seed: seed + runs,
        tally,
        say,
        users: 4,
        steps: 8,
        faultsAbout: 20,
        faults: (crew) => [["a worker is killed", (random) => crew.kill(random)]],
      });
      runs += 1;
      if (runs % 5 === 0) say(`${killed()} of ${wanted} kills at random moments`);
    }
  }
  for (const point of missed) process.stdout.write(`not reached: ${point}\n`);
  for (const line of reportOf(tally, { seed, runs, name: "kills" })) process.stdout.write(`${line}\n`);
  return isClean(tally) && missed.length === 0;
}
