import { Prisma } from "../generated/client.ts";
import type { Database } from "./database.ts";

/** Limit on user-written data in one page, in bytes: a page of 1,000 rows could be tens of MiB. */
export const pageBytesMax = 4 * 1024 * 1024;

type Told = "volumes.metadata" | "snapshots.metadata" | "instances.configuration";

/** A page, or its beginning. */
export interface BoundedPage<Row> {
  rows: Row[];
  /** Requested rows were left off, since those before them are long. */
  cut: boolean;
}

/**
 * Reads the column with user-written data for the rows of a page, in the page's order, and leaves off those at the end that would exceed
 * `pageBytesMax`. The first row is always included, so that everything can be read page by page.
 */
export async function readToPageBytes<Row extends { id: string }, Key extends string>(
  database: Database,
  rows: readonly Row[],
  told: Told,
  key: Key,
): Promise<BoundedPage<Row & Record<Key, Prisma.JsonValue>>> {
  const [table = "", column = ""] = told.split(".");
  const found = await database.$queryRaw<{ id: string; value: Prisma.JsonValue }[]>`
    SELECT id, value FROM (
      SELECT t.id, t.value, p.at, sum(octet_length(t.value::text)) OVER (ORDER BY p.at) AS bytes
      FROM unnest(${rows.map((row) => row.id)}::uuid[]) WITH ORDINALITY p (id, at)
      JOIN (SELECT id, ${Prisma.raw(column)} AS value FROM ${Prisma.raw(table)}) t ON t.id = p.id) page
    WHERE at = 1 OR bytes <= ${pageBytesMax} ORDER BY at`;
  const values = new Map(found.map(({ id, value }) => [id, value]));
  const kept = rows.flatMap((row) => {
    const value = values.get(row.id);
    return value === undefined ? [] : [{ ...row, [key]: value } as Row & Record<Key, Prisma.JsonValue>];
  });
  return { rows: kept, cut: kept.length < rows.length };
}
