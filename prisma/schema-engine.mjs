#!/usr/bin/env node
// Prisma's schema engine for machines where the native one cannot be downloaded: the WebAssembly build of the same
// engine, reaching PostgreSQL through the driver adapter. The Prisma CLI starts it in its place (prisma.config.ts) and
// speaks with it as with the native one: either one sub-command (`cli can-connect-to-database` …), or JSON-RPC, one
// message per line on stdin and stdout. Migrations and their bookkeeping are therefore Prisma's own.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { PrismaPg } from "@prisma/adapter-pg";
import { bindMigrationAwareSqlAdapterFactory, ColumnTypeEnum } from "@prisma/driver-adapter-utils";
import * as bindings from "@prisma/schema-engine-wasm/schema_engine_bg";
import { inDatabase, parseDatabaseUrl, quotedIdentifier } from "../packages/control/src/database-url.ts";
// The sources, which Node runs as they are: what is compiled is not there yet when the client is generated.
import { connectDatabase } from "../packages/control/src/db/connection.ts";
import { openPool } from "../packages/control/src/db/pool.ts";

const charOid = 18;
const textOid = 25;
// Prisma's code for each way in which PostgreSQL turns a client away; anything else is "cannot be reached".
const connectionErrorCodes = { "3D000": "P1003", "28P01": "P1000", 28000: "P1000", "42P04": "P1009" };

/** A migration that begins with this line builds indexes while their tables are written: each of its statements ends a line, and commits. */
const outsideTransaction = /^-- Outside a transaction\.$/m;

const options = parseArguments(process.argv.slice(2));
const databaseUrl = options.datasource.url;
if (options.version) {
  process.stdout.write("schema-engine-cli wasm\n");
} else if (options.command !== undefined) {
  process.exitCode = await runCommand(options.command);
} else {
  await serve();
}

function parseArguments(args) {
  const parsed = { version: false, datamodels: [], datasource: {}, command: undefined };
  for (let i = 0; i < args.length; i += 1) {
    if (args[i] === "--version") parsed.version = true;
    else if (args[i] === "--datamodels") parsed.datamodels.push(args[++i]);
    else if (args[i] === "--datasource") parsed.datasource = JSON.parse(args[++i]);
    else if (args[i] === "cli") parsed.command = args[++i];
    else if (args[i].startsWith("--")) i += 1;
  }
  return parsed;
}

/** One sub-command; the CLI reads the outcome from the exit status and a JSON line on stderr. */
async function runCommand(command) {
  const verbs = {
    "can-connect-to-database": () => withClient(databaseUrl, (client) => client.query("SELECT 1")),
    "create-database": createDatabase,
    "drop-database": dropDatabase,
  };
  try {
    await verbs[command]?.();
    return 0;
  } catch (error) {
    const fields = { error_code: connectionErrorCodes[error.code] ?? "P1001", message: error.message };
    process.stderr.write(`\n${JSON.stringify({ level: "ERROR", target: "schema_engine::logger", fields })}\n`);
    return 1;
  }
}

/** Answers requests in the order in which they come, until stdin ends. */
async function serve() {
  const engine = lazily(startEngine);
  for await (const line of createInterface({ input: process.stdin })) {
    if (line.trim() === "") continue;
    const request = JSON.parse(line);
    if (request.method === undefined) continue;
    try {
      const result = (await answer(request, engine)) ?? {};
      // The native engine prints a diff by a call back to the CLI.
      if (request.method === "diff" && result.stdout) {
        send({ id: randomUUID(), method: "print", params: { content: result.stdout } });
      }
      send({ id: request.id, result });
    } catch (error) {
      send({ id: request.id, error: rpcError(error) });
    }
  }
}

async function answer({ method, params }, engine) {
  switch (method) {
    case "createDatabase":
      return { databaseName: await createDatabase() };
    case "dropDatabase":
      return dropDatabase();
    case "getDatabaseVersion":
      return (await engine()).version(params);
    default:
      return (await engine())[method](params);
  }
}

function send(message) {
  process.stdout.write(`${JSON.stringify({ jsonrpc: "2.0", ...message })}\n`);
}

function rpcError(error) {
  const message = error?.message ?? String(error);
  const data = { is_panic: false, message, error_code: error?.code ?? error?.error_code, meta: error?.meta ?? null };
  return { code: 4466, message, data };
}

async function startEngine() {
  const entry = createRequire(import.meta.url).resolve("@prisma/schema-engine-wasm/schema_engine_bg");
  const bytes = readFileSync(join(dirname(entry), "schema_engine_bg.wasm"));
  const { instance } = await WebAssembly.instantiate(bytes, { "./schema_engine_bg.js": bindings });
  bindings.__wbg_set_wasm(instance.exports);
  instance.exports.__wbindgen_start();
  const models = options.datamodels.map((path) => [path, readFileSync(path, "utf8")]);
  const settings = { datamodels: models.length > 0 ? models : undefined };
  return bindings.SchemaEngine.new(settings, () => {}, adapterFactory());
}

