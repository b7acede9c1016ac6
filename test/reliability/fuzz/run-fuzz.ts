import { setImmediate } from "node:timers/promises";
import { type Fuzzed, isAnswer } from "./parsers.ts";
import { mutate, Random } from "./random.ts";

export interface FuzzReport {
  name: string;
  inputs: number;
  /** Inputs that were accepted; the others were refused with an error that is meant for it. */
  accepted: number;
  slowestMs: number;
  /** The first crash, with what repeats it. */
  crash: { index: number; input: string; error: unknown } | null;
}

const turnInputs = 16;

/** Feeds a parser so many inputs made from a seed. Input number n depends on the seed and n alone. */
export async function fuzz(fuzzed: Fuzzed, options: { seed: number; inputs: number }): Promise<FuzzReport> {
  const report: FuzzReport = { name: fuzzed.name, inputs: options.inputs, accepted: 0, slowestMs: 0, crash: null };
  for (let index = 0; index < options.inputs; index++) {
    // Memory is given back between turns of the event loop, which is where an engine's threads are after every object.
    if (index % turnInputs === 0) await setImmediate();
    const random = new Random(Math.imul(options.seed + index, 2654435761));
    const input = mutate(fuzzed.seeds, random);
    const started = performance.now();
    try {
      await fuzzed.parse(input, random);
      report.accepted++;
    } catch (error) {
      if (!isAnswer(error)) report.crash ??= { index, input: input.toString("base64"), error };
    }
    report.slowestMs = Math.max(report.slowestMs, performance.now() - started);
    if (report.crash !== null) break;
  }
  return report;
}
