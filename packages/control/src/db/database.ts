import { PrismaPg } from "@prisma/adapter-pg";
import { parseDatabaseUrl } from "../database-url.ts";
import { Prisma, PrismaClient } from "../generated/client.ts";
import { beginAs } from "./actor.ts";
import { type DatabaseWork, limitsOf } from "./connection.ts";
import { isRetryableConflict } from "./outage.ts";
import { type OnTrouble, openPool } from "./pool.ts";
import { addReader } from "./read.ts";

export { Prisma };

export type Database = PrismaClient;
/** The database client inside a transaction. */
export type Transaction = Prisma.TransactionClient;

export interface DatabaseOptions {
  /** What the connections are for: determines how long things may take and be waited for. */
  work?: DatabaseWork;
  connectionsMax?: number;
  /** Kept open once they have been opened. */
  connectionsMin?: number;
  onTrouble?: OnTrouble;
}

/** Statements that PostgreSQL keeps for each connection, of some 20 KiB each. The programs have fewer. */
const namedStatementsMax = 300;

/** Opens a pool of connections. The caller disconnects it. @throws DatabaseUrlError */
export function openDatabase(url: string, options: DatabaseOptions = {}): Database {
  const { work = "work", connectionsMax = 10, connectionsMin = 0, onTrouble } = options;
  const pool = openPool(url, work, { connectionsMax, connectionsMin, onTrouble });
  const { schema, settings } = parseDatabaseUrl(url);
  const lockMs = Object.hasOwn(settings, "lock_timeout") ? null : limitsOf[work].lockInTransactionMs;
  const nameOf = nameStatements();
  const database = new PrismaClient({
    adapter: new PrismaPg(pool, { disposeExternalPool: true, schema, statementNameGenerator: nameOf }),
    transactionOptions: { maxWait: 10_000, timeout: 20_000 },
  });
  addReader(database, { pool, nameOf, lockMs });
  return database;
}

/**
 * Names for the statements of one process, by which PostgreSQL parses and plans each once per connection. Texts that differ in the number of
 * their parameters are statements of their own; the server keeps every one, so those beyond a limit stay without a name.
 */
function nameStatements(): (query: { sql: string }) => string {
  const names = new Map<string, string>();
  return ({ sql }) => {
    const known = names.get(sql);
    if (known !== undefined) return known;
    if (names.size >= namedStatementsMax) return "";
    const name = `tephra_${names.size}`;
    names.set(sql, name);
    return name;
  };
}

/** Something read before it was locked has changed in the meantime: the transaction is rolled back and retried. */
export class ChangedMeanwhileError extends Error {
  readonly code = "40001";
}

/** Transaction → what to do after its commit. */
const afterwards = new WeakMap<Transaction, Set<(database: Database) => void>>();

/** Has `work` called once the transaction is committed, once however often it is asked for. Not at all when it is rolled back. */
export function onCommit(tx: Transaction, work: (database: Database) => void): void {
  afterwards.get(tx)?.add(work);
}

/**
 * Runs `work` in one transaction, again (up to three times) after a deadlock or serialization failure. The database is told who acts, for
 * the audit log (actor.ts). Lock order everywhere: schedule → repository → quota → group → volume → backup (parent first) → operation →
 * task.
 */
export async function inTransaction<T>(database: Database, work: (tx: Transaction) => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    const works = new Set<(database: Database) => void>();
    try {
      const result = await beginAs((said) =>
        database.$transaction(async (tx) => {
          afterwards.set(tx, works);
          said(tx);
          return work(tx);
        }),
      );
      for (const after of works) after(database);
      return result;
    } catch (error) {
      if (attempt >= 3 || !isRetryableConflict(error)) throw error;
    }
  }
}

/**
 * Until the transaction ends, keeps a reaper apart from anything that creates rows for existing objects (imports, rescans). First in the
 * lock order, apart from schedules.
 */
export async function lockRepository(tx: Transaction, name: string): Promise<void> {
  await tx.$executeRaw`SELECT pg_advisory_xact_lock(hashtextextended(${`tephra:repository:${name}`}, 0))`;
}
