import type { AnswerOf, OpsRouteKey } from "@tephra/wire";

/** What the service has refused, or that it cannot be reached (status 0). */
export class Fault extends Error {
  readonly status: number;
  readonly requestId: string | null;
  /** Seconds. */
  readonly retryAfter: number | null;
  /** Of a 401: how one signs in. */
  readonly mode: string | null;
  constructor(
    message: string,
    of: { status: number; requestId?: string | null; retryAfter?: number | null; mode?: string | null },
  ) {
    super(message);
    this.status = of.status;
    this.requestId = of.requestId ?? null;
    this.retryAfter = of.retryAfter ?? null;
    this.mode = of.mode ?? null;
  }
}

type Query = Readonly<Record<string, string | number | boolean | null | undefined>>;

/** What is told when a request was refused for want of a session. */
let onSignedOut = (): void => {};
export function tellSignedOut(listener: () => void): void {
  onSignedOut = listener;
}
export const signedOut = (): void => onSignedOut();

function textOf(body: unknown, status: number): string {
  const [fault] = Object.values((body ?? {}) as Record<string, { message?: unknown } | undefined>);
  return typeof fault?.message === "string" ? fault.message : `The service answered ${status}.`;
}

/**
 * The answer to a request, once its head is there.
 *
 * @throws Fault
 */
export async function request(
  method: string,
  path: string,
  { body, headers = {}, signal }: { body?: unknown; headers?: Record<string, string>; signal?: AbortSignal },
): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      credentials: "same-origin",
      headers: {
        "x-tephra-console": "1",
        ...(body !== undefined && { "content-type": "application/json" }),
        ...headers,
      },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      ...(signal && { signal }),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Fault("The service cannot be reached.", { status: 0 });
  }
  if (response.ok) return response;
  const retry = Number(response.headers.get("retry-after") ?? Number.NaN);
  const fault = new Fault(textOf(parse(await response.text()), response.status), {
    status: response.status,
    requestId: response.headers.get("x-openstack-request-id"),
    retryAfter: Number.isNaN(retry) ? null : retry,
    mode: /mode="(\w+)"/.exec(response.headers.get("www-authenticate") ?? "")?.[1] ?? null,
  });
  if (fault.status === 401 && !path.startsWith("/ops/session")) onSignedOut();
  throw fault;
}

/** @throws Fault */
export async function ask(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<unknown> {
  const response = await request(method, path, { body, ...(signal && { signal }) });
  const text = await response.text();
  return text === "" ? undefined : parse(text);
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** `?a=1&b=2` of what is not empty. */
export function queryText(query: Query): string {
  const pairs = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return pairs.length === 0 ? "" : `?${new URLSearchParams(pairs.map(([key, value]) => [key, String(value)]))}`;
}

export interface Asked {
  params?: Readonly<Record<string, string>>;
  query?: Query;
  body?: unknown;
  signal?: AbortSignal;
}

/** The path of a route below `/ops`, with its parameters. */
export function pathOf(key: OpsRouteKey, { params = {}, query = {} }: Asked): string {
  const path = key.slice(key.indexOf(" ") + 1);
  return path.replace(/:(\w+)/g, (_, name: string) => encodeURIComponent(params[name] ?? "")) + queryText(query);
}

/** Asks one of our own routes. @throws Fault */
export const call = <Key extends OpsRouteKey>(key: Key, asked: Asked = {}): Promise<AnswerOf<Key>> =>
  ask(key.slice(0, key.indexOf(" ")), pathOf(key, asked), asked.body, asked.signal) as Promise<AnswerOf<Key>>;
