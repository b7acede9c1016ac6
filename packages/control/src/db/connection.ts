import { readFileSync } from "node:fs";
import { type ConnectionOptions, getCACertificates, type SecureVersion } from "node:tls";
import pg from "pg";
import { type DatabaseUrl, fixedSettings, parseDatabaseUrl } from "../database-url.ts";
import { saidAtBegin } from "./actor.ts";

/** How long a kind of work may wait or run before the server or this program gives up. */
interface Limits {
  /** For a connection from the pool. */
  waitMs: number;
  /** For a connection that has to be opened first. */
  makeMs: number;
  /** For each lock, of a single statement and of one in a transaction. */
  lockMs: number;
  lockInTransactionMs: number;
  /** Shorter than `silentMs`, so that the server ends what its client would abandon. 0: no limit. */
  statementMs: number;
  transactionMs: number;
  /** A client that has vanished holds its locks no longer than this. Longer than any pause of a running program. */
  idleInTransactionMs: number;
  /** Whether statements are planned once per connection, whatever their parameters. */
  plansOnce?: true;
}

export type DatabaseWork = "request" | "work" | "dispatch" | "beat" | "health" | "script";

const workLimits = {
  ...{ waitMs: 10_000, makeMs: 10_000, lockMs: 5_000, lockInTransactionMs: 10_000 },
  ...{ statementMs: 25_000, transactionMs: 25_000, idleInTransactionMs: 10_000 },
};

/**
 * A single statement reads, and only a locked table can keep it waiting; in a transaction it also waits for row locks. `request`: somebody
 * waits for the response. `dispatch`: choosing tasks, which takes less time than planning how to, and the server would do that each time
 * once its statistics say that another list might be cheaper. `beat`: leases, which are renewed in time or not at all. `health`: a health
 * check. `script`: set-up and migrations, which have no time limit.
 */
export const limitsOf: Readonly<Record<DatabaseWork, Limits>> = {
  request: {
    ...{ waitMs: 2_000, makeMs: 5_000, lockMs: 300, lockInTransactionMs: 5_000 },
    ...{ statementMs: 15_000, transactionMs: 25_000, idleInTransactionMs: 10_000 },
  },
  work: workLimits,
  dispatch: { ...workLimits, plansOnce: true },
  beat: {
    ...{ waitMs: 2_000, makeMs: 2_000, lockMs: 2_000, lockInTransactionMs: 2_000 },
    ...{ statementMs: 5_000, transactionMs: 5_000, idleInTransactionMs: 5_000 },
  },
  health: {
    ...{ waitMs: 2_500, makeMs: 2_500, lockMs: 1_000, lockInTransactionMs: 1_000 },
    ...{ statementMs: 2_500, transactionMs: 2_500, idleInTransactionMs: 2_500 },
  },
  script: {
    ...{ waitMs: 60_000, makeMs: 60_000, lockMs: 30_000, lockInTransactionMs: 30_000 },
    ...{ statementMs: 0, transactionMs: 0, idleInTransactionMs: 0 },
  },
};

/** A connection without traffic for this long is closed: nobody uses it, or its server has vanished. Longer than a transaction may take. */
export const silentMs = 30_000;

/** Interval at which the server checks, while a statement waits or runs, whether its client is still there. */
const clientCheckMs = 5_000;

/** Connection timeout, where the URL has no `connect_timeout`. */
export const connectMs = 5_000;

/** One host, port and encryption mode to try. */
interface Candidate {
  host: string;
  port: number;
  encrypted: boolean;
}

/** Where to connect: all candidates in the order in which they are tried, starting with the last one that worked. */
export interface Route {
  url: DatabaseUrl;
  candidates: readonly Candidate[];
  at: number;
  /** Names of prepared statements whose columns a migration has changed: PostgreSQL refuses each in every connection that has it. */
  outdated: Set<string>;
}

const isSocket = (host: string): boolean => host.startsWith("/");

export function routeOf(url: DatabaseUrl): Route {
  const { mode } = url.ssl;
  const ways = { disable: [false], allow: [false, true], prefer: [true, false] }[mode as string] ?? [true];
  const hosts = [...url.hosts];
  if (url.shuffled) hosts.sort(() => Math.random() - 0.5);
  const candidates = hosts.flatMap((one) =>
    (isSocket(one.host) ? [false] : ways).map((encrypted) => ({ ...one, encrypted })),
  );
  return { url, candidates, at: 0, outdated: new Set() };
}

