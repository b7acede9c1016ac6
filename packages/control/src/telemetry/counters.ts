import type { Database, Transaction } from "../db/database.ts";

/** Counted in rows, since the events happen in processes that nobody scrapes: `/metrics` shows the totals. */
export type CounterName = "reconciler_failures" | "quota_repairs" | "clock_steps" | "policy_runs";

/** Bytes of finished tasks, summed up by the trigger `tasks_counted`. */
export type ByteCounter = "bytes_read" | "bytes_stored";

export async function count(database: Database | Transaction, name: CounterName, label: string, by = 1): Promise<void> {
  await database.$executeRaw`
    INSERT INTO counters (name, label, value) VALUES (${name}, ${label}, ${by}::bigint)
    ON CONFLICT (name, label) DO UPDATE SET value = counters.value + ${by}::bigint`;
}

/** One value per name and label; a counter that is spread over several rows is one value without a label. */
export async function readCounters(
  database: Database,
): Promise<{ name: CounterName | ByteCounter; label: string; value: number }[]> {
  return database.$queryRaw`
    SELECT name, CASE WHEN name IN ('bytes_read', 'bytes_stored') THEN '' ELSE label END AS label, sum(value)::float8 AS value
    FROM counters GROUP BY 1, 2`;
}
