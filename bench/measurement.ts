import { mkdirSync, writeFileSync } from "node:fs";
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

/** The table on stdout, the same as JSON in `bench/results`. */
export function report(results: readonly Measurement[]): void {
  const head = ["measured", "median", "unit", "lowest", "highest", "goal", "reached", "note"];
  const rows = results.map(({ name, value, unit, rounds, goal, note }) => [
    name,
    short(value),
    unit,
    short(Math.min(...rounds)),
    short(Math.max(...rounds)),
    goal?.text ?? "",
    goal === undefined ? "" : goal.reached ? "yes" : "NO",
    note ?? "",
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