/** What libpq's modes demand of the certificate. Files are read for each connection, since they may be renewed while a program runs. */
function tlsOptionsOf({ ssl }: DatabaseUrl): ConnectionOptions {
  const { mode, rootCert, cert, key, crl, minVersion, maxVersion } = ssl;
  const read = (path: string, name: string): string => {
    try {
      return readFileSync(path, "utf8");
    } catch (cause) {
      throw new Error(`${name} cannot be read: ${(cause as Error).message}`, { cause });
    }
  };
  const verified = mode === "verify-full" || mode === "verify-ca" || (mode === "require" && rootCert !== undefined);
  return {
    rejectUnauthorized: verified,
    ...(mode !== "verify-full" && { checkServerIdentity: () => undefined }),
    ...(rootCert !== undefined && {
      ca: rootCert === "system" ? getCACertificates("system") : read(rootCert, "sslrootcert"),
    }),
    ...(cert !== undefined && { cert: read(cert, "sslcert") }),
    ...(key !== undefined && { key: read(key, "sslkey") }),
    ...(ssl.keyPassword !== undefined && { passphrase: ssl.keyPassword }),
    ...(crl !== undefined && { crl: read(crl, "sslcrl") }),
    ...(minVersion !== undefined && { minVersion: minVersion as SecureVersion }),
    ...(maxVersion !== undefined && { maxVersion: maxVersion as SecureVersion }),
  };
}

interface FirstAnswer {
  direct: boolean;
  version: number;
  standby: boolean;
  reads_only: boolean;
}

type Done = (error: Error | null | undefined) => void;
type Config = string | (pg.QueryConfig & { text: string });

/** https://www.postgresql.org/docs/current/sql-prepare.html: "cached plan must not change result type". */
const isOutdatedPlan = (error: unknown): boolean =>
  (error as { code?: string }).code === "0A000" && sentenceOf(error).includes("cached plan");

/**
 * A connection that behaves the same whatever the server and whatever is in between: its settings are those of the URL, of the kind of work
 * and of `fixedSettings`, and no default of the server, the role or the database.
 *
 * A transaction pooler (PgBouncer) keeps no settings between two transactions. It is recognized by the process id that the client got at
 * the start, which is not that of the server's process; then the settings are made in every transaction, and a single statement is wrapped
 * in one.
 */
export class DatabaseConnection extends pg.Client {
  /** Null until the first response. */
  pooled: boolean | null = null;
  readonly #route: Route;
  readonly #candidate: Candidate;
  readonly #limits: Limits;
  readonly #unusable: Error | null;
  #version = 0;
  #inTransaction = false;

  constructor(route: Route, work: DatabaseWork) {
    const { url } = route;
    const candidate = route.candidates[route.at] as Candidate;
    let ssl: ConnectionOptions | false = false;
    let unusable: Error | null = null;
    try {
      if (candidate.encrypted) ssl = tlsOptionsOf(url);
    } catch (error) {
      unusable = error as Error;
    }
    super({
      host: candidate.host,
      port: candidate.port,
      user: url.user,
      password: url.password,
      database: url.database ?? url.user,
      application_name: url.applicationName ?? "tephra",
      ssl,
      sslnegotiation: url.ssl.negotiation,
      enableChannelBinding: url.channelBinding,
      keepAlive: url.keepAlive,
      keepAliveInitialDelayMillis: url.keepAliveIdleMs,
      connectionTimeoutMillis: url.connectTimeoutMs ?? connectMs,
    });
    // An error event that arrives while nobody else listens would end the process; the running query reports the error.
    this.on("error", () => {});
    this.#route = route;
    this.#candidate = candidate;
    this.#limits = limitsOf[work];
    this.#unusable = unusable;
    // PGOPTIONS would reach this connection, but not one through a pooler.
    (this as unknown as { connectionParameters: { options: unknown } }).connectionParameters.options = undefined;
  }

