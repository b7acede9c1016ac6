import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { type Database, getBackup, NotFoundError } from "@tephra/control";
import {
  connectDatabase,
  findDatabaseProblems,
  inDatabase,
  mayPass,
  openDatabase,
  openPool,
} from "@tephra/control/process";
import { inTransaction } from "@tephra/control/work";
import { afterEach, beforeEach, describe, expect, inject, it, vi } from "vitest";
import { withClient } from "../../scripts/postgres.ts";
import { migrate } from "../../scripts/services.ts";
import { makeCertificate } from "../kit/certificate.ts";
import { createDatabase } from "../kit/instance.ts";
import { startPgbouncer, unprivileged } from "../kit/pgbouncer.ts";
import { startTcpProxy } from "../kit/tcp-proxy.ts";
import { patience } from "../kit/wait-for.ts";

vi.setConfig({ testTimeout: 120_000 });

let stack: AsyncDisposableStack;
let url: string;
beforeEach(async () => {
  stack = new AsyncDisposableStack();
  url = await createDatabase(inject("servers"), stack);
});
afterEach(() => stack.disposeAsync());

function open(at: string, options: Parameters<typeof openDatabase>[1] = {}): Database {
  const database = openDatabase(at, options);
  stack.defer(() => database.$disconnect());
  return database;
}

const settings = ["TimeZone", "DateStyle", "lock_timeout", "idle_in_transaction_session_timeout", "search_path"];
const shown = settings.map((name) => `current_setting('${name}') AS "${name}"`).join(", ");
const expected = {
  TimeZone: "UTC",
  DateStyle: "ISO, MDY",
  idle_in_transaction_session_timeout: "10s",
  search_path: '"public"',
};

/** The settings that statements find, one by itself and one in a transaction. */
async function settingsOf(database: Database): Promise<[unknown, unknown]> {
  const ask = `SELECT ${shown}`;
  const [alone] = await database.$queryRawUnsafe<unknown[]>(ask);
  const [inside] = await database.$transaction((tx) => tx.$queryRawUnsafe<unknown[]>(ask));
  return [alone, inside];
}

describe("every connection", () => {
  it("keeps its settings whatever the database, the role and the environment say", async () => {
    const name = new URL(url).pathname.slice(1);
    const strange = {
      timezone: "America/St_Johns",
      datestyle: "SQL, DMY",
      search_path: "nowhere",
      lock_timeout: "77s",
    };
    for (const [setting, value] of Object.entries(strange)) {
      await withClient(url, (client) => client.query(`ALTER DATABASE ${name} SET ${setting} = '${value}'`));
    }
    const [alone, inside] = await settingsOf(open(url, { work: "request" }));
    expect(alone).toEqual({ ...expected, lock_timeout: "300ms" });
    expect(inside).toEqual({ ...expected, lock_timeout: "5s" });
    const connection = await connectDatabase(url, "work");
    expect((await connection.query("SHOW TimeZone")).rows).toEqual([{ TimeZone: "UTC" }]);
    await connection.end();
  });

  it("finds one schema, which migrations have made, and no other", async () => {
    const empty = inDatabase(url, "postgres");
    const name = `own_${process.pid}`;
    await withClient(empty, (client) => client.query(`CREATE DATABASE ${name}`));
    stack.defer(() =>
      withClient(empty, async (client) => void (await client.query(`DROP DATABASE ${name} WITH (FORCE)`))),
    );
    const own = `${inDatabase(url, name)}?schema=App%20s`;
    migrate(own);
    const database = open(own);
    expect(await findDatabaseProblems(database)).toEqual([]);
    expect(await database.volume.count()).toBe(0);
    expect(
      await database.$queryRaw`SELECT schemaname, count(*)::int > 20 AS many FROM pg_tables
      WHERE schemaname NOT IN ('pg_catalog', 'information_schema') GROUP BY 1`,
    ).toEqual([{ schemaname: "App s", many: true }]);
    expect(await findDatabaseProblems(open(inDatabase(url, name)))).toMatchObject([
      { reason: "the database lacks migrations" },
    ]);
  });

  it("tells which rights it lacks", async () => {
    const role = `few_${process.pid}`;
    await withClient(url, async (client) => {
      await client.query(`CREATE ROLE ${role} LOGIN PASSWORD 'few'`);
      await client.query(`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO ${role}`);
      await client.query(`REVOKE UPDATE ON tasks FROM ${role}`);
    });
    stack.defer(() =>
      withClient(url, async (client) => void (await client.query(`DROP OWNED BY ${role}; DROP ROLE ${role}`))),
    );
    const limited = new URL(url);
    [limited.username, limited.password] = [role, "few"];
    const [problem] = await findDatabaseProblems(open(limited.href));
    expect(problem?.reason).toBe("the database refuses rights");
    expect(problem?.detail).toMatch(/tasks \(UPDATE\).*audit_id_seq \(USAGE\)/);
  });
});

