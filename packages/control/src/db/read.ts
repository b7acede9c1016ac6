import pg from "pg";
import { Prisma, type PrismaClient } from "../generated/client.ts";
import { actorToSay } from "./actor.ts";
import type { DatabasePool } from "./pool.ts";

/** What statements need that go past a client, straight to its connections. */
interface Reader {
  pool: DatabasePool;
  /** Names prepared statements as the client does, so that both share them. */
  nameOf: (query: { sql: string }) => string;
  /** `lock_timeout` of a transaction, in ms. Null: the address of the database sets one, which holds for every statement. */
  lockMs: number | null;
}

const readers = new WeakMap<Prisma.TransactionClient, Reader>();

export function addReader(database: PrismaClient, reader: Reader): void {
  readers.set(database, reader);
}

const usualTime = pg.types.getTypeParser(pg.types.builtins.TIMESTAMPTZ) as (text: string) => unknown;

/** Every connection gives times in UTC: with four digits for the year they are nearly what the engine itself reads, in half the time. */
const timeOf = (text: string): unknown =>
  text[10] === " " && text.endsWith("+00") ? new Date(`${text.slice(0, 10)}T${text.slice(11, -3)}Z`) : usualTime(text);

/** Values as the client returns them: a bigint is one. */
const parsers: Readonly<Record<number, (text: string) => unknown>> = {
  [pg.types.builtins.INT8]: BigInt,
  [pg.types.builtins.TIMESTAMPTZ]: timeOf,
};
const types: pg.CustomTypesConfig = {
  getTypeParser: (oid, format) => parsers[oid] ?? (pg.types.getTypeParser(oid, format) as (text: string) => unknown),
};

/**
 * What `$queryRaw` returns, of a statement that is asked for very often and waits for no row: outside a transaction it goes straight to the
 * connections, since the client's own work on a row or a page is more than that of everything else together.
 */
export async function readRows<Row extends pg.QueryResultRow>(
  database: Prisma.TransactionClient,
  query: Prisma.Sql,
): Promise<Row[]> {
  const reader = readers.get(database);
  if (!reader) return database.$queryRaw<Row[]>(query);
  return rowsOf(reader.pool.query<Row>(queryOf(reader, query)));
}

/**
 * Runs one statement that changes rows as a transaction of its own, without the round trips of BEGIN and COMMIT. Isolation is that of each
 * statement of `inTransaction`; whatever it throws has changed nothing, and nothing is retried.
 *
 * @param statement gets a condition that is to be in the WHERE of whatever locks the first row: it is true, and says who acts and how long
 * locks are waited for, as the begin of a transaction does
 */
export async function changeRows<Row extends pg.QueryResultRow>(
  database: PrismaClient,
  statement: (said: Prisma.Sql) => Prisma.Sql,
): Promise<Row[]> {
  const reader = readers.get(database);
  if (!reader) throw new Error("a statement of its own is not part of a transaction");
  const [actor, { lockMs }] = [actorToSay(), reader];
  const said = [
    ...(actor === null ? [] : [Prisma.sql`set_config('tephra.actor', ${actor}, true) <> ''`]),
    ...(lockMs === null ? [] : [Prisma.sql`set_config('lock_timeout', ${String(lockMs)}, true) <> ''`]),
  ];
  const all = said.length === 0 ? Prisma.sql`true` : Prisma.join(said, " AND ");
  return rowsOf(reader.pool.change<Row>(queryOf(reader, statement(all))));
}

const queryOf = ({ nameOf }: Reader, { text, values }: Prisma.Sql): pg.QueryConfig => ({
  ...{ name: nameOf({ sql: text }), text, values },
  types,
});

async function rowsOf<Row extends pg.QueryResultRow>(asked: Promise<pg.QueryResult<Row>>): Promise<Row[]> {
  try {
    return (await asked).rows;
  } catch (error) {
    throw isOfTls(error)
      ? Object.assign(new Error(String(error), { cause: error }), { kind: "TlsConnectionError" })
      : error;
  }
}

/** Node's and OpenSSL's codes of a connection that is not trusted or not encrypted; the driver's message has none (outage.ts). */
function isOfTls(error: unknown): boolean {
  const { code, message } = error as { code?: unknown; message?: unknown };
  return typeof code === "string"
    ? /^(CERT_|CRL_|UNABLE_TO_|ERR_TLS_|ERR_SSL_|(DEPTH_ZERO_)?SELF_SIGNED_CERT|HOSTNAME_MISMATCH|INVALID_)/.test(code)
    : String(message).includes("does not support SSL connections");
}
