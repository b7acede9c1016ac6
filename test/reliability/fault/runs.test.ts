import { expect, it } from "vitest";
import { times } from "../../kit/long.ts";
import { reportOf } from "./report.ts";
import { newTally, openFaultHouse, runHistory } from "./runs.ts";

const runs = times({ usual: 3, long: 10 });
const seed = Number(process.env["TEPHRA_TEST_SEED"] ?? Math.floor(Math.random() * 1e9));

it(`loses nothing while workers, the API and the servers come and go (seed ${seed})`, {
  timeout: 480_000,
}, async () => {
  const lines: string[] = [];
  const say = (line: string): void => void lines.push(line);
  const tally = newTally();
  await using house = await openFaultHouse({ workers: 2, say });
  for (let run = 0; run < runs; run++) await runHistory(house, { seed: seed + run, tally, say });
  const report = reportOf(tally, { seed, runs });
  process.stdout.write(`${report.join("\n")}\n`);
  expect(tally.findings, lines.join("\n")).toEqual({ lost: [], corrupt: [], stuck: [], orphans: [] });
  expect(tally.exact).toBeGreaterThan(runs);
});
