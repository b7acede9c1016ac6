import { setTimeout as delay } from "node:timers/promises";
import { trustMachine } from "../machine-trust.ts";

export const urlDefault = "http://127.0.0.1:8776";
/** The project of a caller without a token, where the service requires none. */
export const projectDefault = "00000000000000000000000000000001";

/** The lowest microversion that supports everything used here. */
const microversion = "volume 3.5";
const requestTimeoutMs = 60_000;
/** How long a wait continues while the service does not respond: longer than a restart, shorter than a user's patience. */
const outageMaxMs = 60_000;
const outagePauseMs = 500;
const pageMax = 1000;

/** The service responded with an error. */
export class ApiError extends Error {
  readonly code: string;
  readonly status: number;

  constructor(fault: { code: string; status: number; message: string }) {
    super(fault.message);
    this.code = fault.code;
    this.status = fault.status;
  }
}

/** The service did not respond. */
export class UnreachableError extends Error {
  readonly code = "unreachable";
}

export interface ClientOptions {
  url: string;
  token?: string | undefined;
  /** Undefined: derived from a token of the form USER:PROJECT, otherwise the default project or the token's own. */
  project?: string | undefined;
}

/** Requests to one service. Every method throws ApiError or UnreachableError. */
export interface Caller {
  readonly url: string;
  get<T>(path: string, signal?: AbortSignal): Promise<T>;
  getText(path: string): Promise<{ status: number; text: string }>;
  /** One JSON document on each line, for as long as it takes. */
  getLines(path: string): Promise<AsyncIterable<Uint8Array>>;
  post<T>(path: string, body: unknown): Promise<T>;
  put<T>(path: string, body: unknown): Promise<T>;
  delete(path: string): Promise<void>;
  /** Where the service sends the caller for what it does not have itself. */
  locate(path: string): Promise<string>;
  /** Like `get`, but keeps retrying through a restart of the service, for at most a minute at a time. */
  getPatiently<T>(path: string, signal: AbortSignal): Promise<T>;
}

/** Client of the block storage API for one caller. */
export interface Client extends Caller {
  /** The project id for bodies that must contain one; undefined when only the service knows it. */
  readonly project: string | undefined;
  /** Path of a block storage resource in the caller's project. */
  block(path: string): string;
  /** All rows of a paged list; `key` is its name in the response body. */
  listAll<T extends { id: string }>(path: string, key: string): Promise<T[]>;
}

export function openClient(options: ClientOptions): Client {
  const project = options.project ?? projectOf(options.token);
  const token = options.token ?? `admin:${project}`;
  const base = project === undefined ? "/v3" : `/v3/${encodeURIComponent(project)}`;
  const headers = { "x-auth-token": token, "openstack-api-version": microversion };
  const caller = openCaller({ url: options.url, headers, faultOf });
  return {
    ...caller,
    project,
    block: (path) => base + path,
    listAll: async <T extends { id: string }>(path: string, key: string): Promise<T[]> => {
      const rows: T[] = [];
      const separator = path.includes("?") ? "&" : "?";
      for (let marker = ""; ; ) {
        const page = (await caller.get<Record<string, T[]>>(`${path}${separator}limit=${pageMax}${marker}`))[key] ?? [];
        rows.push(...page);
        const last = page.at(-1);
        if (last === undefined || page.length < pageMax) return rows;
        marker = `&marker=${encodeURIComponent(last.id)}`;
      }
    },
  };
}

export interface CallerOptions {
  url: string;
  /** Of every request. */
  headers: Readonly<Record<string, string>>;
  /** What a response with such a status and body says is wrong. */
  faultOf: (status: number, text: string) => ApiError;
}

interface Sending {
  body?: unknown;
  signal?: AbortSignal;
  redirect?: "follow" | "manual";
  accept?: string;
  /** It may take any time. */
  unlimited?: boolean;
}

