import { Agent, buildConnector, type Dispatcher, request } from "undici";
import { EngineError, errnoOf } from "../errors.ts";
import { httpError } from "./http-failure.ts";
import type { ObjectKey } from "./repository.ts";

export interface SwiftAuth {
  version: "v1" | "v3";
  url: string;
  /** Called before each authentication: keys may be renewed. */
  login: () => Promise<{ user: string; key: string }>;
  /** For v3: the project's name. */
  project: string | null;
  userDomain: string;
  projectDomain: string;
  /** For v3: the region of the catalog endpoint; null: the first. */
  region: string | null;
  interface: string;
  /** Overrides the storage URL from the authentication. */
  storageUrl: string | null;
  /** Overrides the last component of the storage URL, for users that may write to other accounts. */
  account: string | null;
}

export interface SwiftNetwork {
  /** CA certificates in PEM that replace the system's, requested before each connection; null: the system's. */
  ca: (() => Promise<string>) | null;
  insecure: boolean;
  timeoutMs: number;
}

export interface SwiftRequest {
  method: "GET" | "HEAD" | "PUT" | "POST" | "DELETE";
  /** Path below the account, encoded, without a leading slash; including its query. */
  path: string;
  /** The attempted operation, for messages: "cannot store x". */
  verb: string;
  headers?: Record<string, string>;
  /** Creates the body; called once per attempt. */
  body?: () => AsyncIterable<Uint8Array>;
  signal?: AbortSignal | undefined;
  /** The object that a 404 refers to. */
  missing?: ObjectKey;
  /** Statuses from 400 on that are results rather than failures. */
  accept?: readonly number[];
}

interface Session {
  token: string;
  storageUrl: string;
}

const connectTimeoutMs = 10_000;
const connectionsMax = 64;
const errorBytesMax = 2000;

/**
 * Requests to one Swift account, with a token that is fetched on first use and again when the service no longer accepts it: the request
 * is then sent once more. Any other failure is thrown.
 */
export class SwiftClient implements AsyncDisposable {
  readonly #label: string;
  readonly #auth: SwiftAuth;
  readonly #agent: Agent;
  #session: Promise<Session> | null = null;

