import type { Config } from "@tephra/control";
import {
  connectDatabase,
  findDatabaseProblems,
  findStrayTimes,
  type KeystoneConfig,
  openDatabase,
  openHttpClient,
  redisConnection,
  redisOptions,
} from "@tephra/control/process";
import { Redis } from "ioredis";
import { openQueueProbe } from "../queue-probe.ts";
import { type Finding, failed, ok, reasonOf, warning } from "./finding.ts";

const postgresqlMin = 130_000;
/** Clocks further apart than this make times in logs hard to compare; nothing else depends on them. */
const clockMsMax = 5_000;

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
    const told = stray === null ? [] : [warning(subject, stray, "docs/operations.md, Times of another zone.")];
    return [...connected, ...wrong, ...told];
  } catch (error) {
    return [...connected, failed(subject, reasonOf(error), "Mend what PostgreSQL names.")];
  } finally {
    await database.$disconnect();
  }
}

function cureOf(reason: string): string {
  if (reason.includes("migrations") || reason.includes("schema")) return "Run: npx prisma migrate deploy.";
  if (reason.includes("rights")) return "Grant the rights to the user of DATABASE_URL, or let it own the tables.";
  if (reason.includes("only be read")) return "Name the primary in DATABASE_URL, or target_session_attrs=read-write.";
  return "Mend what is named; docs/operations.md, PostgreSQL.";
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
      if (server === undefined) throw new Error("it does not say its version");
      const apart = Math.round(server.ms - (asked + Date.now()) / 2);
      const findings: Finding[] =
        server.version < postgresqlMin
          ? [failed(subject, `PostgreSQL ${server.name} is too old`, "Version 13 or newer is needed.")]
          : [ok(subject, `PostgreSQL ${server.name} answers`)];
      if (Math.abs(apart) > clockMsMax) {
        const seen = `its clock and that of this machine are ${(Math.abs(apart) / 1000).toFixed(1)} s apart`;
        findings.push(warning(subject, seen, "Let both follow a time server; leases do not depend on it."));
      }
      return findings;
    } finally {
      await client.end();
    }
  } catch (error) {
    return [failed(subject, reasonOf(error), "Check host, port, user, password and TLS parameters of its URL.")];
  }
}

/** Redis: a test job makes the full round trip of a job, and nothing is evicted. */
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
        "Until it is mended, work is done without Redis, slowly; docs/operations.md, Redis, lists the rights.";
      return [failed(subject, refusal, cure)];
    }
    const findings = [ok(subject, "a job of its own made the whole round")];
    const policy = await producer.config("GET", "maxmemory-policy").catch(() => null);
    const [, value] = (policy as string[] | null) ?? [];
    if (value !== undefined && value !== "noeviction") {
      findings.push(warning(subject, `maxmemory-policy is ${value}`, "Set noeviction: an evicted key is a lost job."));
    }
    return findings;
  } finally {
    await probe.close();
    producer.disconnect();
    consumer.disconnect();
  }
}

/** Keystone, if configured: the service's own user can authenticate. */
export async function checkKeystone(keystone: KeystoneConfig): Promise<Finding[]> {
  const { username, password, user_domain, project, project_domain } = keystone;
  const user = { name: username, password, domain: { name: user_domain } };
  const scope = { project: { name: project, domain: { name: project_domain } } };
  const client = openHttpClient(keystone.ca);
  try {
    const response = await client.ask(`${keystone.url}/v3/auth/tokens?nocatalog`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ auth: { identity: { methods: ["password"], password: { user } }, scope } }),
      signal: AbortSignal.timeout(keystone.timeout_ms),
    });
    await response.body?.cancel();
    if (response.status === 201) return [ok("keystone", `${username} is let in`)];
    const cure = "Check auth.keystone: username, password, project and their domains.";
    return [failed("keystone", `the login of ${username} was answered with ${response.status}`, cure)];
  } catch (error) {
    return [failed("keystone", reasonOf(error), "Check auth.keystone: url and ca.")];
  }
}
