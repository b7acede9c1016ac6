import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Database, listOperations } from "@tephra/control";
import { beginTerm, loadConfig, openDatabase, openLog, openMetrics, reconcile } from "@tephra/control/process";
import { startServices } from "../scripts/services.ts";
import { type Measurement, measured, quantile, type Say, timesOf } from "./measurement.ts";

const counts = [1_000, 1_000_000] as const;
const runs = 200;
const rounds = 3;
const metricsMsMax = 50;

/**
 * What work that has ended costs those who ask for work that has not: a scrape of `/metrics`, a pass of the reconciler and a list of
 * operations, with 1,000 and with 1,000,000 ended tasks, a tenth as many operations.
 */
export async function measureEndedTasks(say: Say): Promise<Measurement[]> {
  const dir = mkdtempSync(join(tmpdir(), "tephra-bench-"));
  await using stack = new AsyncDisposableStack();
  stack.defer(() => rmSync(dir, { recursive: true, force: true }));
  const services = await startServices({ dataDir: dir });
  stack.defer(() => services.stop());
  const { databaseUrl, redisUrl } = services;
  const database = openDatabase(databaseUrl);
  stack.defer(() => database.$disconnect());
  const config = loadConfig({ DATABASE_URL: databaseUrl, REDIS_URL: redisUrl, TEPHRA_DATA_DIR: dir });
  const log = openLog({ log_level: "silent", hostName: "bench" }, "bench");
  const metrics = openMetrics(database, config);
  const term = beginTerm();
  const member = { userId: "u", projectId: "p7", roles: [], isAdmin: false, requestId: "req-bench" };
  const asked = {
    "GET /metrics, rendered": () => metrics.render(),
    "a pass of the reconciler": () => reconcile({ database, config, log, afterOutage: false, term }),
    "20 operations of a project": () => listOperations(database, member, { limit: 20 }),
  };
  const results: Measurement[] = [];
  let there = 0;
  for (const count of counts) {
    say(`${count} tasks that have ended`);
    await addEnded(database, there, count);
    there = count;
    for (const [name, work] of Object.entries(asked)) {
      const latencies: number[][] = [];
      for (let round = 0; round < rounds; round += 1) latencies.push(await timesOf(runs, work));
      const note = `of ${runs} in each round, with ${count} ended tasks`;
      const goal = name.startsWith("GET") ? { atMost: metricsMsMax } : {};
      results.push(
        measured(
          `${name}, p50`,
          latencies.map((times) => quantile(times, 0.5)),
          { unit: "ms", note },
        ),
        measured(
          `${name}, p99`,
          latencies.map((times) => quantile(times, 0.99)),
          { unit: "ms", note, ...goal },
        ),
      );
    }
  }
  say("all of them are old enough to be forgotten");
  results.push(...(await measureForgetting(database, asked["a pass of the reconciler"])));
  return results;
}

/** Passes of one process while there is more to forget than one of them may. */
async function measureForgetting(database: Database, pass: () => Promise<unknown>): Promise<Measurement[]> {
  await database.$executeRaw`UPDATE operations SET finished_at = finished_at - interval '100 days'`;
  await pass();
  await database.$executeRaw`UPDATE schedules SET ran_at = now() - interval '2 hours' WHERE name LIKE 'forget-%'`;
  const times: number[] = [];
  while ((await database.task.count()) > 0) {
    const began = performance.now();
    await pass();
    times.push(performance.now() - began);
  }
  const note = `until ${counts[1]} tasks were gone, ${times.length} passes`;
  const left = await database.operation.count();
  return [
    measured("a pass that forgets tasks and operations", times, { unit: "ms", note }),
    measured("operations left then", [left], {
      unit: "operations",
      note: "the next passes, or those of the next hour, go on",
    }),
  ];
}

/** Operations of ten ranges each, one ended a second, of 50 projects. */
async function addEnded(database: Database, from: number, to: number): Promise<void> {
  const step = 100_000;
  for (let at = from; at < to; at += step) {
    await database.$executeRaw`
      WITH o AS (
        INSERT INTO operations (id, kind, state, project_id, user_id, request_id, input, plan, created_at, started_at, finished_at)
        SELECT gen_random_uuid(), 'backup-create', (ARRAY['succeeded', 'succeeded', 'failed', 'cancelled'])[1 + n % 4], 'p' || n % 50, 'u', 'r',
          '{}', jsonb_build_object('container', 'c', 'source', jsonb_build_object('id', gen_random_uuid())), ended, ended, ended
        FROM generate_series(${at / 10}::int, ${Math.min(to, at + step) / 10 - 1}::int) n
        CROSS JOIN LATERAL (SELECT now() - n * interval '1 second' AS ended) t RETURNING *
      )
      INSERT INTO tasks (id, operation_id, kind, ordinal, state, rank, project_id, queued_at, needs, bytes_done, bytes_stored, unplaced_at,
        started_at, finished_at)
      SELECT gen_random_uuid(), o.id, 'copy', n, o.state, 3, o.project_id, o.created_at, ARRAY['repository:main', 'backend:files'], 536870912,
        268435456, CASE WHEN n = 0 THEN o.created_at END, o.started_at, o.finished_at
      FROM o CROSS JOIN generate_series(0, 9) n`;
  }
  for (const table of ["operations", "tasks", "audit"]) await database.$executeRawUnsafe(`VACUUM ANALYZE ${table}`);
}
