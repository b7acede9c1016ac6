import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestProject } from "vitest/node";
import { ensureBuilt } from "../../scripts/bootstrap.mjs";
import { withClient } from "../../scripts/postgres.ts";
import { startServices } from "../../scripts/services.ts";

/** What every test file gets from `inject("servers")`. */
export interface TestServers {
  /** Database of the server from which databases are created; nobody stays connected to it. */
  adminUrl: string;
  /** A database with the schema and no row, to be copied with CREATE DATABASE … TEMPLATE. */
  template: string;
  redisUrl: string;
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
  // The whole suite can be run where the server's clock shows another zone than the programs'.
  const timezone = process.env["TEPHRA_TEST_TIMEZONE"];
  const { inDatabase } = await import("@tephra/control");
  const services = await startServices({ dataDir: dir, postgresSettings: timezone ? { timezone } : {} });
  const adminUrl = inDatabase(services.databaseUrl, "postgres");
  const template = "tephra_template";
  await withClient(adminUrl, (client) => client.query(`ALTER DATABASE tephra RENAME TO ${template}`));
  return {
    provided: { adminUrl, template, redisUrl: services.redisUrl, dir },
    stop: async () => {
      await services.stop();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
