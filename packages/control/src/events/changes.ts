import { type Database, Prisma } from "../db/database.ts";

/** A place in the audit log that every process understands: the number of a transaction, and the id of an entry. */
export interface Cursor {
  readonly xid: bigint;
  readonly id: bigint;
}

/** A status transition, as browsers are told of it. */
export interface Change {
  cursor: Cursor;
  /**
   * Every transaction up to this one's has ended, so that nothing can appear before it any more. Otherwise it must not be passed: it is read
   * again.
   */
  settled: boolean;
  resource: string;
  resourceId: string;
  projectId: string;
  fromStatus: string | null;
  toStatus: string;
  operationId: string | null;
  at: Date;
}

export interface Changes {
  /** In order of their cursors, the settled ones first. */
  changes: Change[];
  /** Where the log is settled up to: a reader that wants only what is to come begins here. */
  horizon: Cursor;
  /** What follows the cursor is too much, or too long ago, to be told one by one, or the cursor is of another database. */
  isLost: boolean;
}

/** One that is further behind begins anew. */
export const changesBehindMax = 1_000;
const ageMinutesMax = 10;

const cursorText = /^(\d{1,19})-(\d{1,18})$/;

/** @returns null for what is no cursor */
export function parseCursor(text: string): Cursor | null {
  const [, xid, id] = cursorText.exec(text) ?? [];
  return xid === undefined || id === undefined ? null : { xid: BigInt(xid), id: BigInt(id) };
}

export const formatCursor = ({ xid, id }: Cursor): string => `${xid}-${id}`;

export const isAfter = (a: Cursor, b: Cursor): boolean => a.xid > b.xid || (a.xid === b.xid && a.id > b.id);

interface Row extends Omit<Change, "cursor" | "settled"> {
  horizon: string;
  next: string;
  /** Null: there is no entry. */
  xid: string | null;
  id: bigint;
  settled: boolean;
  old: boolean;
}

/**
 * The status transitions after a cursor, of all projects: at most 1,001. Transactions commit in another order than that of their numbers, so
 * only the entries of those that are older than the oldest running one are final; the others are in it, too, not settled. The age of an
 * entry counts only once it is settled: a long transaction, also of another database of the server, holds the horizon back.
 */
export async function readChanges(database: Database, after: Cursor | null): Promise<Changes> {
  const followers = after
    ? Prisma.sql`SELECT * FROM audit WHERE (xid, id) > (${String(after.xid)}::xid8, ${after.id}) ORDER BY xid, id LIMIT ${changesBehindMax + 1}`
    : Prisma.sql`SELECT * FROM audit WHERE false`;
  const rows = await database.$queryRaw<Row[]>`
    SELECT now.horizon::text, now.next::text, a.xid::text, a.id, a.xid < now.horizon AS settled, a.at, a.resource,
      a.resource_id AS "resourceId", a.project_id AS "projectId", a.from_status AS "fromStatus", a.to_status AS "toStatus",
      a.operation_id AS "operationId", a.at < now() - ${ageMinutesMax} * interval '1 minute' AS old
    FROM (SELECT pg_snapshot_xmin(pg_current_snapshot()) AS horizon, pg_snapshot_xmax(pg_current_snapshot()) AS next) now
    LEFT JOIN (${followers}) a ON true ORDER BY a.xid, a.id`;
  const [first] = rows;
  if (!first) throw new Error("PostgreSQL returned no row");
  const changes = rows.flatMap(({ horizon: _, next: __, old: ___, xid, id, ...change }): Change[] =>
    xid === null ? [] : [{ ...change, cursor: { xid: BigInt(xid), id } }],
  );
  const isAhead = after !== null && after.xid > BigInt(first.next);
  return {
    changes,
    horizon: { xid: BigInt(first.horizon), id: 0n },
    isLost: isAhead || changes.length > changesBehindMax || (first.settled === true && first.old),
  };
}
