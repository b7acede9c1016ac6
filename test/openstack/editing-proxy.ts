import { createServer, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";

/** A server before another one, which may answer otherwise. */
export interface EditingProxy extends AsyncDisposable {
  readonly url: string;
  /** All requests so far, as `GET /v3/…`. */
  readonly requests: readonly string[];
}

async function wholeOf(message: IncomingMessage): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for await (const piece of message) pieces.push(piece);
  return Buffer.concat(pieces);
}

/** `edit`: changes the JSON of an answer to that request where it is. */
export async function startEditingProxy(
  target: string,
  // biome-ignore lint/suspicious/noExplicitAny: any answer of the server behind it
  edit: (request: string, answer: any) => void,
): Promise<EditingProxy> {
  const requests: string[] = [];
  const server = createServer((request, response) => {
    void (async () => {
      requests.push(`${request.method} ${request.url}`);
      const { host: _, connection: __, "content-length": ___, ...headers } = request.headers;
      const body = await wholeOf(request);
      const reply = await fetch(target + request.url, {
        method: request.method ?? "GET",
        headers: headers as Record<string, string>,
        ...(body.length > 0 && { body: new Uint8Array(body) }),
      });
      const text = await reply.text();
      const answer = reply.ok && text !== "" ? JSON.parse(text) : null;
      if (answer !== null) edit(`${request.method} ${request.url}`, answer);
      response.writeHead(reply.status, { "content-type": "application/json" });
      response.end(answer === null ? text : JSON.stringify(answer));
    })().catch((error: unknown) => response.destroy(error as Error));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    requests,
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

/** A Cinder that says something else in place of fields of `connection_info`: of each attachment, the next of `cases`, and `always`. */
export function startLyingCinder(target: string, cases: readonly object[], always: object = {}): Promise<EditingProxy> {
  const given = new Map<string, object>();
  return startEditingProxy(target, (_request, answer) => {
    const all = answer.attachment ? [answer.attachment] : (answer.attachments ?? []);
    for (const { id, connection_info: info } of all) {
      if (!info?.driver_volume_type) continue;
      given.set(id, given.get(id) ?? cases[given.size] ?? {});
      Object.assign(info, always, given.get(id));
    }
  });
}