  /** The start-up packet, with the settings that a pooler keeps per client. */
  getStartupConf(): Record<string, string> {
    const base = (pg.Client.prototype as unknown as { getStartupConf(): Record<string, string> }).getStartupConf;
    const { timezone = "", datestyle = "" } = fixedSettings;
    return { ...base.call(this), TimeZone: timezone, DateStyle: datestyle, client_encoding: "UTF8" };
  }

  override connect(): Promise<this>;
  override connect(callback: Done): void;
  override connect(callback?: Done): Promise<this> | undefined {
    const connected = this.#connect();
    if (callback === undefined) return connected;
    connected.then(() => callback(null), callback);
    return undefined;
  }

  async #connect(): Promise<this> {
    try {
      if (this.#unusable !== null) throw this.#unusable;
      await super.connect();
      await this.#introduce();
      return this;
    } catch (error) {
      const { candidates, at } = this.#route;
      if (candidates[at] === this.#candidate) this.#route.at = (at + 1) % candidates.length;
      super.end().catch(() => {});
      throw error;
    }
  }

  /** Detects what is at the other end, and makes the settings that it keeps. */
  async #introduce(): Promise<void> {
    const { url } = this.#route;
    const pid = url.pooled ? 0 : ((this as unknown as { processID: number | null }).processID ?? 0);
    const answer = await super.query<FirstAnswer>(`
      SELECT NOT local AS direct, current_setting('server_version_num')::int AS version, pg_is_in_recovery() AS standby,
        current_setting('transaction_read_only') = 'on' AS reads_only, ${this.#settings("local", this.#limits.lockMs)}
      FROM (SELECT pg_backend_pid() <> ${pid} AS local) AS met`);
    const [first] = answer.rows;
    if (first === undefined) throw new Error("PostgreSQL does not say who it is");
    this.pooled = !first.direct;
    this.#version = first.version;
    if (url.writable && (first.standby || first.reads_only)) {
      throw new Error(`${this.#candidate.host}:${this.#candidate.port} only reads (target_session_attrs)`);
    }
  }

