import { parseArgs } from "node:util";
import { isClean, reportOf } from "./report.ts";
import { newTally, openFaultHouse, runHistory } from "./runs.ts";

const { values } = parseArgs({ options: { seed: { type: "string" }, runs: { type: "string", default: "20" } } });
const seed = Number(values.seed ?? Math.floor(Math.random() * 1e9));
const runs = Number(values.runs);
if (!Number.isSafeInteger(seed) || !Number.isSafeInteger(runs) || runs < 1) {
  throw new Error("usage: npm run test:fault -- [--seed S] [--runs N]");
}
const say = (line: string): void => void process.stdout.write(`fault: ${line}\n`);

const tally = newTally();
{
  await using house = await openFaultHouse(2, say);
  for (let run = 0; run < runs; run++) {
    const started = performance.now();
    await runHistory(house, { seed: seed + run, tally, say });
    say(
      `run ${run + 1} of ${runs} (--seed ${seed + run} --runs 1): ${((performance.now() - started) / 1000).toFixed(0)} s`,
    );
  }
}
for (const line of reportOf(tally, { seed, runs })) process.stdout.write(`${line}\n`);
process.exitCode = isClean(tally) ? 0 : 1;
