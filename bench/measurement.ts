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

/** Medians of the last release by what was measured, on one kind of processor. Kept with the sources. */
interface LastRelease {
  cpu: string;
  medians: Record<string, number>;
}

const lastReleaseFile = join(root, "bench/last-release.json");

const keyOf = ({ name, note }: Measurement): string => (note === undefined ? name : `${name} (${note})`);

function readLastRelease(): LastRelease {
  if (!existsSync(lastReleaseFile)) return { cpu: "", medians: {} };
  return JSON.parse(readFileSync(lastReleaseFile, "utf8")) as LastRelease;
}

/** Keeps the medians as those that later releases are held against; those of another processor are dropped. */
export function keepAsRelease(results: readonly Measurement[]): void {
  const cpu = cpus()[0]?.model ?? "";
  const last = readLastRelease();
  const medians = last.cpu === cpu ? last.medians : {};
  for (const result of results) medians[keyOf(result)] = Number(result.value.toPrecision(4));
  const sorted = Object.fromEntries(Object.entries(medians).sort(([a], [b]) => (a < b ? -1 : 1)));
  writeFileSync(lastReleaseFile, `${JSON.stringify({ cpu, medians: sorted }, null, 2)}\n`);
}

/** The table on stdout, the same as JSON in `bench/results`. */
export function report(results: readonly Measurement[]): void {
  const last = readLastRelease();
  const comparable = last.cpu === cpus()[0]?.model;
  if (!comparable && last.cpu !== "")
    process.stdout.write(`\nThe last release was measured on another processor (${last.cpu}).\n`);
  const ratioOf = (result: Measurement): string => {
    const before = comparable ? last.medians[keyOf(result)] : undefined;
    return before === undefined || before === 0 ? "" : `${(result.value / before).toFixed(2)} x`;
  };
  const head = ["measured", "median", "unit", "lowest", "highest", "last release", "goal", "reached", "note"];
  const rows = results.map((result) => [
    result.name,
    short(result.value),
    result.unit,
    short(Math.min(...result.rounds)),
    short(Math.max(...result.rounds)),
    ratioOf(result),
    result.goal?.text ?? "",
    result.goal === undefined ? "" : result.goal.reached ? "yes" : "NO",
    result.note ?? "",
  ]);
  process.stdout.write(`\n${renderTable(head, rows)}\n`);
  const date = new Date().toISOString();
  const file = join(root, "bench/results", `${date.replaceAll(/[:.]/g, "-")}.json`);
  const machine = {
    cores: cpus().length,
    cpu: cpus()[0]?.model ?? "",
    memory_bytes: totalmem(),
    node: process.version,
  };
  mkdirSync(join(root, "bench/results"), { recursive: true });
  writeFileSync(file, `${JSON.stringify({ date, machine, results }, null, 2)}\n`);
  process.stdout.write(`\n${file}\n`);
}

function short(value: number): string {
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
