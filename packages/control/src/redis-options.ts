import { readFileSync } from "node:fs";

/** Options common to all connections to Redis; each adds its own. */
export const redisOptions = {
  /**
   * A server that leaves a command unanswered for this long has vanished: the connection is dropped, and a new one opened. Longer than
   * BullMQ lets a server wait for a job.
   */
  socketTimeout: 20_000,
  /** After a failover the old primary may live on as a read-only replica; by then the address leads to the new one. */
  reconnectOnError: (error: Error): boolean => error.message.includes("READONLY"),
} as const;

interface Address {
  host: string;
  port: number;
}

/** A Redis as its URL describes it. Files are named, not read. */
export interface RedisAddress {
  /** One server, a local socket, or Sentinels that know the primary of `master`. */
  at:
    | { kind: "server"; server: Address }
    | { kind: "socket"; path: string }
    | { kind: "sentinels"; sentinels: Address[]; master: string };
  username: string | null;
  password: string | null;
  db: number;
  family: 0 | 4 | 6;
  /** Null: no TLS. `ca`, `cert` and `key` are paths of PEM files. */
  tls: { ca: string | null; cert: string | null; key: string | null; servername: string | null } | null;
  sentinelUsername: string | null;
  sentinelPassword: string | null;
}

/** The URL cannot be used; the message names the part, and shows no secret. */
export class RedisUrlError extends Error {}

const refuse = (why: string): never => {
  throw new RedisUrlError(why);
};

const schemes: Readonly<Record<string, { kind: RedisAddress["at"]["kind"]; tls: boolean }>> = {
  redis: { kind: "server", tls: false },
  rediss: { kind: "server", tls: true },
  unix: { kind: "socket", tls: false },
  "redis+sentinel": { kind: "sentinels", tls: false },
  "rediss+sentinel": { kind: "sentinels", tls: true },
};

const forms = "redis://, rediss://, unix:///path, redis+sentinel:// or rediss+sentinel://";

function decoded(text: string | undefined, part: string): string | null {
  if (text === undefined || text === "") return null;
  try {
    return decodeURIComponent(text);
  } catch {
    return refuse(`the ${part} contains a % that is not a valid escape`);
  }
}

function addressOf(text: string, portDefault: number): Address {
  const [, bracketed, plain, port] = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?$/.exec(text) ?? [];
  const host = bracketed ?? plain ?? refuse("the host must be a name or an address, optionally with a port");
  const number = port === undefined ? portDefault : Number(port);
  if (number < 1 || number > 65_535) refuse("the port must be between 1 and 65535");
  return { host, port: number };
}

function numberOf(text: string, part: string, max: number): number {
  if (!/^\d{1,9}$/.test(text) || Number(text) > max) refuse(`${part} must be a number from 0 to ${max}`);
  return Number(text);
}

/** Hands out parameters one by one: any left over at the end is refused by its name. */
function parametersOf(query: string | undefined) {
  const given = new URLSearchParams(query ?? "");
  const names = [...given.keys()];
  const left = new Set(names);
  if (left.size < names.length)
    refuse(`parameter ${names.find((name, i) => names.indexOf(name) !== i)} is given more than once`);
  return {
    take(name: string): string | null {
      left.delete(name);
      const value = given.get(name);
      if (value === "") refuse(`parameter ${name} is empty`);
      return value;
    },
    end(): void {
      for (const name of left) refuse(`parameter ${JSON.stringify(name)} is not supported here`);
    },
  };
}

/**
 * The only parser of `redis_url`: everything in it is either honoured by every connection, or refused by its name.
 *
 * @throws RedisUrlError
 */
