import { once } from "node:events";
import {
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type OutgoingHttpHeaders,
  request,
  type ServerResponse,
} from "node:http";
import { Transform } from "node:stream";

/** What happens to a request: it passes through, gets a response from the proxy itself, or loses its connection at some point. */
export type Fate =
  | "pass"
  /** It passes after this delay. */
  | { delayMs: number }
  | { status: number; headers?: Record<string, string> }
  | "reset"
  /** The request is executed, but its response is lost. */
  | "lose answer"
  /** The response is cut off after this many bytes of its body. */
  | { cutAfterBytes: number }
  /** The text of the response body, which is held back until it is whole, is replaced. */
  | { rewrite: (body: string) => string }
  /** The response has a different ETag. */
  | { etag: string }
  /** One bit of the request body, in this byte, is flipped on the way. */
  | { flipAt: number };

export interface SeenRequest {
  method: string;
  path: string;
  headers: IncomingHttpHeaders;
  at: number;
}

export interface FlakyProxy extends AsyncDisposable {
  readonly port: number;
  readonly url: string;
  /** In order of arrival. */
  readonly seen: SeenRequest[];
  /** Called for every request. */
  decide: (request: SeenRequest) => Fate;
}

/** A proxy in front of a real server that treats requests as `decide` says. The Host header passes unchanged, for signatures. */
export async function startFlakyProxy(target: { port: number }): Promise<FlakyProxy> {
  const seen: SeenRequest[] = [];
  const server = createServer((incoming, outgoing) => {
    const met = {
      method: incoming.method ?? "",
      path: incoming.url ?? "",
      headers: incoming.headers,
      at: performance.now(),
    };
    seen.push(met);
    meet(incoming, outgoing, { port: target.port, fate: proxy.decide(met) });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port was given");
  const proxy: FlakyProxy = {
    port: address.port,
    url: `http://127.0.0.1:${address.port}`,
    seen,
    decide: () => "pass",
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
  return proxy;
}

function meet(incoming: IncomingMessage, outgoing: ServerResponse, { port, fate }: { port: number; fate: Fate }): void {
  if (fate === "reset") {
    incoming.socket.destroy();
    return;
  }
  if (typeof fate === "object" && "delayMs" in fate) {
    setTimeout(() => meet(incoming, outgoing, { port, fate: "pass" }), fate.delayMs);
    return;
  }
  if (typeof fate === "object" && "status" in fate) {
    incoming.resume();
    incoming.on("end", () => outgoing.writeHead(fate.status, fate.headers).end());
    return;
  }
  const { method, url: path, headers } = incoming;
  const upstream = request({ host: "127.0.0.1", port, method, path, headers, agent: false }, (answer) => {
    if (fate === "lose answer") {
      answer.resume();
      answer.on("end", () => incoming.socket.destroy());
      return;
    }
    if (typeof fate === "object" && "rewrite" in fate) {
      answerRewritten(answer, outgoing, fate.rewrite).catch(() => outgoing.destroy());
      return;
    }
    if (typeof fate === "object" && "etag" in fate) {
      outgoing.writeHead(answer.statusCode ?? 502, { ...answer.headers, etag: fate.etag });
      answer.pipe(outgoing);
      return;
    }
    outgoing.writeHead(answer.statusCode ?? 502, answer.rawHeaders);
    if (method === "HEAD") {
      // Swift sends an empty body after it, which the parser treats as an error: this response is complete by then.
      outgoing.end();
      return;
    }
    if (fate === "pass" || "flipAt" in fate) {
      answer.pipe(outgoing);
      return;
    }
    let left = fate.cutAfterBytes;
    answer.on("data", (chunk: Buffer) => {
      outgoing.write(chunk.subarray(0, left));
      left -= chunk.length;
      // What was written is flushed before the connection is closed.
      if (left <= 0) outgoing.write("", () => incoming.socket.destroySoon());
    });
    answer.on("end", () => outgoing.end());
  });
  upstream.on("error", () => outgoing.writableEnded || incoming.socket.destroy());
  outgoing.on("close", () => outgoing.writableFinished || upstream.destroy());
  if (typeof fate === "object" && "flipAt" in fate) incoming.pipe(flipping(fate.flipAt)).pipe(upstream);
  else incoming.pipe(upstream);
}

async function answerRewritten(
  answer: IncomingMessage,
  outgoing: ServerResponse,
  rewrite: (body: string) => string,
): Promise<void> {
  const chunks = await Array.fromAsync(answer as AsyncIterable<Buffer>);
  const body = Buffer.from(rewrite(Buffer.concat(chunks).toString("utf8")));
  const headers: OutgoingHttpHeaders = { ...answer.headers, "content-length": body.length };
  delete headers["transfer-encoding"];
  outgoing.writeHead(answer.statusCode ?? 502, headers).end(body);
}

function flipping(at: number): Transform {
  let passed = 0;
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      const bytes = Buffer.from(chunk);
      const index = at - passed;
      if (index >= 0 && index < bytes.length) bytes[index] = (bytes[index] as number) ^ 1;
      passed += bytes.length;
      done(null, bytes);
    },
  });
}