  constructor(label: string, auth: SwiftAuth, network: SwiftNetwork) {
    this.#label = label;
    this.#auth = auth;
    this.#agent = new Agent({
      connections: connectionsMax,
      headersTimeout: network.timeoutMs,
      bodyTimeout: network.timeoutMs,
      connect: connectorFor(network),
    });
  }

  async send(wanted: SwiftRequest): Promise<Dispatcher.ResponseData> {
    for (let renewed = false; ; renewed = true) {
      const pending = this.#currentSession();
      const session = await pending;
      const answer = await this.#try(wanted, session);
      if (answer.statusCode === 401 && !renewed) {
        await answer.body.dump();
        if (this.#session === pending) this.#session = null;
        continue;
      }
      if (answer.statusCode < 400 || wanted.accept?.includes(answer.statusCode)) return answer;
      throw await this.#failure(wanted, answer);
    }
  }

  translate(verb: string, cause: unknown): Error {
    if (cause instanceof EngineError) return cause;
    const reason = errnoOf(cause) || (cause instanceof Error ? cause.message : String(cause));
    return httpError({ label: this.#label, verb, status: undefined, reason, cause });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#agent.destroy();
  }

  async #try(wanted: SwiftRequest, session: Session): Promise<Dispatcher.ResponseData> {
    let refused: { reason: unknown } | null = null;
    async function* watched(body: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
      try {
        yield* body;
      } catch (reason) {
        refused = { reason };
        throw reason;
      }
    }
    try {
      return await request(`${session.storageUrl}/${wanted.path}`, {
        method: wanted.method,
        headers: { ...wanted.headers, "x-auth-token": session.token },
        dispatcher: this.#agent,
        ...(wanted.body === undefined ? {} : { body: watched(wanted.body()) as unknown as Uint8Array }),
        ...(wanted.signal === undefined ? {} : { signal: wanted.signal }),
      });
    } catch (cause) {
      const { reason } = (refused ?? {}) as { reason?: unknown };
      if (reason !== undefined) throw reason;
      wanted.signal?.throwIfAborted();
      throw this.translate(wanted.verb, cause);
    }
  }

  async #failure(wanted: { verb: string; missing?: ObjectKey }, answer: Dispatcher.ResponseData): Promise<Error> {
    let text = "";
    for await (const chunk of answer.body) {
      if (text.length < errorBytesMax) text += Buffer.from(chunk as Uint8Array).toString("utf8");
    }
    const reason = text
      .replace(/<[^>]*>/g, " ")
      .replace(/\s+/g, " ")
      .trim()
      .slice(0, 200);
    const retryAfter = answer.headers["retry-after"];
    return httpError({
      label: this.#label,
      verb: wanted.verb,
      status: answer.statusCode,
      reason,
      retryAfter: typeof retryAfter === "string" ? retryAfter : null,
      missing: wanted.missing,
    });
  }

  #currentSession(): Promise<Session> {
    if (this.#session === null) {
      const session = this.#auth.version === "v1" ? this.#authenticateV1() : this.#authenticateV3();
      this.#session = session;
      session.catch(() => {
        if (this.#session === session) this.#session = null;
      });
    }
    return this.#session;
  }

  async #authenticateV1(): Promise<Session> {
    const { url, login } = this.#auth;
    const { user, key } = await login();
    const headers = { "x-auth-user": user, "x-auth-key": key };
    const answer = await this.#ask(url, { method: "GET", headers });
    await answer.body.dump();
    const token = answer.headers["x-auth-token"];
    const storageUrl = answer.headers["x-storage-url"];
    if (typeof token !== "string" || typeof storageUrl !== "string") throw this.#odd("the answer has no token");
    return { token, storageUrl: this.#storageUrl(storageUrl) };
  }

  async #authenticateV3(): Promise<Session> {
    const { url, login, project, userDomain, projectDomain } = this.#auth;
    const { user, key } = await login();
    const scope = project === null ? {} : { scope: { project: { name: project, domain: { name: projectDomain } } } };
    const password = { user: { name: user, domain: { name: userDomain }, password: key } };
    const answer = await this.#ask(`${url.replace(/\/v3$/, "")}/v3/auth/tokens`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ auth: { identity: { methods: ["password"], password }, ...scope } }),
    });
    const token = answer.headers["x-subject-token"];
    const body = await answer.body.json().catch(() => null);
    if (typeof token !== "string") throw this.#odd("the answer has no token");
    return { token, storageUrl: this.#storageUrl(this.#auth.storageUrl ?? this.#fromCatalog(body)) };
  }

  async #ask(url: string, options: { method: "GET" | "POST"; headers: Record<string, string>; body?: string }) {
    const verb = `authenticate at ${this.#auth.url}`;
    let answer: Dispatcher.ResponseData;
    try {
      answer = await request(url, { ...options, dispatcher: this.#agent });
    } catch (cause) {
      throw this.translate(verb, cause);
    }
    if (answer.statusCode >= 300) throw await this.#failure({ verb }, answer);
    return answer;
  }

  #fromCatalog(body: unknown): string {
    const { catalog = [] } = (body as { token?: { catalog?: CatalogEntry[] } } | null)?.token ?? {};
    const { region, interface: wanted } = this.#auth;
    const endpoint = catalog
      .filter((service) => service.type === "object-store")
      .flatMap((service) => service.endpoints ?? [])
      .find((each) => each.interface === wanted && (region === null || region === (each.region_id ?? each.region)));
    if (typeof endpoint?.url !== "string") throw this.#odd(`the catalog has no ${wanted} endpoint of an object store`);
    return endpoint.url;
  }

  #storageUrl(told: string): string {
    const url = (this.#auth.storageUrl ?? told).replace(/\/+$/, "");
    return this.#auth.account === null ? url : url.replace(/[^/]+$/, encodeURIComponent(this.#auth.account));
  }

  #odd(reason: string): Error {
    return httpError({ label: this.#label, verb: `authenticate at ${this.#auth.url}`, status: 404, reason });
  }
}

/** Certificates are requested for each connection, so that renewed ones take effect without a restart. */
function connectorFor({ ca, insecure }: SwiftNetwork): buildConnector.connector {
  const fixed = { timeout: connectTimeoutMs, ...(insecure ? { rejectUnauthorized: false } : {}) };
  const plain = buildConnector(fixed);
  if (ca === null) return plain;
  let trusted: { pem: string; connect: buildConnector.connector } | null = null;
  return (options, callback) => {
    const connect = (pem: string): void => {
      if (trusted?.pem !== pem) trusted = { pem, connect: buildConnector({ ...fixed, ca: pem }) };
      trusted.connect(options, callback);
    };
    ca().then(connect, (error: Error) => callback(error, null));
  };
}

interface CatalogEntry {
  type?: string;
  endpoints?: { interface?: string; region?: string; region_id?: string; url?: string }[];
}
