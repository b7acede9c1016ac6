import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { joinElection, loadConfig, openDatabase, openLog, startReconciler } from "@tephra/control/process";
import { publishWorker, startDispatcher, withdrawWorker } from "@tephra/control/work";
import { type House, openHouse } from "../test/kit/house.ts";
import { countTransactions, postgresSeconds } from "./house-work.ts";
import { type Measurement, measured, type Say } from "./measurement.ts";

const idleMs = 10_000;

/** What nobody's work costs PostgreSQL: transactions a second, and processor time in percent of a core. */
export async function measureIdle(house: House): Promise<{ transactions: number; percent: number }> {
  const [transactions, seconds] = [await countTransactions(house), await postgresSeconds(house)];
  const started = performance.now();
  await sleep(idleMs);
  const lasted = (performance.now() - started) / 1000;
  return {
    transactions: ((await countTransactions(house)) - transactions) / lasted,
    percent: (((await postgresSeconds(house)) - seconds) / lasted) * 100,
  };
}

const workers = 200;
const rounds = 3;
const transactionsMax = 150;
const percentMax = 5;
/** After this time all of them know how many they are. */
const settleMs = 15_000;
/** That all of the simulated ones share. */
const connectionsMax = 20;

/**
 * What 200 workers that have nothing to do ask of PostgreSQL. One is a process; the others do from here what an idle one does (apps/worker/src/main.ts):
 * a registration that is renewed, a candidacy, a dispatcher and a reconciler of its own each.
 */
export async function measureIdleWorkers(say: Say): Promise<Measurement[]> {
  await using house = await openHouse({ workers: 1, config: { worker: { slots: 1 } }, say });
  const results: Measurement[] = [];
  {
    await using stack = new AsyncDisposableStack();
    const { databaseUrl, redisUrl } = house.services;
    const database = openDatabase(databaseUrl, { connectionsMax });
    stack.defer(() => database.$disconnect());
    const config = loadConfig({ DATABASE_URL: databaseUrl, REDIS_URL: redisUrl, TEPHRA_DATA_DIR: house.dir });
    await Promise.all(Array.from({ length: workers - 1 }, async () => stack.use(await simulate(database, config))));
    say(`${workers} workers settle`);
    await sleep(settleMs);
    const idle: Awaited<ReturnType<typeof measureIdle>>[] = [];
    for (let round = 0; round < rounds; round += 1) idle.push(await measureIdle(house));
    const note = `${workers} workers, all but one simulated`;
    results.push(
      measured(
        "transactions of an idle service",
        idle.map(({ transactions }) => transactions),
        { unit: "per s", atMost: transactionsMax, note },
      ),
      measured(
        "PostgreSQL's processor time meanwhile",
        idle.map(({ percent }) => percent),
        { unit: "% of a core", atMost: percentMax, note },
      ),
    );
  }
  return results;
}

type Database = ReturnType<typeof openDatabase>;

async function simulate(database: Database, config: ReturnType<typeof loadConfig>): Promise<AsyncDisposable> {
  const log = openLog({ log_level: "silent", hostName: "bench" }, "bench");
  const id = `simulated:${randomUUID()}`;
  const { heartbeat_ms: heartbeatMs } = config.worker;
  // They were started at different times.
  await sleep(Math.random() * heartbeatMs);
  // The notifier is left to the real one. So are tasks: nobody would take what is dispatched to these.
  const election = joinElection({ database, log, id, roles: ["dispatcher", "reconciler"] });
  const dispatcher = startDispatcher({ database, config, log, enqueue: async () => {}, election });
  const reconciler = startReconciler({ database, config, log, election });
  const register = (): Promise<unknown> =>
    publishWorker(database, {
      ...{ id, installation: "", host: "bench", pid: process.pid, slots: 1, reaches: ["repository:simulated"] },
      ...{ unreachable: {}, freeBytes: {}, version: "0", rssBytes: 1 },
    }).then(() => dispatcher.wake());
  await register();
  const timer = setInterval(() => void register().catch(() => {}), heartbeatMs);
  return {
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await Promise.all([election.stop(), dispatcher.stop(), reconciler.stop()]);
      await withdrawWorker(database, id);
    },
  };
}
