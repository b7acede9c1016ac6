import { request } from "node:http";

/** An answer as it came over the wire. Headers have their names in small letters. */
export interface RawReply {
  status: number;
  headers: Readonly<Record<string, string | string[] | undefined>>;
  text: string;
}

/** One request to a port of this machine with exactly these headers and bytes, also such as `fetch` would not send. */
export function rawRequest(
  port: number,
  {
    method,
    path,
    headers = {},
    body,
  }: { method: string; path: string; headers?: Record<string, string>; body?: string | Buffer },
): Promise<RawReply> {
  // By itself a deletion would be sent with a body and without its length.
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
    asked.setTimeout(20_000, () => asked.destroy(new Error(`${method} ${path}: no answer`)));
    asked.end(body);
  });
}
