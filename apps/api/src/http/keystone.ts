import { createHash } from "node:crypto";
import { type Role, roles } from "@tephra/control";
import type { KeystoneConfig } from "@tephra/control/process";
import {
  type HttpClient,
  KeystoneUnavailableError,
  openHttpClient,
  openKeystone as openSession,
  reasonOf,
  type Token,
} from "@tephra/openstack";
import { LRUCache } from "lru-cache";
import { z } from "zod";
import type { IdentifyToken, Identity } from "./identity.ts";
import { IdentityUnavailableError, Refusal, UnauthenticatedError } from "./refusals.ts";

/** Keystone's verdict on a token: its owner, or that it is invalid. */
type Verdict = { identity: Identity } | { identity: null };

const unavailable = (why: string, cause?: unknown): IdentityUnavailableError =>
  new IdentityUnavailableError(`Keystone cannot be asked: ${why}`, { cause });

type Response = Awaited<ReturnType<HttpClient["ask"]>>;

const json = { "content-type": "application/json" };

/** What a person shows to Keystone. */
export interface Credentials {
  user: string;
  password: string;
  user_domain: string;
  project: string;
  project_domain: string;
  passcode?: string | undefined;
}

const Projects = z.object({ projects: z.array(z.object({ id: z.string(), name: z.string() })) });

/** A Keystone, queried with the credentials of the configured user, or with those that a caller shows. */
export function openKeystone(keystone: KeystoneConfig) {
  const tokensUrl = `${keystone.url}/v3/auth/tokens`;
  const client = openHttpClient(keystone.ca);
  const session = openSession(keystone);

  const ask = async (url: string, init: Omit<Parameters<HttpClient["ask"]>[1], "signal">): Promise<Response> => {
    try {
      return await client.ask(url, { ...init, signal: AbortSignal.timeout(keystone.timeout_ms) });
    } catch (cause) {
      throw unavailable(reasonOf(cause), cause);
    }
  };

  const validate = async (subject: string): Promise<Token | null> =>
    session.validate(subject).catch((error: unknown) => {
      if (!(error instanceof KeystoneUnavailableError)) throw error;
      throw new IdentityUnavailableError(error.message, { cause: error });
    });

  /** @throws UnauthenticatedError; Refusal 401 where the user has a second factor */
  const tokenFor = async (auth: unknown): Promise<string> => {
    const response = await ask(`${tokensUrl}?nocatalog`, {
      method: "POST",
      headers: json,
      body: JSON.stringify({ auth }),
    });
    await response.body?.cancel();
    const text = response.headers.get("x-subject-token");
    if (response.status === 201 && text !== null) return text;
    if (response.status >= 500) throw unavailable(`it answered ${response.status}`);
    if (response.headers.has("openstack-auth-receipt"))
      throw new Refusal(401, "This account asks for a passcode, too.");
    throw new UnauthenticatedError();
  };

  const signIn = ({ user: name, password, user_domain, project, project_domain, passcode }: Credentials) => {
    const user = { name, domain: { name: user_domain } };
    const identity = {
      methods: passcode === undefined ? ["password"] : ["password", "totp"],
      password: { user: { ...user, password } },
      ...(passcode !== undefined && { totp: { user: { ...user, passcode } } }),
    };
    return tokenFor({ identity, scope: { project: { name: project, domain: { name: project_domain } } } });
  };

  /** A token of the same user for another project. */
  const rescope = (token: string, projectId: string): Promise<string> =>
    tokenFor({ identity: { methods: ["token"], token: { id: token } }, scope: { project: { id: projectId } } });

  /** Those that the token's owner may change to. */
  const projectsOf = async (token: string): Promise<{ id: string; name: string }[]> => {
    const response = await ask(`${keystone.url}/v3/auth/projects`, { headers: { "x-auth-token": token } });
    const parsed = Projects.safeParse(await response.json().catch(() => null));
    if (response.status !== 200 || !parsed.success) throw unavailable(`it answered ${response.status}`);
    return parsed.data.projects;
  };

  /** A token that is not valid any more is revoked already. */
  const revoke = async (token: string): Promise<void> => {
    const headers = { "x-auth-token": token, "x-subject-token": token };
    const response = await ask(tokensUrl, { method: "DELETE", headers });
    await response.body?.cancel();
    if (response.status >= 500) throw unavailable(`it answered ${response.status}`);
  };

  return { validate, signIn, rescope, projectsOf, revoke };
}

const isRole = (name: string): name is Role => (roles as readonly string[]).includes(name);

function identityOf(token: Token): Identity | null {
  const projectId = token.project?.id;
  if (projectId === undefined) return null;
  const known = token.roles.map((role) => role.name.toLowerCase()).filter(isRole);
  return { userId: token.user.id, projectId, roles: known, expiresAt: token.expires_at };
}

/** Keystone's tokens have at most a few hundred characters; longer ones are rejected without a request. */
const tokenLengthMax = 8_192;

/**
 * Validates tokens issued by a Keystone v3. Its verdicts, including negative ones, are cached for `cache_ms`, but no longer than the
 * token's lifetime, at most `cache_tokens_max` of them, under the token's SHA-256. Concurrent requests with the same token cause a single
 * query.
 *
 * @throws IdentityUnavailableError when Keystone cannot be reached, or rejects the service's own user
 */
export function amongKeystoneTokens(settings: KeystoneConfig): IdentifyToken {
  const keystone = openKeystone(settings);
  const answers = new LRUCache<string, Verdict, string>({
    max: settings.cache_tokens_max,
    ttl: settings.cache_ms,
    // A token evicted from a full cache while its query is pending still gets an answer.
    ignoreFetchAbort: true,
    fetchMethod: async (_digest, _stale, { options, context: token }) => {
      const found = await keystone.validate(token);
      const leftMs = found === null ? settings.cache_ms : found.expires_at.getTime() - Date.now();
      // A ttl of 0 would mean forever.
      options.ttl = Math.max(1, Math.min(settings.cache_ms, leftMs));
      return { identity: found && identityOf(found) };
    },
  });
  return async (token) => {
    if (!token || token.length > tokenLengthMax) throw new UnauthenticatedError();
    const digest = createHash("sha256").update(token).digest("hex");
    const verdict = await answers.fetch(digest, { context: token });
    if (!verdict?.identity) throw new UnauthenticatedError();
    return verdict.identity;
  };
}
