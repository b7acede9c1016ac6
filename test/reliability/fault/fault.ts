import { parseArgs } from "node:util";
import { runCorruption } from "./corruption.ts";
import { runHosts } from "./hosts.ts";
import { runKills } from "./kills.ts";
import { runOutages } from "./outages.ts";
import { isClean, reportOf } from "./report.ts";
import { type FaultOptions, newTally, openFaultHouse, runHistory } from "./runs.ts";
import { storeKinds } from "./store.ts";
import { runSubmissions } from "./submissions.ts";

/** Each prints its figures, the verdict last, and says whether all was well. */
const commands: Readonly<Record<string, (options: FaultOptions) => Promise<boolean>>> = {
  histories: runHistories,
  hosts: runHosts,
  kills: runKills,
  outages: runOutages,
  submissions: runSubmissions,
  corruption: runCorruption,
};

async function runHistories({ seed, runs, store, say }: FaultOptions): Promise<boolean> {
  const wanted = runs ?? 20;
  const tally = newTally();
  {
    await using house = await openFaultHouse({ workers: 2, store, say });
    for (let run = 0; run < wanted; run++) {
      const started = performance.now();
      await runHistory(house, { seed: seed + run, tally, say });
      const seconds = ((performance.now() - started) / 1000).toFixed(0);
      say(`run ${run + 1} of ${wanted} (--seed ${seed + run} --runs 1): ${seconds} s`);
    }
  }
  for (const line of reportOf(tally, { seed, runs: wanted })) process.stdout.write(`${line}\n`);
  return isClean(tally);
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seed: { type: "string" }, runs: { type: "string" }, store: { type: "string", default: "posix" } },
});
const [name = "histories"] = positionals;
const command = commands[name];
const seed = Number(values.seed ?? Math.floor(Math.random() * 1e9));
const runs = values.runs === undefined ? null : Number(values.runs);
const store = storeKinds.find((kind) => kind === values.store);
if (
  command === undefined ||
  store === undefined ||
  !Number.isSafeInteger(seed) ||
  !(Number.isSafeInteger(runs ?? 1) && (runs ?? 1) > 0)
) {
  const names = Object.keys(commands).join("|");
  throw new Error(`usage: npm run test:fault -- [${names}] [--seed S] [--runs N] [--store ${storeKinds.join("|")}]`);
}
const say = (line: string): void => void process.stdout.write(`fault: ${line}\n`);
process.exitCode = (await command({ seed, runs, store, say })) ? 0 : 1;
