import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { Vitals } from "@tephra/control/process";
import type { Program } from "../../../scripts/spawn-program.ts";
import { hangingPlaces, serverFaults } from "./faults.ts";
import { isClean, reportOf } from "./report.ts";
import { briskConfig, type FaultHouse, newTally, openFaultHouse, runHistory, type Tally } from "./runs.ts";
import { storeKinds } from "./store.ts";

const { values } = parseArgs({
  options: {
    seed: { type: "string" },
    minutes: { type: "string", default: "10" },
    store: { type: "string", default: "posix" },
  },
});
const seed = Number(values.seed ?? Math.floor(Math.random() * 1e9));
const minutes = Number(values.minutes);
const store = storeKinds.find((kind) => kind === values.store);
if (!Number.isSafeInteger(seed) || !(minutes > 0) || store === undefined) {
  throw new Error(`usage: npm run chaos -- [--seed S] [--minutes M] [--store ${storeKinds.join("|")}]`);
}
const say = (line: string): void => void process.stdout.write(`chaos: ${line}\n`);

const workers = 3;
/** Users at once in the soak: each has a task under way nearly always. */
const soakUsers = 8;
const vitalsMs = 5_000;
const limits = { growthMib: 24, growthDescriptors: 8, delayMs: 100 };

/** What is known of a process that nothing happens to, at one moment. */
interface Sample {
  atMinutes: number;
  mib: number;
  descriptors: number;
}

interface Watched {
  name: string;
  program: Program;
  samples: Sample[];
}

/** Null when the process has ended meanwhile, as some do here. */
function sampleOf({ pid }: Program, atMinutes: number): Sample | null {
  if (!existsSync(`/proc/${pid}/status`)) return null;
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return { atMinutes, mib: Number(kib) / 1024, descriptors: readdirSync(`/proc/${pid}/fd`).length };
}

/** The lines of its own log in which a process told how it was. */
function vitalsOf(house: FaultHouse, program: Program): Vitals[] {
  const lines = readFileSync(join(house.dir, "log", `${program.name}.log`), "utf8").split("\n");
  return lines
    .filter((line) => line.includes('"process.vitals"') && line.includes(`"pid":${program.pid},`))
    .map((line) => JSON.parse(line) as Vitals);
}

const meanOf = (items: readonly Sample[], of: (sample: Sample) => number): number =>
  items.reduce((sum, item) => sum + of(item), 0) / Math.max(1, items.length);

/** By least squares, in MiB an hour. */
function slopeOf(samples: readonly Sample[]): number {
  const at = meanOf(samples, ({ atMinutes }) => atMinutes);
  const mib = meanOf(samples, (sample) => sample.mib);
  const spread = samples.reduce((sum, sample) => sum + (sample.atMinutes - at) ** 2, 0);
  const shared = samples.reduce((sum, sample) => sum + (sample.atMinutes - at) * (sample.mib - mib), 0);
  return spread === 0 ? 0 : (shared / spread) * 60;
}

/** Says how a process was, and whether that is flat. The first samples fill caches and pools: what comes after must not grow. */
function judge(house: FaultHouse, { name, program, samples }: Watched): boolean {
  const settled = samples.slice(Math.floor(samples.length / 4));
  const third = Math.ceil(settled.length / 3);
  const [first, last] = [settled.slice(0, third), settled.slice(-third)];
  const grown = (of: (sample: Sample) => number): number => meanOf(last, of) - meanOf(first, of);
  const vitals = vitalsOf(house, program);
  const delays = vitals.map((line) => line.loop_delay_p99_ms).sort((a, b) => a - b);
  const typical = delays[delays.length >> 1] ?? Number.NaN;
  const worst = delays.at(-1) ?? Number.NaN;
  const part = Math.ceil(vitals.length / 4);
  const median = (items: readonly Vitals[], of: (line: Vitals) => number): string =>
    String(items.map(of).sort((a, b) => a - b)[items.length >> 1] ?? "-");
  const within = (["heap_mib", "external_mib"] as const)
    .map(
      (key) =>
        `${key.slice(0, -4)} ${median(vitals.slice(part, 2 * part), (line) => line[key])} → ${median(vitals.slice(-part), (line) => line[key])}`,
    )
    .join(", ");
  const isFlat =
    grown(({ mib }) => mib) <= limits.growthMib &&
    grown(({ descriptors }) => descriptors) <= limits.growthDescriptors &&
    typical < limits.delayMs;
  const mib = `${meanOf(first, (s) => s.mib).toFixed(0)} → ${meanOf(last, (s) => s.mib).toFixed(0)} MiB (${slopeOf(settled).toFixed(1)} MiB/h; ${within})`;
  const descriptors = `${meanOf(first, (s) => s.descriptors).toFixed(0)} → ${meanOf(last, (s) => s.descriptors).toFixed(0)} descriptors`;
  const delay = `event-loop delay p99 ${typical.toFixed(0)} ms (median of ${vitals.length} spans of ${vitalsMs / 1000} s; worst span ${worst.toFixed(0)} ms)`;
  process.stdout.write(`soak: ${name}: ${mib}, ${descriptors}, ${delay}: ${isFlat ? "flat" : "NOT FLAT"}\n`);
  return isFlat;
}

const tally: Tally = newTally();
let runs = 0;
let isFlat = true;
const minutesSince = (from: number): number => (performance.now() - from) / 60_000;
{
  const config = { log_level: "info", vitals_ms: vitalsMs };
  await using house = await openFaultHouse({ workers, store, say, config });
  const began = performance.now();
  // First everything may die; then, in the soak, all but the servers and the way to them lives on, to see what it comes to weigh.
  while (minutesSince(began) < minutes / 2) {
    await runHistory(house, { seed: seed + runs, tally, say });
    runs += 1;
    if (runs % 20 === 0) say(reportOf(tally, { seed, runs }).at(-1) ?? "");
  }
  const lasting = house.workers.filter((worker) => worker.running()).slice(0, workers);
  const spared = [...lasting, house.api()];
  const watched = spared.map(
    (program): Watched => ({ name: `${program.name} (${program.pid})`, program, samples: [] }),
  );
  const soakBegan = performance.now();
  say(`the soak begins: ${soakUsers} users, ${lasting.length} workers`);
  while (minutesSince(began) < minutes) {
    await runHistory(house, {
      seed: seed + runs,
      tally,
      say,
      spared,
      users: soakUsers,
      steps: 8,
      faultsAbout: 5,
      faults: (crew) => [
        ...serverFaults(house),
        ["a worker dies at a named point", (random) => crew.doom(random)],
        ["a worker dies at a named point", (random) => crew.doom(random)],
        hangingPlaces(crew, briskConfig.tasks.quiet_ms),
      ],
    });
    runs += 1;
    for (const each of watched) {
      const sample = sampleOf(each.program, minutesSince(soakBegan));
      if (sample !== null) each.samples.push(sample);
    }
    if (runs % 20 === 0) say(reportOf(tally, { seed, runs }).at(-1) ?? "");
  }
  process.stdout.write(`soak: ${minutesSince(soakBegan).toFixed(0)} minutes\n`);
  for (const each of watched) isFlat = judge(house, each) && isFlat;
}
for (const line of reportOf(tally, { seed, runs })) process.stdout.write(`${line}\n`);
process.exitCode = isClean(tally) && isFlat ? 0 : 1;
