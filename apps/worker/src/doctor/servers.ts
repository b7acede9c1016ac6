import type { Config } from "@tephra/control";
import {
  connectDatabase,
  findDatabaseProblems,
  findStrayTimes,
  type KeystoneConfig,
  openDatabase,
  redisConnection,
  redisOptions,
} from "@tephra/control/process";
import { openHttpClient } from "@tephra/openstack";
import { Redis } from "ioredis";
import { openQueueProbe } from "../queue-probe.ts";
import { compareClocks, compareDate } from "./clocks.ts";
import { type Finding, failed, ok, reasonOf, warning } from "./finding.ts";

const postgresqlMin = 130_000;

/** PostgreSQL by each URL: reachable, of a supported version, with the required schema, rights, encoding and time zone. */
export async function checkPostgresql(config: Config): Promise<Finding[]> {
  const found = await checkDatabase("postgresql", config.database_url);
  if (config.database_direct_url === null) return found;
  return [...found, ...(await checkConnection("postgresql (direct)", config.database_direct_url))];
}

async function checkDatabase(subject: string, url: string): Promise<Finding[]> {
  const connected = await checkConnection(subject, url);
  if (connected.some(({ state }) => state === "failed")) return connected;
  const database = openDatabase(url, { connectionsMax: 1 });
  try {
    const problems = await findDatabaseProblems(database);
    const wrong = problems.map(({ reason, detail }) => failed(subject, `${reason}: ${detail}`, cureOf(reason)));
    const stray = wrong.length === 0 ? await findStrayTimes(database) : null;
    const told = stray === null ? [] : [warning(subject, stray, "See docs/operations.md, Times of another zone.")];
    return [...connected, ...wrong, ...told];
  } catch (error) {
    return [...connected, failed(subject, reasonOf(error), "Fix the problem that PostgreSQL reports.")];
  } finally {
    await database.$disconnect();
  }
}

function cureOf(reason: string): string {
  if (reason.includes("migrations") || reason.includes("schema")) return "Run: npx prisma migrate deploy.";
  if (reason.includes("rights"))
    return "Grant the user of DATABASE_URL these privileges, or make it the owner of the tables.";
  if (reason.includes("only be read"))
    return "Point DATABASE_URL at the primary, or add target_session_attrs=read-write.";
  return "See docs/operations.md, PostgreSQL.";
}

interface Server {
  version: number;
  name: string;
  ms: number;
}

async function checkConnection(subject: string, url: string): Promise<Finding[]> {
  try {
    const client = await connectDatabase(url, "script");
    try {
      const asked = Date.now();
      const { rows } = await client.query<Server>(
        `SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS name,
          (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS ms`,
      );
      const [server] = rows;
      if (server === undefined) throw new Error("the server does not report its version");
      const around = (asked + Date.now()) / 2;
      const findings: Finding[] =
        server.version < postgresqlMin
          ? [failed(subject, `PostgreSQL ${server.name} is too old`, "Version 13 or later is required.")]
          : [ok(subject, `PostgreSQL ${server.name} responds`)];
      const advice = "Synchronize both with a time server. Leases do not depend on this.";
      return [...findings, ...compareClocks(subject, server.ms, around, advice)];
    } finally {
      await client.end();
    }
  } catch (error) {
    return [failed(subject, reasonOf(error), "Check the host, port, user, password and TLS parameters in the URL.")];
  }
}

/** Redis: a test job makes the full round trip of a job, nothing is evicted, and a restart forgets little. */
export async function checkRedis(config: Config): Promise<Finding[]> {
  const subject = "redis";
  const connection = { ...redisOptions, ...redisConnection(config.redis_url) };
  let complaint: string | null = null;
  const open = (more: object): Redis => {
    const redis = new Redis({ ...connection, ...more });
    redis.on("error", (error: Error) => {
      complaint = reasonOf(error);
    });
    return redis;
  };
  const producer = open({ enableOfflineQueue: false, commandTimeout: 4_000, maxRetriesPerRequest: 1 });
  const consumer = open({ maxRetriesPerRequest: null });
  const probe = openQueueProbe({
    name: `tephra-doctor-${process.pid}`,
    producer,
    consumer,
    complaint: () => complaint,
  });
  try {
    const refusal = await probe.ask();
    if (refusal !== null) {
      const cure =
        "Until this is fixed, work continues without Redis, but slowly. See docs/operations.md, Redis, for the permissions needed.";
      return [failed(subject, refusal, cure)];
    }
    const findings = [ok(subject, "a test job was queued, received and completed")];
    return [...findings, ...(await checkRedisSettings(subject, producer))];
  } finally {
    await probe.close();
    producer.disconnect();
    consumer.disconnect();
  }
}

/** What a user with few rights may not ask is not judged. */
async function checkRedisSettings(subject: string, redis: Redis): Promise<Finding[]> {
  const setting = async (name: string): Promise<string | undefined> => {
    const answer = await redis.config("GET", name).catch(() => null);
    return (answer as string[] | null)?.[1];
  };
  const asked = Date.now();
  const [seconds, microseconds] = await redis.time().catch(() => [null, null]);
  const around = (asked + Date.now()) / 2;
  const [policy, appendOnly] = [await setting("maxmemory-policy"), await setting("appendonly")];
  const findings: Finding[] = [];
  if (policy !== undefined && policy !== "noeviction") {
    const advice = "Set it to noeviction: an evicted key is a lost job.";
    findings.push(warning(subject, `maxmemory-policy is ${policy}`, advice));
  }
  if (appendOnly === "no") {
    const advice = "Set it to yes: after a restart, jobs that it has forgotten are sent again only after a while.";
    findings.push(warning(subject, "appendonly is no", advice));
  }
  if (seconds === null) return findings;
  const ms = Number(seconds) * 1000 + Number(microseconds) / 1000;
  return [...findings, ...compareClocks(subject, ms, around, "Synchronize both with a time server.")];
}

/** Keystone, if configured: the service's own user can authenticate. */
export async function checkKeystone(keystone: KeystoneConfig): Promise<Finding[]> {
  const { username, password, user_domain, project, project_domain } = keystone;
  const user = { name: username, password, domain: { name: user_domain } };
  const scope = { project: { name: project, domain: { name: project_domain } } };
  const client = openHttpClient(keystone.ca);
  try {
    const asked = Date.now();
    const response = await client.ask(`${keystone.url}/v3/auth/tokens?nocatalog`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ auth: { identity: { methods: ["password"], password: { user } }, scope } }),
      signal: AbortSignal.timeout(keystone.timeout_ms),
    });
    await response.body?.cancel();
    const advice = "Synchronize both with a time server: tokens seem to be valid for longer, or to have ended.";
    const clock = compareDate("keystone", response.headers.get("date"), (asked + Date.now()) / 2, advice);
    if (response.status === 201) return [ok("keystone", `${username} can authenticate`), ...clock];
    const cure = "Check username, password, project and their domains in auth.keystone.";
    return [failed("keystone", `authentication of ${username} failed with status ${response.status}`, cure)];
  } catch (error) {
    return [failed("keystone", reasonOf(error), "Check url and ca in auth.keystone.")];
  }
}