  /** A list of expressions that make all settings; `local` is an SQL expression: whether they end with the transaction. */
  #settings(local: string, lockMs: number): string {
    const { statementMs, transactionMs, idleInTransactionMs, plansOnce } = this.#limits;
    const ours = {
      ...fixedSettings,
      ...(plansOnce && { plan_cache_mode: "force_generic_plan" }),
      lock_timeout: String(lockMs),
      statement_timeout: String(statementMs),
      idle_in_transaction_session_timeout: String(idleInTransactionMs),
      ...this.#route.url.settings,
    };
    const since = {
      client_connection_check_interval: [140_000, clientCheckMs],
      transaction_timeout: [170_000, transactionMs],
    };
    const make = (name: string, value: string): string =>
      `set_config(${pg.escapeLiteral(name)}, ${pg.escapeLiteral(value)}, ${local})`;
    const version = this.#version || "current_setting('server_version_num')::int";
    const newer = Object.entries(since)
      .filter(([name]) => !Object.hasOwn(ours, name))
      .map(([name, [from, value]]) => `CASE WHEN ${version} >= ${from} THEN ${make(name, String(value))} END`);
    return [...Object.entries(ours).map(([name, value]) => make(name, value)), ...newer].join(", ");
  }

  /** Begins a transaction, in one round trip with its own settings. */
  async #begin(): Promise<unknown> {
    const { lockMs, lockInTransactionMs } = this.#limits;
    const own = Object.hasOwn(this.#route.url.settings, "lock_timeout");
    let settings = "";
    if (this.pooled === true) settings = `; SELECT ${this.#settings("true", lockInTransactionMs)}`;
    else if (lockMs !== lockInTransactionMs && !own) settings = `; SET LOCAL lock_timeout = ${lockInTransactionMs}`;
    const said = saidAtBegin();
    const begun = await this.#send(`BEGIN${settings}${said === null ? "" : `; ${said.sql}`}`);
    this.#inTransaction = true;
    const row = (begun as pg.QueryResult[]).at?.(-1)?.rows[0] as { now: Date } | undefined;
    if (said !== null && row !== undefined) said.answered(row);
    return begun;
  }

  /** As text: a prepared statement would be another one behind a pooler, and these two decide what becomes of all the others. */
  async #end(how: "COMMIT" | "ROLLBACK"): Promise<unknown> {
    try {
      return await this.#send(how);
    } finally {
      this.#inTransaction = false;
    }
  }

  async #alone(config: Config): Promise<unknown> {
    await this.#send(`BEGIN; SELECT ${this.#settings("true", this.#limits.lockMs)}`);
    try {
      const answer = await this.#sendNamed(config);
      await this.#send("COMMIT");
      return answer;
    } catch (error) {
      await this.#send("ROLLBACK").catch(() => {});
      throw error;
    }
  }

  #send(config: Config): Promise<unknown> {
    return (super.query as (config: Config) => Promise<unknown>)(config);
  }

  /**
   * As a prepared statement where it has a name, but not through a pooler, which might pass it to another server process. One that a
   * migration has outdated is sent as text from then on; in a transaction, which the refusal has ended, the error is a serialization
   * failure: the transaction may be retried.
   */
  async #sendNamed(config: Config): Promise<unknown> {
    if (typeof config === "string" || !config.name) return this.#send(config);
    const { name, ...unnamed } = config;
    if (this.pooled === true || this.#route.outdated.has(name)) return this.#send(unnamed);
    try {
      return await this.#send(config);
    } catch (error) {
      if (!isOutdatedPlan(error)) throw error;
      this.#route.outdated.add(name);
      if (this.#inTransaction) throw Object.assign(error as Error, { code: "40001" });
      return this.#send(unnamed);
    }
  }

  /** Like `pg.Client.query`, promise form only. */
  ask(given: Config, values?: unknown[]): Promise<unknown> {
    const config = values === undefined ? given : { ...(typeof given === "string" ? { text: given } : given), values };
    const text = typeof config === "string" ? config : config.text;
    if (text === "BEGIN") return this.#begin();
    if (text === "COMMIT" || text === "ROLLBACK") return this.#end(text);
    if (this.pooled === true && !this.#inTransaction) return this.#alone(config);
    return this.#sendNamed(config);
  }
}
// `query` has a dozen overloads, of which the programs use one.
DatabaseConnection.prototype.query = DatabaseConnection.prototype.ask as typeof DatabaseConnection.prototype.query;

/** The part of an error that a person should read: a failed attempt at several addresses has its messages inside. */
export function sentenceOf(error: unknown): string {
  const { message, errors, code } = error as { message?: string; errors?: unknown[]; code?: string };
  if (message) return message;
  return errors?.map(sentenceOf).join("; ") ?? code ?? String(error);
}

/**
 * The most telling of several candidates' errors: a problem with the server itself, rather than that it does not support TLS. Different
 * ones are joined into one message.
 */
function whyOf(failed: readonly { candidate: Candidate | undefined; error: unknown }[]): unknown {
  const refusals = failed.filter(({ error }) => !sentenceOf(error).includes("does not support SSL"));
  const told = refusals.length > 0 ? refusals : failed;
  const sentences = new Set(told.map(({ error }) => sentenceOf(error)));
  const [first] = told;
  if (sentences.size <= 1 || first === undefined) return first?.error;
  const message = told.map(({ candidate: c, error }) => `${c?.host}:${c?.port}: ${sentenceOf(error)}`).join("; ");
  const { code, severity } = first.error as { code?: string; severity?: string };
  return Object.assign(new Error(message, { cause: first.error }), { code, severity });
}

/** Tries each candidate once. @throws the error that `whyOf` picks */
export async function byAnyWay<T>(
  route: Route,
  attempt: () => Promise<T>,
  isFinal: (error: unknown) => boolean,
): Promise<T> {
  const failed: { candidate: Candidate | undefined; error: unknown }[] = [];
  for (;;) {
    const candidate = route.candidates[route.at];
    try {
      return await attempt();
    } catch (error) {
      if (isFinal(error)) throw error;
      failed.push({ candidate, error });
      if (failed.length >= route.candidates.length) throw whyOf(failed);
    }
  }
}

/** A single connection, outside any pool; the caller ends it. */
export async function connectDatabase(url: string, work: DatabaseWork): Promise<DatabaseConnection> {
  const route = routeOf(parseDatabaseUrl(url));
  const attempt = async (): Promise<DatabaseConnection> => {
    const connection = new DatabaseConnection(route, work);
    return connection.connect();
  };
  return byAnyWay(route, attempt, () => false);
}
