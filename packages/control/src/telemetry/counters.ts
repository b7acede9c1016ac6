import type { Database, Transaction } from "../db/database.ts";

/** What is counted in rows, since it happens in processes that nobody scrapes: `/metrics` shows all of them. */
export type CounterName = "reconciler_failures" | "quota_repairs";

/** Bytes of tasks that have ended, which the trigger `tasks_counted` adds up. */
export type ByteCounter = "bytes_read" | "bytes_stored";

export async function count(database: Database | Transaction, name: CounterName, label: string, by = 1): Promise<void> {
  await database.$executeRaw`
    INSERT INTO counters (name, label, value) VALUES (${name}, ${label}, ${by}::bigint)
    ON CONFLICT (name, label) DO UPDATE SET value = counters.value + ${by}::bigint`;
}

/** One value for each name and label; what is counted in several rows at once is one value without a label. */
export async function readCounters(
  database: Database,
): Promise<{ name: CounterName | ByteCounter; label: string; value: number }[]> {
  return database.$queryRaw`
    SELECT name, CASE WHEN name IN ('bytes_read', 'bytes_stored') THEN '' ELSE label END AS label, sum(value)::float8 AS value
    FROM counters GROUP BY 1, 2`;
}
