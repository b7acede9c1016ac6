import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Config, Database } from "@tephra/control";
import { loadConfig, openDatabase, openLog } from "@tephra/control/process";
import { type Dispatched, publishWorker, startDispatcher } from "@tephra/control/work";
import { startServices } from "../scripts/services.ts";
import { type Measurement, measured, quantile, type Say } from "./measurement.ts";

const readyTasks = 10_000;
const projects = 500;
const handOuts = 1_500;
export const slots = 16;
/** How long the next job of a freed slot may take. */
export const dispatchMsMax = 50;
export const needs = ["repository:main", "backend:files"];

const card = {
  ...{ id: "bench", host: "bench", pid: process.pid, slots, reaches: needs, installation: "" },
  ...{ unreachable: {}, freeBytes: {} },
};

export const register = (database: Database): Promise<unknown> => publishWorker(database, card);

/** From the moment at which a slot becomes free until its next job is in the queue, one after another, and which tasks were handed out. */
export async function handOut(
  database: Database,
  config: Config,
  runs: number,
): Promise<{ times: number[]; taskIds: string[] }> {
  await register(database);
  const waiting: Dispatched[] = [];
  const taskIds: string[] = [];
  let arrived = Promise.withResolvers<void>();
  const dispatcher = startDispatcher({
    database,
    config,
    log: openLog({ log_level: "silent", hostName: "bench" }, "bench"),
    enqueue: async (_, jobs) => {
      waiting.push(...jobs);
      taskIds.push(...jobs.map(({ taskId }) => taskId));
      arrived.resolve();
    },
  });
  const times: number[] = [];
  try {
    while (waiting.length < 2 * slots) {
      await arrived.promise;
      arrived = Promise.withResolvers();
    }
    for (let run = 0; run < runs; run += 1) {
      await register(database);
      const job = waiting.shift();
      arrived = Promise.withResolvers();
      await database.$executeRaw`UPDATE tasks SET state = 'succeeded', finished_at = now() WHERE id = ${job?.taskId}::uuid`;
      const began = performance.now();
      dispatcher.freed();
      await arrived.promise;
      times.push(performance.now() - began);
    }
  } finally {
    await dispatcher.stop();
  }
  return { times, taskIds };
}

/**
 * The hand-out of freed slots while 10,000 tasks of 500 projects are ready, each project's older than all of the next one's: how long it
 * takes, and by how many tasks any project is ahead of another.
 */
export async function measureDispatch(say: Say): Promise<Measurement[]> {
  await using stack = new AsyncDisposableStack();
  const dir = mkdtempSync(join(tmpdir(), "tephra-bench-"));
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const { databaseUrl, redisUrl, stop } = await startServices({ dataDir: dir });
  stack.defer(stop);
  const database = openDatabase(databaseUrl);
  stack.defer(() => database.$disconnect());
  const config = loadConfig({ DATABASE_URL: databaseUrl, REDIS_URL: redisUrl, TEPHRA_DATA_DIR: dir });
  await database.$executeRaw`
    WITH o AS (
      INSERT INTO operations (id, kind, state, project_id, user_id, request_id, created_at)
      SELECT gen_random_uuid(), 'backup-create', 'queued', 'p' || n / ${readyTasks / projects}::int, 'u', 'r',
        now() - (${readyTasks}::int - n) * interval '1 second' FROM generate_series(0, ${readyTasks - 1}::int) n RETURNING *
    )
    INSERT INTO tasks (id, operation_id, kind, ordinal, state, rank, project_id, queued_at, needs)
    SELECT gen_random_uuid(), o.id, 'plan-backup', 0, 'ready', 4, o.project_id, o.created_at, ${needs}::text[] FROM o`;
  for (const table of ["operations", "tasks"]) await database.$executeRawUnsafe(`VACUUM ANALYZE ${table}`);
  say(`handing out slots with ${readyTasks} ready tasks of ${projects} projects`);
  const { times, taskIds } = await handOut(database, config, handOuts);
  const [row] = await database.$queryRaw<{ ahead: number }[]>`
    SELECT (max(n) - min(n))::int AS ahead FROM (
      SELECT count(*) FILTER (WHERE id = ANY(${taskIds}::uuid[])) AS n FROM tasks GROUP BY project_id) p`;
  const note = `${readyTasks} ready tasks of ${projects} projects, ${slots} slots`;
  return [
    measured("the hand-out of a freed slot, p50", [quantile(times, 0.5)], { unit: "ms", note }),
    measured("the hand-out of a freed slot, p99", [quantile(times, 0.99)], { unit: "ms", note, atMost: dispatchMsMax }),
    measured("tasks by which a project is ahead of another", [row?.ahead ?? Number.NaN], {
      unit: "tasks",
      note: `after ${taskIds.length} of them`,
      atMost: 1,
    }),
  ];
}
