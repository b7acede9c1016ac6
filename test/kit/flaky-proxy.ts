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

/** What happens to one request: it passes, gets an answer of the proxy's own, or loses its connection at some point. */
export type Fate =
  | "pass"
  /** It passes after so long. */
  | { delayMs: number }
  | { status: number; headers?: Record<string, string> }
  | "reset"
  /** The request is carried out, its answer is lost. */
  | "lose answer"
  /** The answer breaks off after so many bytes of its body. */
  | { cutAfterBytes: number }
  /** The answer's body, a text, is another one. */
  | { rewrite: (body: string) => string }
  /** The answer bears another tag. */
  | { etag: string }
  /** One bit of the request's body changes on the way, at this byte. */
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
  /** In the order of arrival. */
  readonly seen: SeenRequest[];
  /** Asked for every request. */
  decide: (request: SeenRequest) => Fate;
}

/** A proxy before a real server that does to requests what `decide` says. The Host header passes as it is, for signatures. */
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
      void answerRewritten(answer, outgoing, fate.rewrite);
      return;
    }
    if (typeof fate === "object" && "etag" in fate) {
      outgoing.writeHead(answer.statusCode ?? 502, { ...answer.headers, etag: fate.etag });
      answer.pipe(outgoing);
      return;
    }
    outgoing.writeHead(answer.statusCode ?? 502, answer.rawHeaders);
    if (method === "HEAD") {
      // Swift sends an empty body behind it, which the parser takes for an error: by then this answer is complete.
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
      // What was written is sent before the connection goes.
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
