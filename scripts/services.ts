import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { BootstrapError, projectNode, root } from "./bootstrap.mjs";
import { startPostgres } from "./postgres.ts";
import { startRedis } from "./redis.ts";

export { startPostgres } from "./postgres.ts";
export { startRedis } from "./redis.ts";

export interface Services {
  databaseUrl: string;
  redisUrl: string;
  /** Redis first, then PostgreSQL, whose log every other program may still want to write to. Idempotent. */
  stop(): Promise<void>;
}

/**
 * PostgreSQL and Redis as private children of this process, with their data and logs under `dataDir`, and the schema
 * migrated. `env.DATABASE_URL` and `env.REDIS_URL` name servers to use instead; those are neither started nor stopped.
 */
export async function startServices(options: {
  dataDir: string;
  env?: NodeJS.ProcessEnv;
  say?: (line: string) => void;
}): Promise<Services> {
  const { dataDir, env = {}, say = () => {} } = options;
  await using started = new AsyncDisposableStack();
  const log = (name: string): string => join(dataDir, "log", `${name}.log`);
  let databaseUrl = env["DATABASE_URL"];
  if (databaseUrl === undefined) {
    const postgres = await startPostgres({ dataDir: join(dataDir, "postgres"), log: log("postgres"), say });
    started.defer(postgres.stop);
    databaseUrl = postgres.url;
  }
  let redisUrl = env["REDIS_URL"];
  if (redisUrl === undefined) {
    const redis = await startRedis({ dir: join(dataDir, "redis"), log: log("redis"), say });
    started.defer(redis.stop);
    redisUrl = redis.url;
  }
  migrate(databaseUrl);
  const owned = started.move();
  return { databaseUrl, redisUrl, stop: () => owned.disposeAsync() };
}

/**
 * Applies the migrations that a database lacks. Idempotent.
 *
 * @throws BootstrapError with Prisma's message when one does not apply
 */
export function migrate(databaseUrl: string): void {
  const result = spawnSync(projectNode(), [join(root, "node_modules/prisma/build/index.js"), "migrate", "deploy"], {
    cwd: root,
    encoding: "utf8",
    env: { ...process.env, DATABASE_URL: databaseUrl, CHECKPOINT_DISABLE: "1", PRISMA_HIDE_UPDATE_MESSAGE: "1" },
  });
  if (result.status !== 0) throw new BootstrapError(`the migrations do not apply:\n${result.stdout}${result.stderr}`);
}