export function openCaller({ url: given, headers, faultOf: fault }: CallerOptions): Caller {
  const url = given.replace(/\/+$/, "");
  if (url.startsWith("https:")) trustMachine();

  const send = async (
    method: string,
    path: string,
    { body, signal, redirect = "follow", accept, unlimited = false }: Sending = {},
  ): Promise<Response> => {
    const limits = [
      ...(unlimited ? [] : [AbortSignal.timeout(requestTimeoutMs)]),
      ...(signal === undefined ? [] : [signal]),
    ];
    try {
      return await fetch(url + path, {
        method,
        redirect,
        headers: {
          ...headers,
          ...(body === undefined ? {} : { "content-type": "application/json" }),
          ...(accept === undefined ? {} : { accept }),
        },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.any(limits),
      });
    } catch (cause) {
      signal?.throwIfAborted();
      throw new UnreachableError(`${url} does not answer: ${reasonOf(cause)}`, { cause });
    }
  };
  const call = async <T>(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<T> => {
    const response = await send(method, path, { body, ...(signal && { signal }) });
    const text = await bodyOf(response, url);
    if (!response.ok) throw fault(response.status, text);
    return (text === "" ? {} : parse(text, url)) as T;
  };
  const get = <T>(path: string, signal?: AbortSignal): Promise<T> => call<T>("GET", path, undefined, signal);

  return {
    url,
    get,
    getLines: async (path) => {
      const response = await send("GET", path, { accept: "application/x-ndjson", unlimited: true });
      if (!response.ok) throw fault(response.status, await bodyOf(response, url));
      return piecesOf(response, url);
    },
    post: (path, body) => call("POST", path, body),
    put: (path, body) => call("PUT", path, body),
    delete: async (path) => void (await call("DELETE", path)),
    getText: async (path) => {
      const response = await send("GET", path);
      return { status: response.status, text: await bodyOf(response, url) };
    },
    locate: async (path) => {
      const response = await send("GET", path, { redirect: "manual" });
      const text = await bodyOf(response, url);
      const place = response.headers.get("location");
      if (place === null) throw fault(response.status, text);
      return place;
    },
    getPatiently: async <T>(path: string, signal: AbortSignal): Promise<T> => {
      const giveUpAt = performance.now() + outageMaxMs;
      for (;;) {
        try {
          return await get<T>(path, signal);
        } catch (error) {
          if (!isOutage(error) || performance.now() > giveUpAt) throw error;
          await delay(outagePauseMs, undefined, { signal });
        }
      }
    },
  };
}

function projectOf(token: string | undefined): string | undefined {
  if (token === undefined) return projectDefault;
  return token.includes(":") ? token.slice(token.lastIndexOf(":") + 1) : undefined;
}

function isOutage(error: unknown): boolean {
  if (error instanceof UnreachableError) return true;
  return error instanceof ApiError && [502, 503, 504].includes(error.status);
}

async function* piecesOf(response: Response, url: string): AsyncGenerator<Uint8Array> {
  try {
    yield* response.body ?? [];
  } catch (cause) {
    throw new UnreachableError(`${url} closed the connection before the end of its answer: ${reasonOf(cause)}`, {
      cause,
    });
  }
}

async function bodyOf(response: Response, url: string): Promise<string> {
  try {
    return await response.text();
  } catch (cause) {
    throw new UnreachableError(`${url} closed the connection before the end of its answer: ${reasonOf(cause)}`, {
      cause,
    });
  }
}

function parse(text: string, url: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    const message = `${url} did not answer with JSON: is it a Tephra service?`;
    throw new ApiError({ code: "bad_answer", status: 200, message: `${message} (${reasonOf(cause)})` });
  }
}

/** Error responses are one object under the name of the fault: `{"badRequest": {"code": 400, "message": "…"}}`. */
function faultOf(status: number, text: string): ApiError {
  const plain = { code: "http_error", status, message: `status ${status}: ${text.trim().slice(0, 200)}` };
  try {
    const [name, fault] = Object.entries(JSON.parse(text) as Record<string, { message?: unknown }>)[0] ?? [];
    if (name === undefined || typeof fault?.message !== "string") return new ApiError(plain);
    return new ApiError({ code: name, status, message: fault.message });
  } catch {
    return new ApiError(plain);
  }
}

/** fetch reports only "fetch failed"; the actual error is its cause. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  if (error.cause instanceof AggregateError) return error.cause.errors.map(reasonOf).join(", ");
  return error.cause instanceof Error ? error.cause.message || error.cause.name : error.message;
}
