import { createServer, type IncomingMessage, type RequestListener, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { PassThrough } from "node:stream";
import { afterEach, expect, it } from "vitest";
import { openForward, passedOn } from "./forward.ts";

const servers: Server[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
});

async function serve(answer: RequestListener): Promise<string> {
  const server = createServer(answer);
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

const whole = async (message: AsyncIterable<Uint8Array>): Promise<string> => {
  const pieces: Uint8Array[] = [];
  for await (const piece of message) pieces.push(piece);
  return Buffer.concat(pieces).toString();
};

const request = (more: object) => ({
  method: "GET",
  path: "/v3/p/volumes?limit=1",
  rawHeaders: [] as string[],
  set: {},
  body: new Uint8Array(),
  signal: new AbortController().signal,
  ...more,
});

it("passes headers on as they are, but for those of one connection and those that are set", () => {
  const came = ["Accept", "a", "X-Twice", "1", "x-twice", "2", "Connection", "close, X-Own", "X-Own", "gone"];
  const more = ["Transfer-Encoding", "chunked", "Keep-Alive", "timeout=5", "Host", "outside", "Content-Length", "3"];
  expect(passedOn([...came, ...more], { host: "inside", "content-length": null })).toEqual([
    ...["Accept", "a", "X-Twice", "1", "x-twice", "2"],
    ...["host", "inside"],
  ]);
});

it("sends method, path, query and body, and answers without following where it leads", async () => {
  const asked: string[] = [];
  const origin = await serve(async (req, res) => {
    asked.push(`${req.method} ${req.url} ${req.headers.host} ${req.headers["x-own"]} ${await whole(req)}`);
    res.writeHead(302, ["Location", "/elsewhere", "Set-Cookie", "a", "Set-Cookie", "b"]).end("moved");
  });
  const answer = await openForward(null)(
    origin,
    request({ method: "PATCH", rawHeaders: ["X-Own", "1", "Host", "outside"], body: Buffer.from("body") }),
  );
  expect([answer.statusCode, answer.headers.location, answer.headers["set-cookie"]]).toEqual([
    302,
    "/elsewhere",
    ["a", "b"],
  ]);
  expect(await whole(answer)).toBe("moved");
  expect(asked).toEqual([`PATCH /v3/p/volumes?limit=1 ${new URL(origin).host} 1 body`]);
});

it("goes to its own origin, whatever host the request line names", async () => {
  const asked: (string | undefined)[] = [];
  const origin = await serve((req, res) => {
    asked.push(`${req.headers.host} ${req.url}`);
    res.end();
  });
  for (const path of ["http://evil.example:80/v3/p/volumes?limit=1", "http://@evil.example/v3", "*"])
    await whole(await openForward(null)(origin, request({ path })));
  const { host } = new URL(origin);
  expect(asked).toEqual([`${host} /v3/p/volumes?limit=1`, `${host} /v3`, `${host} /`]);
});

it("streams both ways: what has been sent is answered before the request has ended", async () => {
  const origin = await serve((req, res) => {
    res.writeHead(200);
    req.pipe(res);
  });
  const body = new PassThrough();
  body.write("first");
  const answer = await openForward(null)(origin, request({ method: "POST", body }));
  const pieces = answer[Symbol.asyncIterator]();
  expect(String((await pieces.next()).value)).toBe("first");
  body.end("second");
  expect(String((await pieces.next()).value)).toBe("second");
  expect((await pieces.next()).done).toBe(true);
});

it("gives up when whoever asked is gone, and says why there is no answer", async () => {
  const { promise: reached, resolve: reach } = Promise.withResolvers<IncomingMessage>();
  const origin = await serve((req) => reach(req));
  const gone = new AbortController();
  const asked = openForward(null)(origin, request({ signal: gone.signal }));
  const req = await reached;
  const closed = new Promise((resolve) => req.socket.once("close", resolve));
  gone.abort();
  await expect(asked).rejects.toThrow("nobody waits for the answer any more");
  await closed;
  const away = await serve(() => {});
  const server = servers.pop();
  await new Promise((resolve) => server?.close(resolve));
  await expect(openForward(null)(away, request({}))).rejects.toThrow("ECONNREFUSED");
});
