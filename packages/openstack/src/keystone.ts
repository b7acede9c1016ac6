import { z } from "zod";
import { type HttpClient, openHttpClient } from "./http-client.ts";

/** The Keystone v3 and the user that it is asked as. `url` is without `/v3`. */
export interface KeystoneSettings {
  url: string;
  username: string;
  password: string;
  user_domain: string;
  project: string;
  project_domain: string;
  timeout_ms: number;
  ca: string | null;
}

/** Keystone cannot be reached, its answer makes no sense, or it refuses the service's own user. */
export class KeystoneUnavailableError extends Error {
  override get name(): string {
    return "KeystoneUnavailableError";
  }
}

/** The fields used from Keystone's answers. */
const TokenAnswer = z.object({
  token: z.object({
    issued_at: z.coerce.date(),
    expires_at: z.coerce.date(),
    user: z.object({ id: z.string().min(1) }),
    project: z.object({ id: z.string().min(1) }).optional(),
    roles: z.array(z.object({ name: z.string() })).default([]),
    catalog: z
      .array(
        z.object({
          type: z.string(),
          endpoints: z.array(z.object({ interface: z.string(), region_id: z.string().nullish(), url: z.string() })),
        }),
      )
      .default([]),
  }),
});
export type Token = z.infer<typeof TokenAnswer>["token"];

/** Fraction of its lifetime after which the service's own token is renewed. */
const renewAfter = 0.8;

interface ServiceToken {
  text: string;
  token: Token;
  /** On the monotonic clock. */
  renewAtMs: number;
}

const unavailable = (why: string, cause?: unknown): KeystoneUnavailableError =>
  new KeystoneUnavailableError(`Keystone cannot be asked: ${why}`, { cause });

type Response = Awaited<ReturnType<HttpClient["ask"]>>;

/** fetch reports only "fetch failed"; the actual error is its cause. */
export const reasonOf = (error: unknown): string => {
  const { cause, message } = error as Error;
  return cause instanceof Error && cause.message !== "" ? cause.message : message;
};

async function parsedToken(response: Response): Promise<Token> {
  const parsed = TokenAnswer.safeParse(await response.json().catch(() => null));
  if (!parsed.success) throw unavailable("its answer is not that of a Keystone v3");
  return parsed.data.token;
}

/** A login that is kept and renewed. Every call throws KeystoneUnavailableError when Keystone cannot be asked. */
export interface KeystoneSession {
  /** The token that is good now, with what Keystone says of it. */
  current(): Promise<{ text: string; token: Token }>;
  /** That token was refused: the next call logs in anew, unless another caller has done so. */
  refused(text: string): void;
  /** Whose a token is, without the catalogue; null when it is invalid. */
  validate(subject: string): Promise<Token | null>;
}

/** A Keystone, queried with the credentials of the configured user. Asks nothing yet. */
export function openKeystone(keystone: KeystoneSettings): KeystoneSession {
  const tokensUrl = `${keystone.url}/v3/auth/tokens`;
  const client = openHttpClient(keystone.ca);
  let service: Promise<ServiceToken> | null = null;

  const ask = async (url: string, init: Omit<Parameters<HttpClient["ask"]>[1], "signal">): Promise<Response> => {
    try {
      return await client.ask(url, { ...init, signal: AbortSignal.timeout(keystone.timeout_ms) });
    } catch (cause) {
      throw unavailable(reasonOf(cause), cause);
    }
  };

  const logIn = async (): Promise<ServiceToken> => {
    const { username, password, user_domain, project, project_domain } = keystone;
    const user = { name: username, password, domain: { name: user_domain } };
    const scope = { project: { name: project, domain: { name: project_domain } } };
    const body = JSON.stringify({ auth: { identity: { methods: ["password"], password: { user } }, scope } });
    const askedAtMs = performance.now();
    const response = await ask(tokensUrl, { method: "POST", headers: { "content-type": "application/json" }, body });
    const text = response.headers.get("x-subject-token");
    if (response.status !== 201 || text === null) {
      await response.body?.cancel();
      throw unavailable(`the login of ${username} was answered with ${response.status}`);
    }
    // From the token's own two times, so that the clocks need not agree.
    const token = await parsedToken(response);
    const lifeMs = token.expires_at.getTime() - token.issued_at.getTime();
    return { text, token, renewAtMs: askedAtMs + lifeMs * renewAfter };
  };

  /** One login at a time, shared by all waiting callers. A failed one is not kept. */
  const logInAnew = (): Promise<ServiceToken> => {
    const attempt = logIn();
    service = attempt;
    attempt.catch(() => {
      if (service === attempt) service = null;
    });
    return attempt;
  };

  const serviceToken = async (): Promise<ServiceToken> => {
    const held = await (service ?? logInAnew());
    if (performance.now() < held.renewAtMs) return held;
    // Another caller may have started to renew it meanwhile.
    const current = await (service ?? logInAnew());
    return current === held ? await logInAnew() : current;
  };

  const refused = (text: string): void => {
    const held = service;
    held?.then(
      (token) => {
        if (service === held && token.text === text) service = null;
      },
      () => {},
    );
  };

  const validate = async (subject: string): Promise<Token | null> => {
    for (let attempt = 1; ; attempt += 1) {
      const mine = await serviceToken();
      const response = await ask(`${tokensUrl}?nocatalog`, {
        headers: { "x-auth-token": mine.text, "x-subject-token": subject },
      });
      if (response.status === 200) return parsedToken(response);
      await response.body?.cancel();
      if (response.status === 404) return null;
      // 401 concerns our own token: it was revoked, or Keystone has new keys.
      if (response.status !== 401 || attempt > 1) throw unavailable(`it answered ${response.status}`);
      service = null;
    }
  };

  return { current: serviceToken, refused, validate };
}
