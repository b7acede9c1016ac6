import { readdirSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import type { Program } from "../../scripts/spawn-program.ts";
import { isClean, reportOf } from "./report.ts";
import { newTally, openFaultHouse, runHistory } from "./runs.ts";

const { values } = parseArgs({ options: { seed: { type: "string" }, minutes: { type: "string", default: "10" } } });
const seed = Number(values.seed ?? Math.floor(Math.random() * 1e9));
const minutes = Number(values.minutes);
if (!Number.isSafeInteger(seed) || !(minutes > 0)) throw new Error("usage: npm run chaos -- [--seed S] [--minutes M]");
const say = (line: string): void => void process.stdout.write(`chaos: ${line}\n`);

/** Resident memory in MiB and open descriptors of a process that nothing happens to. */
interface Sample {
  mib: number;
  descriptors: number;
}

function sampleOf({ pid }: Program): Sample {
  const kib = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return { mib: Number(kib) / 1024, descriptors: readdirSync(`/proc/${pid}/fd`).length };
}

const tally = newTally();
const samples: Sample[] = [];
let runs = 0;
{
  await using house = await openFaultHouse(3, say);
  const [spared] = house.workers;
  if (spared === undefined) throw new Error("there is no worker");
  const end = performance.now() + minutes * 60_000;
  while (performance.now() < end) {
    await runHistory(house, { seed: seed + runs, tally, say, spared });
    runs += 1;
    samples.push(sampleOf(spared));
    if (runs % 20 === 0) say(reportOf(tally, { seed, runs }).at(-1) ?? "");
  }
}
for (const line of reportOf(tally, { seed, runs })) process.stdout.write(`${line}\n`);
// The first runs fill caches and pools: what comes after them must not grow.
const settled = samples.slice(Math.floor(samples.length / 5));
const parts = { "first third": settled.slice(0, settled.length / 3), "last third": settled.slice(-settled.length / 3) };
for (const [name, part] of Object.entries(parts)) {
  const mean = (of: (sample: Sample) => number): string =>
    (part.reduce((sum, sample) => sum + of(sample), 0) / part.length).toFixed(1);
  say(
    `a worker that lived all along, ${name}: ${mean((s) => s.mib)} MiB resident, ${mean((s) => s.descriptors)} descriptors`,
  );
}
process.exitCode = isClean(tally) ? 0 : 1;
