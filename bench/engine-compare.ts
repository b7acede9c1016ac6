import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Contender } from "./contenders.ts";
import { type Measurement, measured, median, type Say } from "./measurement.ts";

/** Below five, medians of a machine that does other work too say nothing. */
const rounds = 5;

/** One line of the table of goals: ours, a real Cinder's, and others, in turn. */
export interface Case {
  name: string;
  /** Times faster than Cinder, as is wanted with a C compiler; null where there is no such goal. */
  goal: number | null;
  /** How fast it could be at best, or what else tells how to read the figures. */
  note: string;
  ours: Contender;
  cinder: Contender;
  others: Contender[];
}

/** Runs the contenders in turn, round by round, and says what came out. */
export async function compare(each: Case, home: string, say: Say): Promise<Measurement[]> {
  say(`${each.name}: ${rounds} rounds`);
  const contenders = [each.ours, each.cinder, ...each.others];
  const seconds = contenders.map((): number[] => []);
  for (let round = 0; round < rounds; round++) {
    for (const [index, contender] of contenders.entries()) {
      const folder = join(home, "work");
      await mkdir(folder);
      await contender.prepare?.(folder);
      seconds[index]?.push(await contender.run(folder));
      await rm(folder, { recursive: true });
    }
  }
  const [ours = [], cinder = []] = seconds;
  const ratios = ours.map((own, round) => (cinder[round] as number) / own);
  const minima = `minima ${Math.min(...ours).toFixed(2)} s and ${Math.min(...cinder).toFixed(2)} s; ${each.note}`;
  const goal = each.goal === null ? {} : { atLeast: each.goal };
  const results = [measured(`${each.name}: times a Cinder's speed`, ratios, { unit: "×", ...goal, note: minima })];
  for (const [index, { name }] of contenders.entries()) {
    const values = seconds[index] as number[];
    const beside = index === 0 ? "" : `ours takes ${(median(ours) / median(values)).toFixed(2)} of it`;
    results.push(measured(`${each.name}: ${name}`, values, { unit: "s", note: beside }));
  }
  for (const { name, value, unit, note } of results) say(`${name}: ${value.toFixed(2)} ${unit} ${note ?? ""}`);
  return results;
}
