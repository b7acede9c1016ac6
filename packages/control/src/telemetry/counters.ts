import type { Database, Transaction } from "../db/database.ts";

/** What is counted in rows, since it happens in processes that nobody scrapes: `/metrics` shows all of them. */
export type CounterName = "reconciler_failures" | "quota_repairs";

export async function count(database: Database | Transaction, name: CounterName, label: string, by = 1): Promise<void> {
  await database.$executeRaw`
    INSERT INTO counters (name, label, value) VALUES (${name}, ${label}, ${by}::bigint)
    ON CONFLICT (name, label) DO UPDATE SET value = counters.value + ${by}::bigint`;
}

export async function readCounters(database: Database): Promise<{ name: string; label: string; value: number }[]> {
  const rows = await database.counter.findMany();
  return rows.map(({ value, ...row }) => ({ ...row, value: Number(value) }));
}
