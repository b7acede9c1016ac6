import type { Socket } from "node:net";
import { PrismaPg } from "@prisma/adapter-pg";
import pg from "pg";
import { sayWhoActs } from "./actor.ts";
import { isRetryableConflict } from "./database-errors.ts";
import { type Prisma, PrismaClient } from "./generated/client.ts";
import type { Hooks } from "./hooks.ts";

export type Database = PrismaClient;
/** What a verb inside a transaction may use. */
export type Transaction = Prisma.TransactionClient;

/**
 * A connection on which nothing comes or goes for so long is ended: nobody uses it, or its server is gone without a word. Longer than a
 * transaction may take.
 */
const silentMs = 30_000;

/** A transaction whose client has gone without a word holds its locks no longer than this. Longer than any pause of a program at work. */
const idleInTransactionMs = 10_000;

const silence = (): Error =>
  Object.assign(new Error(`PostgreSQL was silent for ${silentMs} ms`), { code: "ETIMEDOUT", syscall: "read" });

/** Opens a pool of at most `connectionsMax` connections. The caller disconnects it. `hooks` are told of every transaction. */
export function openDatabase(url: string, connectionsMax = 10, hooks: Hooks | null = null): Database {
  const pool = new pg.Pool({
    connectionString: url,
    max: connectionsMax,
    connectionTimeoutMillis: 5_000,
    idleTimeoutMillis: silentMs - 5_000,
    idle_in_transaction_session_timeout: idleInTransactionMs,
  });
  // Between two borrowers a connection has no listener of its own. When the server cuts it just then, in the same chunk of bytes
  // as an answer, its "error" event would end the process. Whoever uses the connection learns of it from its query.
  pool.on("connect", (client) => {
    client.on("error", () => {});
    const stream = client.connection.stream as Socket;
    stream.setTimeout(silentMs, () => stream.destroy(silence()));
    if (hooks !== null) tellStatements(client, hooks);
  });
  return new PrismaClient({
    adapter: new PrismaPg(pool, { disposeExternalPool: true }),
    transactionOptions: { maxWait: 10_000, timeout: 20_000 },
  });
}

/** Tells where in its transactions a connection is. */
function tellStatements(client: pg.ClientBase, hooks: Hooks): void {
  const query = client.query.bind(client) as (...args: unknown[]) => unknown;
  let statements: number | null = null;
  client.query = ((...args: unknown[]) => {
    const [asked] = args;
    const text = typeof asked === "string" ? asked : (asked as { text: string }).text;
    if (text === "COMMIT") {
      statements = null;
      hooks.reached("transaction.commit");
      return (query(...args) as Promise<unknown>).then((done) => {
        hooks.reached("transaction.committed");
        return done;
      });
    }
    if (text === "BEGIN") {
      statements = 0;
      hooks.reached("transaction.begin");
    } else if (text === "ROLLBACK") statements = null;
    else if (statements !== null) {
      statements += 1;
      hooks.reached(`transaction.statement-${statements}`);
    }
    return query(...args);
  }) as typeof client.query;
}

/** What was read before its lock could be had has changed meanwhile: the transaction is dropped, and begins anew. */
export class ChangedMeanwhileError extends Error {
  readonly code = "40001";
}

/**
 * Runs `work` in one transaction, again (up to three times) after a deadlock or serialization failure. The database is told who acts, for
 * the audit (actor.ts).
 * Lock order everywhere: schedule → repository → quota → group → volume → backup (parent first) → operation → task.
 */
export async function inTransaction<T>(database: Database, work: (tx: Transaction) => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await database.$transaction(async (tx) => {
        await sayWhoActs(tx);
        return work(tx);
      });
    } catch (error) {
      if (attempt >= 3 || !isRetryableConflict(error)) throw error;
    }
  }
}

/**
 * Keeps a reaper and whoever gives a row to objects that are there already (imports, rescans) apart, until the transaction ends. First in
 * the lock order but for schedules.
 */
export async function lockRepository(tx: Transaction, name: string): Promise<void> {
  await tx.$executeRaw`SELECT pg_advisory_xact_lock(hashtextextended(${`tephra:repository:${name}`}, 0))`;
}
