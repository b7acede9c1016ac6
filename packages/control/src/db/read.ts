import pg from "pg";
import type { Prisma, PrismaClient } from "../generated/client.ts";

/** A client's own connections, and the names of its prepared statements. */
interface Reader {
  pool: pg.Pool;
  nameOf: (query: { sql: string }) => string;
}

const readers = new WeakMap<Prisma.TransactionClient, Reader>();

export function addReader(database: PrismaClient, reader: Reader): void {
  readers.set(database, reader);
}

/** Values as the client returns them: a bigint is one. */
const types: pg.CustomTypesConfig = {
  getTypeParser: (oid, format) =>
    oid === pg.types.builtins.INT8 ? BigInt : (pg.types.getTypeParser(oid, format) as (text: string) => unknown),
};

/**
 * What `$queryRaw` returns, of a statement that is asked for very often and only reads: outside a transaction it goes straight to the
 * connections, since the client's own work on a row or a page is more than that of everything else together.
 */
export async function readRows<Row extends pg.QueryResultRow>(
  database: Prisma.TransactionClient,
  query: Prisma.Sql,
): Promise<Row[]> {
  const reader = readers.get(database);
  if (!reader) return database.$queryRaw<Row[]>(query);
  const { text, values } = query;
  try {
    return (await reader.pool.query<Row>({ name: reader.nameOf({ sql: text }), text, values, types })).rows;
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