function adapterFactory() {
  const factory = new PrismaPg({ max: 1 });
  factory.connect = () => adapterFor(databaseUrl);
  factory.connectToShadowDb = () => connectToShadow();
  return bindMigrationAwareSqlAdapterFactory(factory);
}

/** An adapter over a pool of ours: one connection, as every program makes its own, in a schema that is there. */
async function adapterFor(url) {
  const { schema } = parseDatabaseUrl(url);
  const pool = openPool(url, "script", { connectionsMax: 1 });
  const place = await pool.query("SELECT to_regnamespace($1) IS NOT NULL AS made", [quotedIdentifier(schema)]);
  if (!place.rows[0].made) await pool.query(`CREATE SCHEMA IF NOT EXISTS ${quotedIdentifier(schema)}`);
  const connection = await pool.connect();
  const { pooled } = connection;
  connection.release();
  return mended(await new PrismaPg(pool, { schema, disposeExternalPool: true }).connect(), pooled);
}

/**
 * The adapter's own shadow database is the real one when it was given a connection string, and cannot be dropped while
 * its pool is open: so it is made, and removed after its pool has closed, here.
 */
async function connectToShadow() {
  const given = options.datasource.shadowDatabaseUrl;
  const name = `prisma_migrate_shadow_db_${randomUUID()}`;
  if (!given) await administer(`CREATE DATABASE ${quotedIdentifier(name)}`);
  const adapter = await adapterFor(given || inDatabase(databaseUrl, name));
  const dispose = adapter.dispose.bind(adapter);
  adapter.dispose = async () => {
    await dispose();
    if (!given) await administer(`DROP DATABASE IF EXISTS ${quotedIdentifier(name)}`);
  };
  return adapter;
}

/** Repairs of the adapter, which was written for clients and not for migrations. */
function mended(adapter, pooled) {
  let charColumns = [];
  const performIO = adapter.performIO.bind(adapter);
  const queryRaw = adapter.queryRaw.bind(adapter);
  // Catalogue queries return PostgreSQL's internal "char" type, which the adapter does not know: read it as text.
  adapter.performIO = async (query) => {
    // A lock of a session would stay with whatever connection of the pooler took it, long after this program has ended.
    const asked = pooled && query.sql.includes("pg_advisory_lock") ? { ...query, sql: "SELECT 1" } : query;
    const result = await performIO(asked);
    charColumns = (result.fields ?? []).flatMap((field, index) => (field.dataTypeID === charOid ? [index] : []));
    for (const index of charColumns) result.fields[index] = { ...result.fields[index], dataTypeID: textOid };
    return result;
  };
  adapter.queryRaw = async (query) => {
    const result = await queryRaw(query);
    for (const index of charColumns) result.columnTypes[index] = ColumnTypeEnum.Character;
    return result;
  };
  // The adapter splits scripts at every semicolon; one simple query keeps function bodies and literals whole, and is one transaction.
  adapter.executeScript = async (script) => {
    try {
      const driver = adapter.underlyingDriver();
      // Through a pooler every statement is a transaction of its own: there, indexes are built under a lock.
      if (pooled)
        await driver.query(outsideTransaction.test(script) ? script.replaceAll(/\bCONCURRENTLY\b/g, "") : script);
      else if (outsideTransaction.test(script)) await executeOneByOne(driver, script);
      else await driver.query(script);
    } catch (error) {
      adapter.onError(error);
    }
  };
  return adapter;
}

/** Waits for transactions that began earlier, however long they take: meanwhile nobody waits for it. */
async function executeOneByOne(driver, script) {
  const { rows } = await driver.query("SELECT current_setting('lock_timeout') AS before");
  await driver.query("SET lock_timeout = 0");
  try {
    for (const statement of script.split(/;\s*$/m)) if (statement.trim() !== "") await driver.query(statement);
  } finally {
    await driver.query(`SET lock_timeout = '${rows[0].before}'`);
  }
}

async function createDatabase() {
  const { database } = parseDatabaseUrl(databaseUrl);
  await administer(`CREATE DATABASE ${quotedIdentifier(database)}`);
  return database;
}

async function dropDatabase() {
  const { database } = parseDatabaseUrl(databaseUrl);
  await administer(`DROP DATABASE IF EXISTS ${quotedIdentifier(database)} WITH (FORCE)`);
}

function administer(statement) {
  return withClient(inDatabase(databaseUrl, "postgres"), (client) => client.query(statement));
}

async function withClient(url, work) {
  const client = await connectDatabase(url, "script");
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

function lazily(start) {
  let started;
  return () => {
    started ??= start();
    return started;
  };
}
