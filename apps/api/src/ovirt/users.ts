import { createHash, scrypt, timingSafeEqual } from "node:crypto";
import { promisify } from "node:util";
import { type Config, type Database, findToken, isOfCredential, type Principal, tellOvirtEvent } from "@tephra/control";
import { LRUCache } from "lru-cache";
import { openFailureLimit } from "../http/throttle.ts";
import { OvirtFault } from "./faults.ts";

type User = Config["ovirt"]["users"][number];

const derive = promisify<Buffer, Buffer, number, { N: number; r: number; p: number; maxmem: number }, Buffer>(
  // The overload without options hides the one that is used.
  scrypt as (
    password: Buffer,
    salt: Buffer,
    length: number,
    options: { N: number; r: number; p: number; maxmem: number },
    done: (error: Error | null, key: Buffer) => void,
  ) => void,
);

interface Hash {
  cost: number;
  parallel: number;
  salt: Buffer;
  key: Buffer;
}

const hashPattern = /^\$scrypt\$ln=(\d+),r=8,p=(\d+)\$([^$]+)\$([^$]+)$/;

function parseHash(text: string): Hash {
  const [, cost = "15", parallel = "1", salt = "", key = ""] = hashPattern.exec(text) ?? [];
  return {
    cost: Number(cost),
    parallel: Number(parallel),
    salt: Buffer.from(salt, "base64"),
    key: Buffer.from(key, "base64"),
  };
}

/** Compared with where the user is unknown, so that timing does not tell which names there are: it costs what the dearest of them does. */
const nobodyAmong = (hashes: readonly Hash[]): Hash => {
  const cost = Math.max(14, ...hashes.map((hash) => hash.cost));
  const parallel = Math.max(1, ...hashes.map((hash) => hash.parallel));
  return { cost, parallel, salt: Buffer.alloc(16), key: Buffer.alloc(32) };
};

const memoryMax = 512 * 1024 * 1024;

async function matches(password: string, { cost, parallel, salt, key }: Hash): Promise<boolean> {
  const options = { N: 2 ** cost, r: 8, p: parallel, maxmem: memoryMax };
  return timingSafeEqual(await derive(Buffer.from(password), salt, key.length, options), key);
}

/** Passwords compared at a time, and callers that may wait: each comparison takes a thread and some 32 MiB. */
const comparedAtOnce = 2;
const waitingMax = 64;

/** How long a password that was right is remembered, as a hash: some clients send it with every request. */
const rememberMs = 60_000;
const rememberedMax = 1_000;

/** Passwords have at most this many characters. */
const passwordMax = 1_024;

export interface SignedIn {
  user: User;
  principal: Principal;
}

/** Everything is of the user's own project, whatever the roles: oVirt's API has no place for the name of another. */
const principalOf = ({ name, project_id: projectId, roles }: User, requestId: string): Principal => {
  return { userId: name, projectId, roles, isAdmin: false, requestId };
};

/** One that lets `max` callers at a time do something, in the order in which they came. */
function openGate(max: number): <T>(work: () => Promise<T>) => Promise<T> {
  const waiting: (() => void)[] = [];
  let inside = 0;
  return async (work) => {
    if (inside >= max) {
      if (waiting.length >= waitingMax) {
        throw new OvirtFault(503, "Operation Failed", ["Too many logins at a time"], { retryAfter: 1 });
      }
      await new Promise<void>((resolve) => waiting.push(resolve));
    } else inside += 1;
    try {
      return await work();
    } finally {
      const next = waiting.shift();
      if (next) next();
      else inside -= 1;
    }
  };
}

/** Who may use this dialect: the users of the configuration, by password or by a token. */
export interface Users {
  /** Null for an unknown user or a wrong password. `address`: the caller's, whose failures are counted. */
  byPassword: (
    name: string,
    password: string,
    from: { address: string; requestId: string },
  ) => Promise<SignedIn | null>;
  /** Null for a token that is not valid, or no longer. */
  byToken: (token: string, requestId: string) => Promise<SignedIn | null>;
}

const tellFailure = (database: Database, principal: Principal, address: string): Promise<void> =>
  tellOvirtEvent(database, principal, { kind: "login-failed", details: { address } });

export function openUsers(config: Config, database: Database): Users {
  const users = new Map(config.ovirt.users.map((user) => [user.name, { user, hash: parseHash(user.password_hash) }]));
  const nobody = nobodyAmong([...users.values()].map(({ hash }) => hash));
  const remembered = new LRUCache<string, true>({ max: rememberedMax, ttl: rememberMs });
  const failures = openFailureLimit();
  const gate = openGate(comparedAtOnce);

  return {
    byPassword: async (name, password, { address, requestId }) => {
      if (users.size === 0 || password.length > passwordMax || password.includes("\0")) return null;
      const known = users.get(name);
      const digest = createHash("sha256").update(`${known?.user.password_hash}\0${name}\0${password}`).digest("hex");
      if (known && remembered.has(digest)) return { user: known.user, principal: principalOf(known.user, requestId) };
      const about = createHash("sha256").update(`${address}\0${name}`).digest("hex");
      const retryAfter = await failures.left(about);
      if (retryAfter !== null) {
        throw new OvirtFault(429, "Operation Failed", ["Too many failed logins. Try again later."], { retryAfter });
      }
      const isRight = await gate(() => matches(password, known?.hash ?? nobody));
      if (!known || !isRight) {
        await failures.count(about);
        if (known) await tellFailure(database, principalOf(known.user, requestId), address);
        return null;
      }
      remembered.set(digest, true);
      return { user: known.user, principal: principalOf(known.user, requestId) };
    },

    byToken: async (token, requestId) => {
      const owner = users.size === 0 ? null : await findToken(database, token);
      const known = owner && users.get(owner.userName);
      if (!known || !isOfCredential(owner, known.user.password_hash)) return null;
      return { user: known.user, principal: principalOf(known.user, requestId) };
    },
  };
}
