import type { Config, Database } from "@tephra/control";
import { loadConfig, openDatabase } from "@tephra/control/process";
import { inject } from "vitest";
import { createDatabase } from "./instance.ts";

/**
 * A database of its own, and the configuration of a service on it whose Redis nobody runs: for what needs PostgreSQL alone. Both end with
 * the stack.
 */
export async function openControl(
  stack: AsyncDisposableStack,
  options: { connectionsMax?: number } = {},
): Promise<{ databaseUrl: string; database: Database; config: Config }> {
  const databaseUrl = await createDatabase(inject("servers"), stack);
  const database = openDatabase(databaseUrl, options);
  stack.defer(() => database.$disconnect());
  const config = loadConfig({
    DATABASE_URL: databaseUrl,
    REDIS_URL: "redis://127.0.0.1:1",
    TEPHRA_DATA_DIR: "/tmp",
  });
  return { databaseUrl, database, config };
}
