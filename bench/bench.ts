// `npm run bench [-- [--keep] NAME…]`: measures on private servers, prints a table and keeps it as JSON. With --keep, later runs are held
// against this one: for a release. `npm run bench -- --keep FILE.json…` keeps what was measured before, from `bench/results`.
import { measureConsoles } from "./consoles.ts";
import { measureControl } from "./control.ts";
import { measureEndedTasks } from "./ended-tasks.ts";
import { measureEngine } from "./engine.ts";
import { measureHuge } from "./huge.ts";
import { measureLarge } from "./large.ts";
import { measureLimits } from "./limits.ts";
import { measureManyWorkers } from "./many-workers.ts";
import { keepAsRelease, keepRun, type Measurement, report, runOf, type Say } from "./measurement.ts";
import { measureMemory } from "./memory.ts";
import { measurePeers } from "./peers.ts";
import { measureRequests } from "./requests.ts";
import { measureService } from "./service.ts";
import { measureSmallVolumes } from "./small-volumes.ts";
import { measureSources } from "./sources.ts";
import { measureSquash } from "./squash.ts";
import { measureStartup } from "./startup.ts";
import { measureTaskOverhead } from "./task-overhead.ts";
import { measureTransfer } from "./transfer.ts";

const benchmarks: Readonly<Record<string, (say: Say) => Promise<Measurement[]>>> = {
  consoles: measureConsoles,
  control: measureControl,
  ended: measureEndedTasks,
  engine: measureEngine,
  huge: (say) => measureHuge(say),
  large: measureLarge,
  limits: measureLimits,
  memory: measureMemory,
  peers: measurePeers,
  requests: measureRequests,
  service: measureService,
  sources: measureSources,
  squash: measureSquash,
  startup: measureStartup,
  tasks: measureTaskOverhead,
  transfer: measureTransfer,
  volumes: measureSmallVolumes,
  workers: measureManyWorkers,
};

async function main(args: string[]): Promise<void> {
  const names = args.filter((arg) => arg !== "--keep");
  const isKept = args.includes("--keep");
  if (isKept && names.length > 0 && names.every((name) => name.endsWith(".json"))) return names.forEach(keepRun);
  const wanted = names.length > 0 ? names : Object.keys(benchmarks);
  const unknown = wanted.filter((name) => !Object.hasOwn(benchmarks, name));
  if (unknown.length > 0) {
    process.stderr.write(
      `bench: no such benchmark: ${unknown.join(", ")}; there are ${Object.keys(benchmarks).join(", ")}\n`,
    );
    process.exitCode = 2;
    return;
  }
  const results: Measurement[] = [];
  for (const name of wanted) results.push(...((await benchmarks[name]?.((line) => say(`${name}: ${line}`))) ?? []));
  const run = runOf(results);
  report(run);
  if (isKept) keepAsRelease(run);
}

function say(line: string): void {
  process.stderr.write(`bench: ${line}\n`);
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  say(`failed: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
