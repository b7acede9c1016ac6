import { createHash, randomBytes } from "node:crypto";
import type { Database } from "../db/database.ts";
import { forgottenAtOnce } from "../db/listing.ts";

/** Bytes of a token: it cannot be guessed. */
const tokenBytes = 32;
/** No token of ours is longer: anything else is unknown without a query. */
const tokenPattern = /^[\w-]{43}$/;

const digestOf = (text: string): string => createHash("sha256").update(text).digest("hex");

/** The owner of a token, and the digest of what the password was compared with at the login. */
export interface TokenOwner {
  userName: string;
  credential: string;
}

export interface IssuedToken {
  /** Shown once: only its hash is stored. */
  token: string;
  expiresAt: Date;
}

/** Where a login came from, and whose events tell of it. */
export interface Login {
  projectId: string;
  requestId: string;
  address: string;
}

/**
 * A new token, and the event of the login. It is valid on every API process, also after a restart. `credential`: what the password was
 * compared with.
 */
export async function issueToken(
  database: Database,
  owner: TokenOwner,
  validSeconds: number,
  { projectId, requestId, address }: Login,
): Promise<IssuedToken> {
  const token = randomBytes(tokenBytes).toString("base64url");
  const [row] = await database.$queryRaw<{ expiresAt: Date }[]>`
    WITH told AS (
      INSERT INTO ovirt_events (project_id, kind, user_id, request_id, details)
      VALUES (${projectId}, 'login', ${owner.userName}, ${requestId}, jsonb_build_object('address', ${address}::text)))
    INSERT INTO ovirt_tokens (digest, user_name, credential, expires_at)
    VALUES (${digestOf(token)}, ${owner.userName}, ${digestOf(owner.credential)}, now() + ${validSeconds} * interval '1 second')
    RETURNING expires_at AS "expiresAt"`;
  if (!row) throw new Error("PostgreSQL returned no row");
  return { token, expiresAt: row.expiresAt };
}

/** The owner of a token; null for one that is unknown, withdrawn or expired by the database's clock. */
export async function findToken(database: Database, token: string): Promise<TokenOwner | null> {
  if (!tokenPattern.test(token)) return null;
  const [row] = await database.$queryRaw<TokenOwner[]>`
    SELECT user_name AS "userName", credential FROM ovirt_tokens WHERE digest = ${digestOf(token)} AND expires_at > now()`;
  return row ?? null;
}

/** Whether a token was issued for what the password is compared with today. */
export const isOfCredential = (owner: TokenOwner, credential: string): boolean =>
  owner.credential === digestOf(credential);

/** Withdraws a token on every API process. Unknown ones are ignored: who logs out twice is logged out. */
export async function revokeToken(database: Database, token: string): Promise<void> {
  if (!tokenPattern.test(token)) return;
  await database.$executeRaw`DELETE FROM ovirt_tokens WHERE digest = ${digestOf(token)}`;
}

/** Removes expired tokens, one batch. @returns whether there may be more */
export async function forgetTokens(database: Database): Promise<boolean> {
  const removed = await database.$executeRaw`
    WITH old AS (SELECT digest FROM ovirt_tokens WHERE expires_at < now() ORDER BY expires_at LIMIT ${forgottenAtOnce} FOR UPDATE SKIP LOCKED)
    DELETE FROM ovirt_tokens WHERE digest IN (SELECT digest FROM old)`;
  return removed === forgottenAtOnce;
}
