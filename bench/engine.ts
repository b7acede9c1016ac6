import { execFile } from "node:child_process";
import { mkdir, mkdtemp, open, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { projectNode, root } from "../scripts/bootstrap.mjs";
import { completed, runCinder } from "../test/interop/cinder.ts";
import { writeChangedImage, writeMixedImage, writeRandomImage } from "./engine-images.ts";
import { uuidOf } from "./house-work.ts";
import { type Measurement, measured, median, type Say } from "./measurement.ts";
import { writeSparseFile } from "./sparse-file.ts";

const execute = promisify(execFile);
const GiB = 1024 ** 3;
const objectBytes = 50 * 1024 * 1024;
/** Below five, medians of a machine that does other work too say nothing. */
const rounds = 5;
const incrementals = 5;
const volumeId = uuidOf("bench volume");
/** Repository and images in memory, so that no disk is measured. */
const memoryFolder = "/dev/shm";

/** A way to do one thing; returns its seconds. What it leaves behind is cleared before the next. */
interface Contender {
  name: string;
  run: (folder: string) => Promise<number>;
}

/** One line of the table of goals: ours, a real Cinder's, and others, in turn. */
interface Case {
  name: string;
  /** Times faster than Cinder. */
  goal: number;
  ours: Contender;
  cinder: Contender;
  others: Contender[];
  /** Of the volume of Cinder's run that ours does, where Cinder's is too long to be waited for. */
  scale?: number;
}

/** Our command line beside a real Cinder's posix driver: 1 GiB images, objects of 50 MiB, defaults only, everything in memory. */
export async function measureEngine(say: Say): Promise<Measurement[]> {
  const home = await mkdtemp(join(memoryFolder, "tephra-bench-"));
  try {
    say("writing images");
    const images = await writeImages(home);
    const results: Measurement[] = [];
    for (const each of await casesOf(home, images)) {
      const measurements = await compare(each, home, say);
      for (const { name, value, unit, note } of measurements) say(`${name}: ${value.toFixed(2)} ${unit} ${note ?? ""}`);
      results.push(...measurements);
    }
    // What comes now needs the memory that the images take.
    const sparse = join(home, "sparse");
    for (const name of await readdir(home)) await rm(join(home, name), { recursive: true });
    await mkdir(sparse);
    return [...results, ...(await measureMemoryOfSparse(sparse, say))];
  } finally {
    await rm(home, { recursive: true, force: true });
  }
}

async function compare(each: Case, home: string, say: Say): Promise<Measurement[]> {
  say(`${each.name}: ${rounds} rounds`);
  const contenders = [each.ours, each.cinder, ...each.others];
  const seconds = contenders.map((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    for (const [index, contender] of contenders.entries()) {
      const folder = join(home, "work");
      await mkdir(folder);
      seconds[index]?.push(await contender.run(folder));
      await rm(folder, { recursive: true });
    }
  }
  const [ours = [], cinder = []] = seconds;
  const scale = each.scale ?? 1;
  const ratios = ours.map((own, round) => ((cinder[round] as number) * scale) / own);
  const minima = `minima ${Math.min(...ours).toFixed(2)} s and ${(Math.min(...cinder) * scale).toFixed(2)} s`;
  const results = [
    measured(`${each.name}: times a Cinder's speed`, ratios, { unit: "×", atLeast: each.goal, note: minima }),
  ];
  for (const [index, { name }] of contenders.entries()) {
    const values = seconds[index] as number[];
    const beside = index === 0 ? "" : `ours takes ${(median(ours) / median(values)).toFixed(2)} of it`;
    results.push(measured(`${each.name}: ${name}`, values, { unit: "s", note: beside }));
  }
  return results;
}

interface Images {
  random: string;
  mixed: string;
  /** Of the mixed image, 1 % changed. */
  changed: string;
  /** Each with 5 % of the one before changed; the first is the mixed image. */
  chain: string[];
}

async function writeImages(home: string): Promise<Images> {
  const at = (name: string): string => join(home, `${name}.img`);
  await writeRandomImage(at("random"), GiB);
  await writeMixedImage(at("mixed"), GiB);
  await writeChangedImage(at("mixed"), at("changed"), { percent: 1, seed: "1" });
  const chain = [at("mixed")];
  for (let step = 1; step <= incrementals; step++) {
    await writeChangedImage(chain.at(-1) as string, at(`chain-${step}`), { percent: 5, seed: `chain ${step}` });
    chain.push(at(`chain-${step}`));
  }
  return { random: at("random"), mixed: at("mixed"), changed: at("changed"), chain };
}

async function casesOf(home: string, images: Images): Promise<Case[]> {
  const kept = join(home, "kept");
  const full = (label: string, image: string, compression: string, goal: number, others: Contender[] = []): Case => ({
    name: `full, ${label}`,
    goal,
    ours: { name: "tephra-engine", run: async (folder) => (await backUp(folder, image, { compression })).seconds },
    cinder: { name: "cinder", run: async (folder) => (await cinderBackUp(folder, [image], compression)).seconds },
    others,
  });
  const parent = await backUp(join(kept, "ours"), images.mixed, { compression: "none" });
  const whole = parent.id;
  let newest = whole;
  for (const image of images.chain.slice(1)) {
    newest = (await backUp(join(kept, "ours"), image, { compression: "none", parent: newest })).id;
  }
  const ofCinder = await cinderBackUp(join(kept, "cinder"), images.chain, "none");
  const restore = (label: string, goal: number, id: string, records: readonly CinderRecord[]): Case => ({
    name: label,
    goal,
    ours: { name: "tephra-engine", run: (folder) => restoreOurs(join(kept, "ours"), id, folder) },
    cinder: {
      name: "cinder (verifies nothing)",
      run: (folder) => cinderRestore(join(kept, "cinder"), records, folder),
    },
    others: [],
  });
  return [
    full("none, random", images.random, "none", 6, await copiers(images.random)),
    full("zstd level 3, mixed", images.mixed, "zstd", 2.2),
    full("zlib level 6, mixed", images.mixed, "zlib", 1.8),
    {
      name: "incremental, 1 % changed, none, mixed",
      goal: 6,
      ours: {
        name: "tephra-engine",
        run: async () =>
          (await backUp(join(kept, "ours"), images.changed, { compression: "none", parent: whole })).seconds,
      },
      cinder: {
        name: "cinder",
        run: async () => cinderIncrement(join(kept, "cinder"), ofCinder.records[0] as CinderRecord, images.changed),
      },
      others: [],
    },
    restore("restore, none, mixed", 1.5, whole, ofCinder.records.slice(0, 1)),
    restore(`restore of full + ${incrementals} of 5 %, none, mixed`, 2, newest, ofCinder.records),
  ];
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return (performance.now() - started) / 1000;
}

const engineProgram = join(root, "apps/cli/dist/tephra-engine.js");

async function engine(args: readonly string[]): Promise<unknown> {
  const { stdout } = await execute(projectNode(), [engineProgram, ...args, "--json"], { maxBuffer: 2 ** 24 });
  return JSON.parse(stdout);
}

/** The whole process, start-up included. */
async function backUp(
  folder: string,
  source: string,
  options: { compression: string; parent?: string },
): Promise<{ id: string; seconds: number }> {
  const args = ["backup", "--repository", `posix:${folder}`, "--source", source, "--volume-id", volumeId];
  const more = ["--compression", options.compression, "--object-bytes", String(objectBytes)];
  const parent = options.parent === undefined ? [] : ["--parent", options.parent];
  let answer: unknown;
  const seconds = await timed(async () => {
    answer = await engine([...args, ...more, ...parent]);
  });
  return { id: (answer as { backup: { id: string } }).backup.id, seconds };
}

function restoreOurs(repository: string, id: string, folder: string): Promise<number> {
  const target = join(folder, "restored");
  return timed(() => engine(["restore", "--repository", `posix:${repository}`, "--backup", id, "--target", target]));
}

type CinderRecord = ReturnType<typeof completed.parse>;
type Step = Parameters<typeof runCinder>[1]["steps"][number];

async function cinder(folder: string, known: readonly CinderRecord[], steps: Step[]) {
  await mkdir(folder, { recursive: true });
  const settings = { backup_posix_path: folder, backup_file_size: objectBytes, backup_sha_block_size_bytes: 32_768 };
  return runCinder({ driver: "cinder.backup.drivers.posix.PosixBackupDriver", settings }, { known, steps });
}

let serial = 0;

function step(volume: string, compression: string, parentId: string | null): Step {
  serial += 1;
  const id = uuidOf(`bench backup ${serial}`);
  const places = { container: null, service_metadata: null };
  return {
    do: "backup",
    volume,
    compression,
    backup: { id, volume_id: volumeId, parent_id: parentId, ...places, size: 1 },
  };
}

/** Its own work alone: neither the start of Python nor its imports. A chain when several images are given. */
async function cinderBackUp(
  folder: string,
  images: readonly string[],
  compression: string,
): Promise<{ seconds: number; records: CinderRecord[] }> {
  const steps: Step[] = [];
  for (const image of images) {
    const last = steps.at(-1);
    steps.push(step(image, compression, last?.do === "backup" ? last.backup.id : null));
  }
  const answers = await cinder(folder, [], steps);
  const seconds = answers.reduce((sum, answer) => sum + Number(answer["seconds"]), 0);
  return { seconds, records: answers.map((answer) => completed.parse(answer)) };
}

async function cinderIncrement(folder: string, parent: CinderRecord, image: string): Promise<number> {
  const [answer] = await cinder(folder, [parent], [step(image, "none", parent.id)]);
  return Number(answer?.["seconds"]);
}

async function cinderRestore(repository: string, records: readonly CinderRecord[], folder: string): Promise<number> {
  const target = join(folder, "restored");
  await using file = await open(target, "w");
  await file.truncate(GiB);
  const id = records.at(-1)?.id as string;
  const [answer] = await cinder(repository, records, [{ do: "restore", id, target }]);
  return Number(answer?.["seconds"]);
}

/** What else copies an image: always cp, and the backup tools that are installed. */
async function copiers(image: string): Promise<Contender[]> {
  const env = { ...process.env, RESTIC_PASSWORD: "bench", BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: "yes" };
  const run = (program: string, args: readonly string[], folder: string) =>
    execute(program, args, { env: { ...env, HOME: folder, XDG_CACHE_HOME: folder, BORG_BASE_DIR: folder } });
  const all: Contender[] = [
    { name: "cp", run: (folder) => timed(() => run("cp", [image, join(folder, "copy")], folder)) },
    {
      name: "qemu-img convert",
      run: (folder) =>
        timed(() => run("qemu-img", ["convert", "-f", "raw", "-O", "raw", image, join(folder, "copy")], folder)),
    },
    {
      name: "borg, no compression",
      run: async (folder) => {
        await run("borg", ["init", "-e", "none", join(folder, "borg")], folder);
        return timed(() => run("borg", ["create", "-C", "none", `${join(folder, "borg")}::one`, image], folder));
      },
    },
    {
      name: "restic, no compression",
      run: async (folder) => {
        const at = ["-r", join(folder, "restic"), "--compression", "off"];
        await run("restic", [...at, "init"], folder);
        return timed(() => run("restic", [...at, "backup", image], folder));
      },
    },
  ];
  const found = await Promise.all(all.map(({ name }) => isInstalled(name.split(/[ ,]/)[0] as string)));
  return all.filter((_, index) => found[index]);
}

function isInstalled(program: string): Promise<boolean> {
  return execute("which", [program]).then(
    () => true,
    () => false,
  );
}

/** Peak resident memory of the same work on 1 GiB and on 1 TiB with 2 GiB of data. */
async function measureMemoryOfSparse(home: string, say: Say): Promise<Measurement[]> {
  const results: Measurement[] = [];
  const peaks: Record<string, number[]> = { backup: [], restore: [] };
  for (const [label, sizeBytes, dataBytes] of [
    ["100 GiB with 1 GiB of data", 100 * GiB, GiB],
    ["1 GiB", GiB, GiB],
    ["1 TiB with 2 GiB of data", 1024 * GiB, 2 * GiB],
  ] as const) {
    say(`${label}: time and memory`);
    const image = join(home, "sparse.img");
    const repository = `posix:${join(home, "sparse")}`;
    await writeSparseFile(image, { sizeBytes, dataBytes, seed: "sparse" });
    const backup = await peakOf(["backup", "--repository", repository, "--source", image, "--compression", "none"]);
    const id = (backup.answer as { backup: { id: string } }).backup.id;
    const goal = label.startsWith("100") ? { atMost: 20 } : {};
    results.push(measured(`backup of ${label}`, [backup.seconds], { unit: "s", ...goal }));
    results.push(measured(`backup of ${label}: memory`, [backup.mib], { unit: "MiB", atMost: 300 }));
    if (!label.startsWith("100")) {
      const target = join(home, "restored");
      const restore = await peakOf(["restore", "--repository", repository, "--backup", id, "--target", target]);
      results.push(measured(`restore of ${label}: memory`, [restore.mib], { unit: "MiB", atMost: 300 }));
      peaks["backup"]?.push(backup.mib);
      peaks["restore"]?.push(restore.mib);
      await rm(target);
    }
    await rm(join(home, "sparse"), { recursive: true });
    await rm(image);
  }
  for (const [verb, [small = 0, large = 0]] of Object.entries(peaks)) {
    results.push(measured(`${verb}: memory of 1 TiB over that of 1 GiB`, [large / small], { unit: "×", atMost: 1.15 }));
  }
  return results;
}

async function peakOf(args: readonly string[]): Promise<{ answer: unknown; seconds: number; mib: number }> {
  let output = { stdout: "", stderr: "" };
  const seconds = await timed(async () => {
    const timeArgs = ["-f", "%M", projectNode(), engineProgram, ...args, "--json"];
    output = await execute("/usr/bin/time", timeArgs, { maxBuffer: 2 ** 24 });
  });
  const kib = Number(output.stderr.trim().split("\n").at(-1));
  return { answer: JSON.parse(output.stdout), seconds, mib: kib / 1024 };
}
