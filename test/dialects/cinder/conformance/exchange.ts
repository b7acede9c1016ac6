import { readFileSync } from "node:fs";
import { request as httpRequest, type IncomingHttpHeaders } from "node:http";

export type Speaker = "a" | "b" | "admin";

/** One recorded request and the answer of a real Cinder to it. */
export interface Case {
  id: string;
  feature: string;
  request: {
    as: Speaker | null;
    method: string;
    path: string;
    microversion: string | null;
    body?: unknown;
    /** The bytes of a body that is no JSON value. */
    raw?: string;
    /** The length in bytes that the last character of `raw` is repeated up to. */
    padded_to?: number;
    /** Null: none is sent. */
    content_type?: string | null;
    headers?: Record<string, string | null>;
    no_project_in_path?: boolean;
  };
  response: Answer;
}

export interface Answer {
  status: number;
  headers: Record<string, string>;
  body: unknown;
}

/** The cases of one of the files here, in the order in which they were sent. */
export function readCases(file: "cinder-zed" | "cinder-router"): Case[] {
  const text = readFileSync(new URL(`${file}.jsonl`, import.meta.url), "utf8");
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as Case);
}

/** The run's ids, by the names that recorded requests and answers have for them. */
export class Names {
  readonly #values = new Map<string, string>();

  set(name: string, value: string): void {
    this.#values.set(name, value);
  }

  get(name: string): string {
    const value = this.#values.get(name);
    if (value === undefined) throw new Error(`nothing is called ${name} yet`);
    return value;
  }

  has(name: string): boolean {
    return this.#values.has(name);
  }

  /** `{name}` → its value. Braces around anything else stand for themselves. */
  fill(text: string): string {
    return text.replace(/\{(\w+)\}/g, (whole, name: string) => this.#values.get(name) ?? whole);
  }

  /** Every value → `<name>`; the longest values first, so that none is found inside another. */
  hide(text: string): string {
    const longestFirst = [...this.#values].sort(([, x], [, y]) => y.length - x.length);
    return longestFirst.reduce((rest, [name, value]) => rest.replaceAll(value, `<${name}>`), text);
  }
}

/** The headers and body of a recorded request, with the run's ids in them. */
export function requestOf({ request }: Case, names: Names): { path: string; headers: Headers; body: string | null } {
  const project = request.as === null || request.no_project_in_path ? "" : `/{proj_${request.as}}`;
  const path = request.path.startsWith("!") ? request.path.slice(1) : `/v3${project}/${request.path}`;
  const raw = request.raw?.padEnd(request.padded_to ?? 0, request.raw.at(-1));
  const body = raw ?? (request.body === undefined ? null : JSON.stringify(request.body));
  const headers = new Headers({ accept: "application/json" });
  if (request.as !== null) headers.set("x-auth-token", `token-${request.as}`);
  if (request.microversion !== null) headers.set("openstack-api-version", `volume ${request.microversion}`);
  if (body !== null && request.content_type !== null) {
    headers.set("content-type", request.content_type ?? "application/json");
  }
  for (const [name, value] of Object.entries(request.headers ?? {})) {
    if (value === null) headers.delete(name);
    else headers.set(name, value);
  }
  return { path: names.fill(path), headers, body: body === null ? null : names.fill(body) };
}

/** Sends exactly these headers and bytes: `fetch` would add headers of its own and refuse some methods. */
export function send(
  url: string,
  method: string,
  { path, headers, body }: { path: string; headers: Headers; body: string | null },
): Promise<Answer> {
  const { hostname, port } = new URL(url);
  if (body !== null) headers.set("content-length", String(Buffer.byteLength(body)));
  return new Promise((resolve, reject) => {
    const request = httpRequest({ hostname, port, path, method, headers: Object.fromEntries(headers) }, (response) => {
      const chunks: Buffer[] = [];
      response.on("data", (chunk: Buffer) => chunks.push(chunk));
      response.on("error", reject);
      response.on("end", () => {
        const text = Buffer.concat(chunks).toString("utf8");
        resolve({ status: response.statusCode ?? 0, headers: plain(response.headers), body: bodyOf(text) });
      });
    });
    request.on("error", reject);
    request.end(body ?? undefined);
  });
}

const plain = (headers: IncomingHttpHeaders): Record<string, string> =>
  Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, String(value)]));

function bodyOf(text: string): unknown {
  if (text === "") return null;
  try {
    return JSON.parse(text);
  } catch {
    return { "<text>": text };
  }
}
