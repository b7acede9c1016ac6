import { createHash } from "node:crypto";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { ensureBuilt } from "../../scripts/bootstrap.mjs";
import { withClient } from "../../scripts/postgres.ts";
import { startServices } from "../../scripts/services.ts";
import { makeCertificate } from "./certificate.ts";

/** The value of `inject("servers")` in every test file. */
export interface TestServers {
  /** Administrative database from which others are created; nobody stays connected to it. */
  adminUrl: string;
  /** The same through a pooler, when the suite runs with one; the programs then use this URL. */
  pooledUrl: string | null;
  /** A database with the schema but no rows, to be copied with CREATE DATABASE … TEMPLATE. */
  template: string;
  redisUrl: string;
  /** A user with only the permissions documented in the manual, when the suite runs with one; the programs then use it. */
  redisUser: { name: string; password: string } | null;
  /** Folder for anything a test writes; removed when the run ends. */
  dir: string;
}

declare module "vitest" {
  interface ProvidedContext {
    servers: TestServers;
  }
}

interface Started {
  users: number;
  servers: Promise<{ provided: TestServers; stop: () => Promise<void> }>;
}

// Every project of a run loads this file in its own module graph; all must share one set of servers.
const shared = globalThis as { tephraTestServers?: Started };

/**
 * Builds the product and starts a real PostgreSQL and a real Redis on free ports, once per run.
 *
 * @returns a function that stops them when the last project has finished
 */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  shared.tephraTestServers ??= { users: 0, servers: start() };
  const started = shared.tephraTestServers;
  started.users += 1;
  const { provided, stop } = await started.servers;
  project.provide("servers", provided);
  return async () => {
    started.users -= 1;
    if (started.users > 0) return;
    delete shared.tephraTestServers;
    await stop();
  };
}

async function start(): Promise<{ provided: TestServers; stop: () => Promise<void> }> {
  // Types are checked by `npm run check`; a test run shows behaviour as far as the code compiles.
  await ensureBuilt(undefined, { typeErrors: "warn" });
  const dir = mkdtempSync(join(tmpdir(), "tephra-test-"));
  chmodSync(dir, 0o711); // When run as root, PostgreSQL runs as another user, who must reach its folder in here.
  await using stack = new AsyncDisposableStack();
  const { inDatabase } = await import("@tephra/control/process");
  const around = await surroundings(dir);
  const { redisOptions, redisUser } = await aroundRedis(dir);
  const services = await startServices({ dataDir: dir, ...around, redisOptions });
  stack.defer(async () => {
    await services.stop();
    rmSync(dir, { recursive: true, force: true });
  });
  const adminUrl = inDatabase(services.databaseUrl, "postgres");
  const template = "tephra_template";
  await withClient(adminUrl, (client) => client.query(`ALTER DATABASE tephra RENAME TO ${template}`));
  let pooledUrl: string | null = null;
  if (process.env["TEPHRA_TEST_DATABASE"] === "pgbouncer") {
    const { startPgbouncer } = await import("./pgbouncer.ts");
    pooledUrl = stack.use(await startPgbouncer(adminUrl, { dir })).url;
  }
  const provided = { adminUrl, pooledUrl, template, redisUrl: services.redisUrl, redisUser, dir };
  const owned = stack.move();
  return { provided, stop: () => owned.disposeAsync() };
}

/** Tests kill the server's processes, which loses nothing without these; only the machine's own death would. */
const unsafe = { fsync: "off", full_page_writes: "off" };

/**
 * Every suite can also be run with another server time zone (TEPHRA_TEST_TIMEZONE), through PgBouncer, or over TLS with a private CA and
 * the tables in a separate schema (TEPHRA_TEST_DATABASE `pgbouncer`, `tls`).
 */
async function surroundings(
  dir: string,
): Promise<Pick<Parameters<typeof startServices>[0], "postgresSettings" | "postgresTls" | "databaseParameters">> {
  const { TEPHRA_TEST_TIMEZONE: timezone, TEPHRA_TEST_DATABASE: database } = process.env;
  const settings = { ...unsafe, ...(timezone && { timezone }) };
  if (database !== "tls") return { postgresSettings: settings, databaseParameters: "" };
  const folder = join(dir, "certificates");
  const { ca, cert, key } = await makeCertificate(folder);
  return {
    postgresSettings: settings,
    postgresTls: { cert, key },
    databaseParameters: `sslmode=verify-full&sslrootcert=${encodeURIComponent(ca)}&schema=tephra_own`,
  };
}

/** Permissions of a Redis user who has only those documented in the manual. */
export const redisRules = ["~bull:tephra-*", "resetchannels", "+@all", "-@dangerous", "+info"];
/** The stream that tests configure for events, which the user of TEPHRA_TEST_REDIS may write. */
export const eventStream = "events";

/** TEPHRA_TEST_REDIS `user-tls`: Redis uses TLS with a private CA, and the programs connect as a user with few permissions. */
async function aroundRedis(dir: string) {
  if (process.env["TEPHRA_TEST_REDIS"] !== "user-tls") return { redisOptions: {}, redisUser: null };
  const redisUser = { name: "tephra", password: "p@ss word" };
  const settings = [
    `user ${redisUser.name} on "#${sha256Of(redisUser.password)}" ${redisRules.join(" ")} ~${eventStream}`,
  ];
  return { redisOptions: { settings, tls: await makeCertificate(join(dir, "redis-tls")) }, redisUser };
}

const sha256Of = (text: string): string => createHash("sha256").update(text).digest("hex");
