import { createHash } from "node:crypto";
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { ensureBuilt } from "../../scripts/bootstrap.mjs";
import { withClient } from "../../scripts/postgres.ts";
import { startServices } from "../../scripts/services.ts";
import { makeCertificate } from "./certificate.ts";

/** What every test file gets from `inject("servers")`. */
export interface TestServers {
  /** Database of the server from which databases are created; nobody stays connected to it. */
  adminUrl: string;
  /** The same through a pooler, where the suite is run so; programs then use this way. */
  pooledUrl: string | null;
  /** A database with the schema and no row, to be copied with CREATE DATABASE … TEMPLATE. */
  template: string;
  redisUrl: string;
  /** Name and password of a user who may do what the manual says, where the suite is run so; programs are then that user. */
  redisUser: { name: string; password: string } | null;
  /** Folder for whatever a test writes; removed when the run ends. */
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

// Every project of a run loads this file in a module graph of its own; one set of servers must do for all of them.
const shared = globalThis as { tephraTestServers?: Started };

/**
 * Builds the house and starts a real PostgreSQL and a real Redis on free ports, once per run.
 *
 * @returns what stops them when the last project has finished
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
  // Types are the business of `npm run check`; a test run shows behaviour, as far as there is some.
  await ensureBuilt(undefined, { typeErrors: "warn" });
  const dir = mkdtempSync(join(tmpdir(), "tephra-test-"));
  chmodSync(dir, 0o711); // As root, PostgreSQL runs as another user, who must reach its folder in here.
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

/**
 * Every suite can be run where the server shows another zone (TEPHRA_TEST_TIMEZONE), through PgBouncer, or over TLS by a CA of its own with
 * the tables in a schema of their own (TEPHRA_TEST_DATABASE `pgbouncer`, `tls`).
 */
async function surroundings(
  dir: string,
): Promise<Pick<Parameters<typeof startServices>[0], "postgresSettings" | "postgresTls" | "databaseParameters">> {
  const { TEPHRA_TEST_TIMEZONE: timezone, TEPHRA_TEST_DATABASE: database } = process.env;
  const zone = timezone ? { timezone } : {};
  if (database !== "tls") return { postgresSettings: zone, databaseParameters: "" };
  const folder = join(dir, "certificates");
  const { ca, cert, key } = await makeCertificate(folder);
  return {
    postgresSettings: zone,
    postgresTls: { cert, key },
    databaseParameters: `sslmode=verify-full&sslrootcert=${encodeURIComponent(ca)}&schema=tephra_own`,
  };
}

/** What a user of Redis may do who may do only what the manual says. */
export const redisRules = ["~bull:tephra-*", "resetchannels", "+@all", "-@dangerous", "+info"];

/** TEPHRA_TEST_REDIS `user-tls`: Redis speaks TLS by a CA of its own, and the programs are a user of it with few rights. */
async function aroundRedis(dir: string) {
  if (process.env["TEPHRA_TEST_REDIS"] !== "user-tls") return { redisOptions: {}, redisUser: null };
  const redisUser = { name: "tephra", password: "p@ss word" };
  const settings = [`user ${redisUser.name} on "#${sha256Of(redisUser.password)}" ${redisRules.join(" ")}`];
  return { redisOptions: { settings, tls: await makeCertificate(join(dir, "redis-tls")) }, redisUser };
}

const sha256Of = (text: string): string => createHash("sha256").update(text).digest("hex");
