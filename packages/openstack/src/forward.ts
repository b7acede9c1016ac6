import { readFileSync, statSync } from "node:fs";
import { type ClientRequest, Agent as HttpAgent, request as httpRequest, type IncomingMessage } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";

/** A request as it came in. */
export interface RequestToForward {
  method: string;
  /** From the root of the server, with the query; or a whole URL, of which that is taken. */
  path: string;
  /** Names and values in turn, as Node has them. */
  rawHeaders: readonly string[];
  /** In place of those that came with it; null: none. */
  set: Readonly<Record<string, string | null>>;
  body: Readable | Uint8Array;
  /** Aborted when whoever asked is gone. */
  signal: AbortSignal;
}

/** Sends a request on, and answers with what comes back, whose body has not been read. */
export type Forward = (origin: string, request: RequestToForward) => Promise<IncomingMessage>;

/** Without a byte in either direction. */
const silenceMs = 120_000;

/** Those of one connection only. https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1 */
const ofOneConnection = new Set([
  ...["connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"],
  ...["te", "trailer", "transfer-encoding", "upgrade"],
]);

/** Headers that pass on, in their order and with their repetitions; of the names that `set` has, its values. */
export function passedOn(rawHeaders: readonly string[], set: Readonly<Record<string, string | null>> = {}): string[] {
  const pairs: [string, string][] = [];
  for (let at = 0; at + 1 < rawHeaders.length; at += 2) pairs.push([rawHeaders[at] ?? "", rawHeaders[at + 1] ?? ""]);
  const named = pairs.filter(([name]) => name.toLowerCase() === "connection").flatMap(([, value]) => value.split(","));
  const dropped = new Set([...ofOneConnection, ...named.map((name) => name.trim().toLowerCase()), ...Object.keys(set)]);
  const kept = pairs.filter(([name]) => !dropped.has(name.toLowerCase()));
  const added = Object.entries(set).filter((pair): pair is [string, string] => pair[1] !== null);
  return [...kept, ...added].flat();
}

/** A request line may name a whole URL (RFC 9112, 3.2.2): its host says nothing about where the request goes on to. */
function pathIn(target: string): string {
  if (target.startsWith("/")) return target;
  const url = URL.parse(target);
  return url === null ? "/" : url.pathname + url.search;
}

/**
 * A request is sent once, follows no redirect, and streams both ways. `ca`: see openHttpClient. Rejects with Node's error when there is no
 * answer.
 */
export function openForward(ca: string | null): Forward {
  const plain = new HttpAgent({ keepAlive: true });
  let held: { agent: HttpsAgent; modifiedMs: number } | null = null;
  const trusting = (): HttpsAgent => {
    const modifiedMs = ca === null ? 0 : statSync(ca).mtimeMs;
    if (held?.modifiedMs !== modifiedMs) {
      held = {
        agent: new HttpsAgent({ keepAlive: true, ...(ca !== null && { ca: readFileSync(ca, "utf8") }) }),
        modifiedMs,
      };
    }
    return held.agent;
  };
  const begin = (url: URL, options: { method: string; headers: string[] }): ClientRequest =>
    url.protocol === "https:"
      ? httpsRequest(url, { ...options, agent: trusting() })
      : httpRequest(url, { ...options, agent: plain });
  return (origin, { method, path, rawHeaders, set, body, signal }) =>
    new Promise((resolve, reject) => {
      const url = new URL(origin);
      const headers = passedOn(rawHeaders, { ...set, host: url.host });
      const sent = begin(new URL(origin + pathIn(path)), { method, headers });
      const giveUp = (): unknown => sent.destroy(new Error("nobody waits for the answer any more"));
      signal.addEventListener("abort", giveUp, { once: true });
      sent.setTimeout(silenceMs, () => sent.destroy(new Error(`nothing was said for ${silenceMs / 1000} s`)));
      sent.once("response", resolve);
      sent.once("error", reject);
      sent.once("close", () => signal.removeEventListener("abort", giveUp));
      if (body instanceof Uint8Array) sent.end(body);
      // An answer may come before the request has ended; a failure is the request's own.
      else pipeline(body, sent).catch(() => {});
    });
}
