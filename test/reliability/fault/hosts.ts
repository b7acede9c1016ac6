import { poll } from "../../../scripts/poll.ts";
import { project } from "../../kit/house.ts";
import { inNetworkOfItsOwn, type Link, openNetwork, rerunInNetworkOfItsOwn } from "../../kit/network.ts";
import type { NamedFault } from "./faults.ts";
import { graceMs, pause, rowsOf } from "./model.ts";
import { isClean, reportOf } from "./report.ts";
import { type FaultHouse, type FaultOptions, newTally, openFaultHouse, runHistory } from "./runs.ts";

const hosts = ["api", "worker-1", "worker-2"] as const;
const servers = ["PostgreSQL", "Redis", "the object store"];
/** From the end of a fault. */
const fullSpeedMaxMs = 5_000;
const users = 6;

const troubles = { "are cut": (link: Link) => link.cut(), "are slow": (link: Link) => link.slow() };

/** Each host's link to each server, and all links of a host, of a server, and of everything, which are cut or slow for a while. */
function linkFaults(house: FaultHouse, links: readonly Link[], recoveries: Recovery[]): NamedFault[] {
  const faults: NamedFault[] = [];
  for (const host of [...hosts, null]) {
    for (const server of [...servers, null]) {
      const chosen = links.filter(
        (link) => (host ?? link.host) === link.host && (server ?? link.server) === link.server,
      );
      for (const [words, bring] of Object.entries(troubles)) {
        const name = `links of ${host ?? "all hosts"} to ${server ?? "all servers"} ${words}`;
        faults.push([
          name,
          async (random) => {
            const lastsMs = 300 + random.below(6_000);
            await Promise.all(chosen.map(bring));
            await pause(lastsMs);
            await Promise.all(chosen.map((link) => link.heal()));
            recoveries.push({ name, lastsMs, afterMs: await untilFullSpeed(house) });
          },
        ]);
      }
    }
  }
  return faults;
}

interface Recovery {
  name: string;
  lastsMs: number;
  /** From the end of the fault until everything was as before. */
  afterMs: number;
}

/**
 * Waits until the API answers, and every worker has been seen and, unless nothing waits, has begun a task since. @returns milliseconds
 */
async function untilFullSpeed(house: FaultHouse): Promise<number> {
  const began = performance.now();
  const [moment] = await rowsOf<{ now: string }>(house, "SELECT now()::text AS now");
  const pids = house.workers.filter((worker) => worker.running()).map(({ pid }) => pid);
  const asBefore = async (): Promise<boolean> => {
    const [state] = await rowsOf<{ unseen: number; idle: number; waiting: number }>(
      house,
      `SELECT count(*) FILTER (WHERE heartbeat_at <= $2::timestamptz)::int AS unseen,
        count(*) FILTER (WHERE NOT EXISTS
          (SELECT 1 FROM tasks WHERE worker_id = workers.id AND started_at > $2::timestamptz))::int AS idle,
        (SELECT count(*)::int FROM tasks WHERE state IN ('ready', 'dispatched')) AS waiting
       FROM workers WHERE pid = ANY($1)`,
      [pids, moment?.now],
    );
    return state?.unseen === 0 && (state.idle === 0 || state.waiting === 0);
  };
  const answered = async (): Promise<boolean> => {
    const url = `${house.url}/v3/${project}/backups?limit=1`;
    const answer = await fetch(url, { signal: AbortSignal.timeout(graceMs) }).catch(() => null);
    return answer?.status === 200;
  };
  const patience = { timeoutMs: graceMs, everyMs: 50 };
  await Promise.all([
    poll(asBefore, { what: "the workers go on", ...patience }),
    poll(answered, { what: "the API answers", ...patience }),
  ]);
  return performance.now() - began;
}

/**
 * The API and two workers on hosts of their own, whose links to PostgreSQL, Redis and the object store are cut or slow, alone and
 * together, while six users work. Needs root on Linux, iproute2 and util-linux.
 */
export async function runHosts({ seed, runs, store, say }: FaultOptions): Promise<boolean> {
  if (!inNetworkOfItsOwn) return (await rerunInNetworkOfItsOwn()) === 0;
  const wanted = runs ?? 60;
  const tally = newTally();
  const recoveries: Recovery[] = [];
  {
    await using network = await openNetwork(hosts, servers);
    const [{ address }] = network.places;
    const config = { allowed_hosts: [address] };
    await using house = await openFaultHouse({
      workers: 2,
      store: store === "posix" ? "s3" : store,
      say,
      config,
      network,
    });
    for (let history = 0; recoveries.length < wanted; history++) {
      const faults = (): NamedFault[] => linkFaults(house, network.links, recoveries);
      await runHistory(house, { seed: seed + history, tally, say, users, steps: 8, faults, faultsAbout: 8 });
      say(`history ${history + 1} (seed ${seed + history}): ${recoveries.length} of ${wanted} faults`);
    }
  }
  const late = recoveries.filter(({ afterMs }) => afterMs > fullSpeedMaxMs);
  for (const { name, lastsMs, afterMs } of recoveries) {
    say(`${name} for ${(lastsMs / 1_000).toFixed(1)} s: full speed after ${(afterMs / 1_000).toFixed(1)} s`);
  }
  for (const line of reportOf(tally, { seed, runs: recoveries.length })) process.stdout.write(`${line}\n`);
  process.stdout.write(`fault: ${late.length} of ${recoveries.length} later than ${fullSpeedMaxMs / 1_000} s\n`);
  return isClean(tally) && late.length === 0;
}
