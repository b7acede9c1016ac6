import { Agent, request } from "node:http";

/** An answer of a server of images. */
export interface ImageReply {
  status: number;
  reason: string;
  headers: Record<string, string | string[] | undefined>;
  body: Buffer;
  text: string;
}

export interface ImageRequest {
  headers?: Record<string, string | number>;
  body?: Uint8Array | string;
  /** Ends the connection when this many bytes of the body are sent. */
  breakAfter?: number;
}

/** Sends one request, over a connection that may be used again. @throws when the connection ends without an answer */
export function askImage(
  method: string,
  url: string,
  { headers = {}, body, breakAfter }: ImageRequest = {},
  agent?: Agent,
): Promise<ImageReply> {
  return new Promise((resolve, reject) => {
    const bytes = typeof body === "string" ? Buffer.from(body) : (body ?? null);
    const length = bytes === null ? {} : { "content-length": bytes.length };
    const call = request(url, { method, agent, headers: { ...length, ...headers } }, (answer) => {
      const chunks: Buffer[] = [];
      answer.on("data", (chunk: Buffer) => chunks.push(chunk));
      answer.on("error", reject);
      answer.on("end", () => {
        const all = Buffer.concat(chunks);
        resolve({
          status: answer.statusCode ?? 0,
          reason: answer.statusMessage ?? "",
          headers: answer.headers,
          body: all,
          text: all.toString(),
        });
      });
    });
    call.on("error", reject);
    if (bytes !== null && breakAfter !== undefined) call.write(bytes.subarray(0, breakAfter), () => call.destroy());
    else call.end(bytes ?? undefined);
  });
}

/** What a ticket gives a right to, over at most as many connections as the server takes. */
export class ImageClient implements Disposable {
  readonly url: string;
  readonly #agent = new Agent({ keepAlive: true, maxSockets: 8 });

  constructor(url: string) {
    this.url = url;
  }

  ask(method: string, path = "", options: ImageRequest = {}): Promise<ImageReply> {
    return askImage(method, this.url + path, options, this.#agent);
  }

  async put(data: Uint8Array, offset: number): Promise<ImageReply> {
    const headers = { "content-range": `bytes ${offset}-${offset + data.length - 1}/*` };
    return this.ask("PUT", "?flush=n", { headers, body: data });
  }

  async get(offset: number, length: number): Promise<Buffer> {
    const answer = await this.ask("GET", "", { headers: { range: `bytes=${offset}-${offset + length - 1}` } });
    if (answer.status !== 206) throw new Error(`GET: ${answer.status} ${answer.text}`);
    return answer.body;
  }

  patch(asked: object): Promise<ImageReply> {
    return this.ask("PATCH", "", { body: JSON.stringify(asked) });
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }
}
