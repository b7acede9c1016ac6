import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";
import { renderTable } from "../demo/table.ts";
import { root } from "../scripts/bootstrap.mjs";

/** One line of the report. */
export interface Measurement {
  name: string;
  /** Median over the rounds. */
  value: number;
  unit: string;
  /** One value per round, in their order. */
  rounds: readonly number[];
  /** What it is held against, and whether that is reached. */
  goal?: { text: string; reached: boolean };
  /** What else tells how to read it. */
  note?: string;
}

export type Say = (line: string) => void;

/** A measurement from the values of its rounds. */
export function measured(
  name: string,
  rounds: readonly number[],
  { unit, atLeast, atMost, note }: { unit: string; atLeast?: number; atMost?: number; note?: string },
): Measurement {
  const value = median(rounds);
  const goal =
    atLeast !== undefined
      ? { text: `at least ${atLeast}`, reached: value >= atLeast }
      : atMost !== undefined
        ? { text: `at most ${atMost}`, reached: value <= atMost }
        : undefined;
  return {
    name,
    value,
    unit,
    rounds,
    ...(goal === undefined ? {} : { goal }),
    ...(note === undefined ? {} : { note }),
  };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2;
}

/** The smallest value that is not exceeded by this share of all of them. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.ceil(share * sorted.length) - 1] ?? Number.NaN;
}

/** How long each of so many runs took, one after another, in milliseconds. */
export async function timesOf(runs: number, work: () => Promise<unknown>): Promise<number[]> {
  const times: number[] = [];
  for (let run = 0; run < runs; run += 1) {
    const began = performance.now();
    await work();
    times.push(performance.now() - began);
  }
  return times;
}

/** What a run was measured with. Ratios are told only between runs with the same processor and as many cores. */
interface Machine {
  cores: number;
  cpu: string;
  memory_bytes: number;
  node: string;
}

const thisMachine = (): Machine => ({
  cores: cpus().length,
  cpu: cpus()[0]?.model ?? "",
  memory_bytes: totalmem(),
  node: process.version,
});

/** A run, as it is kept in `bench/results`. */
interface Run {
  date: string;
  machine: Machine;
  /** Commit of the sources, with `-dirty` where they were changed since; null where there is no git. */
  revision: string | null;
  results: readonly Measurement[];
}

function revisionNow(): string | null {
  const { status, stdout } = spawnSync("git", ["-C", root, "describe", "--always", "--dirty", "--exclude=*"], {
    encoding: "utf8",
  });
  return status === 0 ? stdout.trim() : null;
}

export const runOf = (results: readonly Measurement[]): Run => ({
  date: new Date().toISOString(),
  machine: thisMachine(),
  revision: revisionNow(),
  results,
});

/** Medians that later runs are held against, by what was measured, on one machine. Kept with the sources. */
interface LastRelease {
  machine: Machine | null;
  medians: Record<string, { value: number; revision: string; date: string }>;
}

const lastReleaseFile = join(root, "bench/last-release.json");

const keyOf = ({ name, note }: Measurement): string => (note === undefined ? name : `${name} (${note})`);

export function readLastRelease(file = lastReleaseFile): LastRelease {
  if (!existsSync(file)) return { machine: null, medians: {} };
  return JSON.parse(readFileSync(file, "utf8")) as LastRelease;
}

const isAlike = (one: Machine | null, other: Machine): boolean =>
  one !== null && one.cpu === other.cpu && one.cores === other.cores;

/**
 * Keeps the medians of a run as those that later ones are held against; what it did not measure stays, unless it is of another machine.
 *
 * @throws where it cannot be said what was measured
 */
export function keepAsRelease({ machine, date, revision, results }: Run, file = lastReleaseFile): void {
  if (!revision || revision.endsWith("-dirty"))
    throw new Error(`only what is committed can be kept as a release: these figures are of ${revision ?? "no commit"}`);
  const last = readLastRelease(file);
  const medians = isAlike(last.machine, machine) ? last.medians : {};
  for (const result of results)
    medians[keyOf(result)] = { value: Number(result.value.toPrecision(4)), revision, date: date.slice(0, 10) };
  const sorted = Object.fromEntries(Object.entries(medians).sort(([a], [b]) => (a < b ? -1 : 1)));
  writeFileSync(file, `${JSON.stringify({ machine, medians: sorted }, null, 2)}\n`);
}

/** Keeps a run that was measured before, from its file in `bench/results`. */
export const keepRun = (path: string): void => keepAsRelease(JSON.parse(readFileSync(path, "utf8")) as Run);

/** Each result in that of the last release, and of which commits those are; empty where there is nothing to compare. */
export function ratiosOf({ machine, results }: Run, last: LastRelease): { ratios: string[]; sentence: string } {
  const none = results.map(() => "");
  if (last.machine === null) return { ratios: none, sentence: "" };
  if (!isAlike(last.machine, machine)) {
    const { cpu, cores } = last.machine;
    return { ratios: none, sentence: `The last release was measured on another machine (${cores} cores of ${cpu}).` };
  }
  const before = results.map((result) => last.medians[keyOf(result)]);
  const ratios = results.map(({ value }, i) => {
    const then = before[i]?.value ?? 0;
    return then === 0 ? "" : `${(value / then).toFixed(2)} x`;
  });
  const commits = new Set(before.flatMap((kept) => (kept ? [`${kept.revision} of ${kept.date}`] : [])));
  return { ratios, sentence: commits.size === 0 ? "" : `The last release is ${[...commits].join(", ")}.` };
}

/** The table on stdout, the same as JSON in `bench/results`. */
export function report(run: Run): void {
  const { results, date } = run;
  const { ratios, sentence } = ratiosOf(run, readLastRelease());
  if (sentence !== "") process.stdout.write(`\n${sentence}\n`);
  const head = ["measured", "median", "unit", "lowest", "highest", "last release", "goal", "reached", "note"];
  const rows = results.map((result, i) => [
    result.name,
    short(result.value),
    result.unit,
    short(Math.min(...result.rounds)),
    short(Math.max(...result.rounds)),
    ratios[i] ?? "",
    result.goal?.text ?? "",
    result.goal === undefined ? "" : result.goal.reached ? "yes" : "NO",
    result.note ?? "",
  ]);
  process.stdout.write(`\n${renderTable(head, rows)}\n`);
  const file = join(root, "bench/results", `${date.replaceAll(/[:.]/g, "-")}.json`);
  mkdirSync(join(root, "bench/results"), { recursive: true });
  writeFileSync(file, `${JSON.stringify(run, null, 2)}\n`);
  process.stdout.write(`\n${file}\n`);
}

function short(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
