import { type Database, Prisma } from "../db/database.ts";
import { type Principal, seesAll } from "../principal.ts";
import { getOperation } from "../queue/list-operations.ts";

export interface OperationRanges {
  /** Of the volume, as far as it is cut into ranges; 0 while, or after, there are none. */
  lengthBytes: number;
  /** Of every range but the last. */
  rangeBytes: number;
  /** One letter for each range, in their order on the volume. */
  states: string;
  /** One byte for each: what has been stored of it, in 255ths of its length. */
  density: Buffer;
  running: { ordinal: number; workerId: string | null; bytesDone: number; claim: number }[];
}

/** Tasks of these kinds are about a range each. */
const rangeKinds = ["copy", "restore", "verify", "squash"];

/**
 * How far each range of an operation is: `d` done, `r` running, `t` running again, since the worker that had it is gone, `h` handed to a worker,
 * `.` waits, `x` failed or cancelled. The rows of an operation that has ended are forgotten after a while, and so are its ranges.
 *
 * @throws NotFoundError for an unknown id or another project's
 */
export async function readRanges(database: Database, principal: Principal, id: string): Promise<OperationRanges> {
  const operation = await getOperation(database, principal, id);
  const ranges = Prisma.sql`tasks WHERE operation_id = ${operation.id}::uuid AND kind = ANY(${rangeKinds})`;
  const [row] = await database.$queryRaw<Omit<OperationRanges, "running">[]>`
    SELECT coalesce(max(range_offset + range_length), 0)::float8 AS "lengthBytes", coalesce(max(range_length), 0)::float8 AS "rangeBytes",
      coalesce(string_agg(CASE WHEN state = 'succeeded' THEN 'd' WHEN state = 'running' AND claim > 1 THEN 't' WHEN state = 'running' THEN 'r'
        WHEN state = 'dispatched' THEN 'h' WHEN state IN ('failed', 'cancelled') THEN 'x' ELSE '.' END, '' ORDER BY ordinal), '') AS states,
      coalesce(string_agg(set_byte('\\x00', 0, least(255, round(255.0 * bytes_stored / greatest(range_length, 1)))::int), ''::bytea ORDER BY ordinal), '')
        AS density
    FROM ${ranges}`;
  const running = await database.$queryRaw<OperationRanges["running"]>`
    SELECT ordinal, worker_id AS "workerId", bytes_done::float8 AS "bytesDone", claim FROM ${ranges} AND state = 'running' ORDER BY ordinal`;
  if (!row) throw new Error("PostgreSQL returned no row");
  const named = seesAll(principal);
  return {
    ...row,
    density: Buffer.from(row.density),
    running: running.map((range) => ({ ...range, workerId: named ? range.workerId : null })),
  };
}