export function parseRedisUrl(url: string): RedisAddress {
  const [, scheme = "", userinfo, hosts = "", path = "", query] =
    /^([a-z+]+):\/\/(?:([^/?#]*)@)?([^/?#@]*)(\/[^?#]*)?(?:\?([^#]*))?$/.exec(url) ?? refuse(`must be a URL: ${forms}`);
  if (scheme.includes("cluster")) refuse("Redis Cluster is not supported: use a single server or Sentinel");
  const form = schemes[scheme] ?? refuse(`the scheme must be one of ${forms}`);
  const parameters = parametersOf(query);
  const [username, ...rest] = (userinfo ?? "").split(":");
  const address: Omit<RedisAddress, "at" | "db"> = {
    username: decoded(username, "user"),
    password: decoded(rest.join(":"), "password"),
    family: familyOf(parameters.take("family")),
    tls: form.tls
      ? {
          ca: parameters.take("ca"),
          cert: parameters.take("cert"),
          key: parameters.take("key"),
          servername: parameters.take("servername"),
        }
      : null,
    sentinelUsername: form.kind === "sentinels" ? parameters.take("sentinel_username") : null,
    sentinelPassword: form.kind === "sentinels" ? parameters.take("sentinel_password") : null,
  };
  if (((address.tls?.cert ?? null) === null) !== ((address.tls?.key ?? null) === null))
    refuse("parameters cert and key must be given together");
  const db = parameters.take("db");
  parameters.end();
  const number = (text: string | null): number => (text === null ? 0 : numberOf(text, "its database", 2_147_483_647));
  if (form.kind === "socket") {
    if (hosts !== "" || path.length < 2)
      refuse("unix: requires the absolute path of a socket, as in unix:///run/redis.sock");
    return { ...address, at: { kind: "socket", path: decoded(path, "path") as string }, db: number(db) };
  }
  const parts = path
    .split("/")
    .slice(1)
    .filter((part) => part !== "");
  const master =
    form.kind === "sentinels"
      ? (parts.shift() ?? refuse("the path must be the name of the primary as configured in Sentinel"))
      : "";
  if (parts.length > 1) refuse("the path has too many segments");
  if (parts[0] !== undefined && db !== null) refuse("the database is given both in the path and as parameter db");
  const chosen = number(parts[0] ?? db);
  if (form.kind === "sentinels") {
    const sentinels = hosts.split(",").map((host) => addressOf(host, 26_379));
    return { ...address, at: { kind: "sentinels", sentinels, master: decoded(master, "path") as string }, db: chosen };
  }
  if (hosts.includes(",")) refuse("several hosts require Sentinel: redis+sentinel://HOST,HOST/NAME");
  return { ...address, at: { kind: "server", server: addressOf(hosts, 6379) }, db: chosen };
}

function familyOf(text: string | null): 0 | 4 | 6 {
  if (text === null) return 0;
  if (text !== "4" && text !== "6") refuse("parameter family must be 4 or 6");
  return Number(text) as 4 | 6;
}

const fileOf = (path: string | null) => (path === null ? {} : readFileSync(path, "utf8"));

/**
 * The ioredis options for a URL, in addition to `redisOptions`.
 *
 * @throws RedisUrlError; errors of reading a file that it names
 */
export function redisConnection(url: string) {
  const { at, username, password, db, family, tls, sentinelUsername, sentinelPassword } = parseRedisUrl(url);
  const secured = tls && {
    ...(tls.ca === null ? {} : { ca: fileOf(tls.ca) as string }),
    ...(tls.cert === null ? {} : { cert: fileOf(tls.cert) as string }),
    ...(tls.key === null ? {} : { key: fileOf(tls.key) as string }),
    ...(tls.servername === null ? {} : { servername: tls.servername }),
  };
  const common = {
    db,
    ...(family === 0 ? {} : { family }),
    ...(username === null ? {} : { username }),
    ...(password === null ? {} : { password }),
    ...(secured === null ? {} : { tls: secured }),
  };
  switch (at.kind) {
    case "server":
      return { ...common, ...at.server };
    case "socket":
      return { ...common, path: at.path };
    case "sentinels":
      return {
        ...common,
        sentinels: at.sentinels,
        name: at.master,
        ...(sentinelUsername === null ? {} : { sentinelUsername }),
        ...(sentinelPassword === null ? {} : { sentinelPassword }),
        ...(secured === null ? {} : { sentinelTLS: secured, enableTLSForSentinelMode: true }),
      };
  }
}