describe("a prepared statement whose columns a migration has changed", () => {
  it("goes on, alone and in a transaction", async () => {
    const database = open(url);
    const ask = (client: Pick<Database, "$queryRaw">) =>
      client.$queryRaw<Record<string, unknown>[]>`SELECT * FROM grown WHERE id = ${1}::int`;
    await database.$executeRaw`CREATE TABLE grown (id int)`;
    await database.$executeRaw`INSERT INTO grown VALUES (1)`;
    for (const [column, work] of [
      ["a", () => ask(database)],
      ["b", () => inTransaction(database, ask)],
    ] as const) {
      await Promise.all(Array.from({ length: 20 }, () => ask(database)));
      await database.$executeRawUnsafe(`ALTER TABLE grown ADD COLUMN ${column} int DEFAULT 2`);
      // Every connection has prepared it.
      for (let round = 0; round < 20; round += 1) expect((await work())[0]).toMatchObject({ id: 1, [column]: 2 });
    }
  });
});

describe("a request", () => {
  it("waits longer for a connection that is only being made than for one that others keep", async () => {
    const proxy = stack.use(await startTcpProxy(new URL(url)));
    const database = open(proxy.through(url), { work: "request", connectionsMax: 2 });
    proxy.trouble({ kind: "late", ms: 650 });
    let began = performance.now();
    // More than there are connections: all wait for the first two.
    await Promise.all(Array.from({ length: 4 }, () => database.volume.count()));
    expect(performance.now() - began, "as long as it took").toBeGreaterThan(2_000);

    proxy.trouble(null);
    const [begun, held] = [[1, 2].map(() => Promise.withResolvers<void>()), Promise.withResolvers<void>()];
    const hold = (told: () => void) => () => {
      told();
      return held.promise;
    };
    const long = { maxWait: 30_000, timeout: 60_000 };
    const holders = begun.map(({ resolve }) => database.$transaction(hold(resolve), long));
    await Promise.all(begun.map(({ promise }) => promise));
    began = performance.now();
    await expect(database.volume.count()).rejects.toThrow("no connection was free");
    const waitedMs = performance.now() - began;
    held.resolve();
    await Promise.all(holders);
    expect(waitedMs).toBeLessThan(4_000 * patience);
  });
});

describe("a table that somebody has locked", () => {
  it.each(["directly", "through PgBouncer"])("keeps nobody waiting who does not need it, %s", async (way) => {
    let at = url;
    if (way !== "directly") at = stack.use(await startPgbouncer(url, { dir: inject("servers").dir })).url;
    const locker = await connectDatabase(url, "script");
    stack.defer(() => locker.end());
    const database = open(at, { work: "request", connectionsMax: 16 });
    const health = open(at, { work: "health", connectionsMax: 2 });
    await locker.query("BEGIN");
    await locker.query("LOCK TABLE backups IN ACCESS EXCLUSIVE MODE");
    const started = performance.now();
    const reads = Array.from({ length: 20 }, () =>
      database.backup.findMany().then(
        () => "read",
        () => "refused",
      ),
    );
    const writes = Array.from({ length: 20 }, () =>
      database
        .$transaction((tx) => tx.backup.count(), { maxWait: 2_000 })
        .then(
          () => "read",
          () => "refused",
        ),
    );
    expect(await database.volume.count()).toBe(0);
    expect(performance.now() - started).toBeLessThan(10_000 * patience);
    expect(await findDatabaseProblems(health)).toEqual([]);
    expect(new Set(await Promise.all([...reads, ...writes]))).toEqual(new Set(["refused"]));
    const waiting = await locker.query(
      "SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
    );
    expect(waiting.rows).toEqual([{ n: 0 }]);
    await locker.query("ROLLBACK");
    expect(await database.backup.count()).toBe(0);
  });
});

describe("through PgBouncer, which gives a connection for one transaction", () => {
  it("statements and transactions have the settings, and what they set stays with nobody", async () => {
    const bouncer = stack.use(await startPgbouncer(url, { dir: inject("servers").dir }));
    const database = open(bouncer.url, { work: "request", connectionsMax: 5 });
    const [alone, inside] = await settingsOf(database);
    expect([alone, inside]).toEqual([
      { ...expected, lock_timeout: "300ms" },
      { ...expected, lock_timeout: "5s" },
    ]);
    expect(await findDatabaseProblems(database)).toEqual([]);
    await expect(database.$queryRaw`SELECT 1 / 0`).rejects.toThrow();
    expect(await database.volume.count()).toBe(0);
    const own = `${bouncer.url}?schema=app`;
    migrate(own);
    expect(await findDatabaseProblems(open(own))).toEqual([]);
  });

  it("nothing is prepared, so that no program runs what another has prepared under the same name", async () => {
    const bouncer = stack.use(
      await startPgbouncer(url, { dir: inject("servers").dir, settings: { default_pool_size: "1" } }),
    );
    await open(url).$executeRaw`CREATE TABLE marks (mark int)`;
    const [one, other] = [open(bouncer.url, { connectionsMax: 1 }), open(bouncer.url, { connectionsMax: 1 })];
    // The two then count their statements differently.
    await other.$queryRaw`SELECT 1`;
    const mark = (database: Database, number: number, giveUp: boolean): Promise<unknown> =>
      inTransaction(database, async (tx) => {
        await tx.$executeRaw`INSERT INTO marks VALUES (${number})`;
        if (giveUp) throw new Error("given up");
      }).catch((error: Error) => expect(error.message).toBe("given up"));
    for (let number = 0; number < 12; number += 1) {
      await mark(number % 2 === 0 ? one : other, number, number % 3 === 2);
    }
    const prepared = await one.$queryRaw`SELECT name FROM pg_prepared_statements`;
    expect(prepared).toEqual([]);
    const marks = await one.$queryRaw<{ mark: number }[]>`SELECT mark FROM marks ORDER BY mark`;
    expect(marks.map((row) => row.mark)).toEqual([0, 1, 3, 4, 6, 7, 9, 10]);
  });
});

