import { request } from "node:http";
import { patience } from "./wait-for.ts";

/** A response as received. Header names are lower-case. */
export interface RawReply {
  status: number;
  headers: Readonly<Record<string, string | string[] | undefined>>;
  text: string;
}

/** Sends one request with exactly these headers and bytes to a local port, including ones that `fetch` would not send. */
export function rawRequest(
  port: number,
  {
    method,
    path,
    headers = {},
    body,
  }: { method: string; path: string; headers?: Record<string, string>; body?: string | Buffer },
): Promise<RawReply> {
  // By default Node would send a DELETE with a body but without its length.
  const framed = body === undefined ? headers : { "content-length": String(Buffer.byteLength(body)), ...headers };
  return new Promise((done, failed) => {
    const asked = request({ host: "127.0.0.1", port, method, path, headers: framed, agent: false }, (answer) => {
      const chunks: Buffer[] = [];
      answer.on("data", (chunk: Buffer) => chunks.push(chunk));
      answer.on("error", failed);
      answer.on("end", () =>
        done({ status: answer.statusCode ?? 0, headers: answer.headers, text: Buffer.concat(chunks).toString("utf8") }),
      );
    });
    asked.on("error", failed);
    asked.setTimeout(20_000 * patience, () => asked.destroy(new Error(`${method} ${path}: no answer`)));
    asked.end(body);
  });
}
