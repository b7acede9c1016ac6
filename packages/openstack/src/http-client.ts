import { readFileSync, statSync } from "node:fs";
import { Agent, fetch } from "undici";

type Response = Awaited<ReturnType<typeof fetch>>;
interface Request {
  method?: string;
  headers?: Record<string, string>;
  body?: string;
  redirect?: "manual";
  signal: AbortSignal;
}

export interface HttpClient {
  /** Like `fetch`. */
  ask(url: string, request: Request): Promise<Response>;
}

/**
 * HTTP to one server. `ca`: a file of PEM certificates, reread when it has changed, one of which must be the root of the server's chain;
 * null: the trust store of the system and Node.
 */
export function openHttpClient(ca: string | null): HttpClient {
  let held: { agent: Agent; modifiedMs: number } | null = null;
  const agentOf = (file: string): Agent => {
    const { mtimeMs: modifiedMs } = statSync(file);
    if (held?.modifiedMs !== modifiedMs) {
      held?.agent.close().catch(() => {});
      held = { agent: new Agent({ connect: { ca: readFileSync(file, "utf8") } }), modifiedMs };
    }
    return held.agent;
  };
  return { ask: async (url, request) => fetch(url, ca === null ? request : { ...request, dispatcher: agentOf(ca) }) };
}
