import type { Socket } from "node:net";
import pg from "pg";
import { parseDatabaseUrl } from "../database-url.ts";
import {
  byAnyWay,
  connectMs,
  DatabaseConnection,
  type DatabaseWork,
  limitsOf,
  routeOf,
  sentenceOf,
  silentMs,
} from "./connection.ts";

/** Called when the state of connections changes: with the server's own message when none could be opened, with null when one was. */
export type OnTrouble = (sentence: string | null) => void;

/** Transactions wait for row locks; in a larger pool they leave this many connections to single statements, which only read. */
const loneConnections = 6;

const silence = (): Error =>
  Object.assign(new Error(`PostgreSQL was silent for ${silentMs} ms`), { code: "ETIMEDOUT", syscall: "read" });

/** All connections were in use for as long as this kind of work waits. */
class NoConnectionError extends Error {
  constructor(waitMs: number) {
    super(`timeout exceeded when trying to connect: no connection was free for ${waitMs} ms`);
  }
}

/**
 * Waits for `asked` until `deadline`, by the monotonic clock; a connection that arrives later is released at once. @throws
 * NoConnectionError
 */
async function inTime(asked: Promise<pg.PoolClient>, deadline: number, waitMs: number): Promise<pg.PoolClient> {
  const { promise: late, resolve } = Promise.withResolvers<null>();
  // What keeps the program running is the connection, not the time that it may take.
  const timer = setTimeout(resolve, Math.max(0, deadline - performance.now()), null).unref();
  const given = await Promise.race([asked, late]).finally(() => clearTimeout(timer));
  if (given !== null) return given;
  asked.then(
    (client) => client.release(),
    () => {},
  );
  throw new NoConnectionError(waitMs);
}

interface Turnstile {
  /** @returns false when no place became free before the deadline */
  enter(deadline: number): Promise<boolean>;
  leave(): void;
}

/** A semaphore with `places` places; waiters are served in order of arrival. */
function openTurnstile(places: number): Turnstile {
  let free = places;
  let waiting: ((entered: boolean) => void)[] = [];
  return {
    async enter(deadline) {
      if (free > 0) {
        free -= 1;
        return true;
      }
      const { promise, resolve } = Promise.withResolvers<boolean>();
      waiting.push(resolve);
      const timer = setTimeout(
        () => {
          waiting = waiting.filter((one) => one !== resolve);
          resolve(false);
        },
        Math.max(0, deadline - performance.now()),
      );
      return promise.finally(() => clearTimeout(timer));
    },
    leave() {
      const next = waiting.shift();
      if (next === undefined) free += 1;
      else next(true);
    },
  };
}

/** `change` runs a single statement that waits for row locks, and therefore counts as a transaction. */
export interface DatabasePool extends pg.Pool {
  change<Row extends pg.QueryResultRow>(query: pg.QueryConfig): Promise<pg.QueryResult<Row>>;
}

/**
 * A pool of at most `connectionsMax` connections, each a DatabaseConnection. Callers wait for one no longer than their kind of work allows.
 * `query` runs a single statement that only reads, `connect` is for transactions.
 *
 * @throws DatabaseUrlError
 */
export function openPool(
  url: string,
  work: DatabaseWork,
  options: { connectionsMax: number; connectionsMin?: number; onTrouble?: OnTrouble | undefined },
): DatabasePool {
  const { connectionsMax, connectionsMin = 0, onTrouble = () => {} } = options;
  const parsed = parseDatabaseUrl(url);
  const route = routeOf(parsed);
  const { waitMs, makeMs } = limitsOf[work];
  let made = 0;
  const pool = new pg.Pool({
    Client: class extends DatabaseConnection {
      constructor() {
        super(route, work);
      }
    },
    max: connectionsMax,
    min: connectionsMin,
    connectionTimeoutMillis: Math.max(parsed.connectTimeoutMs ?? connectMs, waitMs),
    idleTimeoutMillis: silentMs - 5_000,
  });
  // Between two borrowers a connection has no error listener of its own. When the server closes it just then, in the same chunk of bytes as
  // a response, its "error" event would end the process. Whoever uses the connection learns of it from its query.
  pool.on("connect", (client) => {
    made += 1;
    onTrouble(null);
    client.on("error", () => {});
    const stream = client.connection.stream as Socket;
    stream.setTimeout(silentMs, () => stream.destroy(silence()));
  });
  pool.on("error", () => {});
  pool.on("remove", () => {
    made -= 1;
  });

  const connect = pool.connect.bind(pool) as () => Promise<pg.PoolClient>;
  const borrow = async (deadline: number): Promise<pg.PoolClient> => {
    // Having to open a connection first does not mean that others hold them all.
    const isMade = pool.idleCount > 0 || (pool.totalCount === connectionsMax && made >= connectionsMax);
    const longerMs = isMade ? 0 : makeMs - waitMs;
    try {
      const attempt = () => inTime(connect(), deadline + longerMs, waitMs + longerMs);
      return await byAnyWay(route, attempt, (error) => error instanceof NoConnectionError);
    } catch (error) {
      onTrouble(sentenceOf(error));
      throw error;
    }
  };
  const transactions = openTurnstile(
    connectionsMax > 2 * loneConnections ? connectionsMax - loneConnections : connectionsMax,
  );
  const begin = async (): Promise<pg.PoolClient> => {
    const deadline = performance.now() + waitMs;
    if (!(await transactions.enter(deadline))) throw new NoConnectionError(waitMs);
    try {
      const client = await borrow(deadline);
      const release = client.release.bind(client);
      client.release = (error) => {
        transactions.leave();
        release(error);
      };
      return client;
    } catch (error) {
      transactions.leave();
      throw error;
    }
  };
  const askOnce = async (
    client: pg.PoolClient,
    config: string | pg.QueryConfig,
    values?: unknown[],
  ): Promise<unknown> => {
    try {
      const answer = await client.query(config as pg.QueryConfig, values);
      client.release();
      return answer;
    } catch (error) {
      client.release(isOfTheStatement(error) ? undefined : (error as Error));
      throw error;
    }
  };
  const ask = async (config: string | pg.QueryConfig, values?: unknown[]): Promise<unknown> =>
    askOnce(await borrow(performance.now() + waitMs), config, values);
  const change = async (config: pg.QueryConfig): Promise<unknown> => askOnce(await begin(), config);
  return Object.assign(pool, { connect: begin, query: ask, change }) as DatabasePool;
}

/** The server refused a statement and the connection goes on; classes 57 and 58, and errors without SQLSTATE, may be the end of it. */
function isOfTheStatement(error: unknown): boolean {
  const { code, severity } = error as { code?: unknown; severity?: unknown };
  return severity === "ERROR" && typeof code === "string" && /^(?!57P|58|08|25)[0-9A-Z]{5}$/.test(code);
}

/** Logs PostgreSQL's trouble: once per change, in the server's own words. One for all connections of a program. */
export function tellTrouble(log: { warn: TellLine; info: TellLine }): OnTrouble {
  let told: string | null = null;
  return (sentence) => {
    if (sentence === told) return;
    if (sentence === null) log.info({ event: "database.reached" }, "PostgreSQL answers again");
    else log.warn({ event: "database.unreached", reason: sentence }, `PostgreSQL: ${sentence}`);
    told = sentence;
  };
}

type TellLine = (fields: object, text: string) => void;