/** What becomes of a question that goes past the database client (readRows), and of one through it. */
async function outcomesOf(at: string): Promise<string[]> {
  const database = open(at, { connectionsMax: 2 });
  const principal = { userId: "u", projectId: "p", roles: [], isAdmin: false, requestId: "req-test" };
  const asked = [
    getBackup(database, principal, "00000000-0000-4000-8000-000000000000"),
    database.backup.count().then(() => Promise.reject(new NotFoundError("Backup", ""))),
  ];
  const outcomes = await Promise.allSettled(asked);
  return outcomes.map((outcome) => {
    if (outcome.status === "fulfilled") return "found";
    if (outcome.reason instanceof NotFoundError) return "answered";
    return mayPass(outcome.reason) ? "outage" : String(outcome.reason);
  });
}

describe("a server that lets nobody in", () => {
  it.each<[string, Partial<Pick<URL, "username" | "pathname" | "port" | "search">>]>([
    ["has no such role (28000)", { username: "nobody" }],
    ["has no such database (3D000)", { pathname: "/nowhere" }],
    ["has no TLS", { search: "?sslmode=require" }],
    ["is not there", { port: "1" }],
  ])("which %s, is an outage, whichever way it is asked", async (_, change) => {
    const at = new URL(url);
    expect(await outcomesOf(at.href)).toEqual(["answered", "answered"]);
    Object.assign(at, change);
    expect(await outcomesOf(at.href)).toEqual(["outage", "outage"]);
  });
});

describe("a server with TLS and a CA of its own", () => {
  it("is spoken to as sslmode says: by the programs, by migrations, by the doorbell", async () => {
    const dir = mkdtempSync(join(inject("servers").dir, "tls-"));
    const { ca: authority, cert, key } = await makeCertificate(dir, unprivileged);
    // PgBouncer with TLS towards its clients stands for the server: the programs see no difference.
    const settings = {
      listen_addr: "*",
      client_tls_sslmode: "require",
      client_tls_key_file: key,
      client_tls_cert_file: cert,
    };
    const bouncer = stack.use(await startPgbouncer(url, { dir: inject("servers").dir, settings }));
    const named = bouncer.url.replace("127.0.0.1", "localhost");
    const other = bouncer.url.replace("127.0.0.1", "127.0.0.2");
    const ca = `sslrootcert=${encodeURIComponent(authority)}`;
    const outcome = async (at: string): Promise<string> => {
      const pool = openPool(at, "work", { connectionsMax: 1 });
      stack.defer(() => pool.end());
      return pool.query("SELECT 1").then(
        () => "spoken to",
        (error: Error) => error.message,
      );
    };
    expect(await outcome(`${named}?sslmode=require`)).toBe("spoken to");
    expect(await outcome(bouncer.url)).toBe("spoken to");
    expect(await outcome(`${other}?sslmode=verify-ca&${ca}`)).toBe("spoken to");
    expect(await outcome(`${named}?sslmode=verify-full&${ca}`)).toBe("spoken to");
    expect(await outcome(`${other}?sslmode=verify-full&${ca}`)).toMatch(/IP.*(cert|altnames)/i);
    expect(await outcome(`${named}?sslmode=verify-full`)).toMatch(/certificate/);
    expect(await outcome(`${named}?sslmode=disable`)).toMatch(/TLS|SSL/i);
    expect(await outcome(`${named}?sslmode=verify-full&sslrootcert=/not/there`)).toMatch(/sslrootcert cannot be read/);
    const both = (word: string) => [word, word];
    expect(await outcomesOf(`${named}?sslmode=verify-full&${ca}`)).toEqual(both("answered"));
    expect(await outcomesOf(`${other}?sslmode=verify-full&${ca}`)).toEqual(both("outage"));
    expect(await outcomesOf(`${named}?sslmode=verify-full`)).toEqual(both("outage"));
    expect(await outcomesOf(`${named}?sslmode=disable`)).toEqual(both("outage"));
    migrate(`${named}?sslmode=verify-full&${ca}&schema=tls`);
    expect(await findDatabaseProblems(open(`${named}?sslmode=verify-full&${ca}&schema=tls`))).toEqual([]);
  });
});
