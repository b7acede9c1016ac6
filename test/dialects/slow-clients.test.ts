import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { startApiOnly } from "./api-only.ts";

/** Sends a request line, and then a header that never ends, letter by letter. Resolves with what was answered when it is cut off. */
function trickle(port: number, signal: AbortSignal): Promise<string> {
  return new Promise((done, failed) => {
    const socket = connect({ port, host: "127.0.0.1" });
    let answer = "";
    socket.setEncoding("utf8").on("data", (text: string) => {
      answer += text;
    });
    socket.on("error", () => {}); // Writing on after the end of the other side: the answer is what counts.
    socket.on("close", () => done(answer));
    signal.addEventListener("abort", () => {
      socket.destroy();
      failed(new Error("the client was not cut off"));
    });
    socket.write("GET /v3 HTTP/1.1\r\nHost: localhost\r\nX-Slow: ");
    const letters = setInterval(() => socket.writable && socket.write("a"), 500);
    socket.on("close", () => clearInterval(letters));
  });
}

it("cuts off clients that never finish their headers, and serves others meanwhile", { timeout: 60_000 }, async () => {
  await using instance = await startApiOnly();
  const port = Number(new URL(instance.url).port);
  const tooLong = AbortSignal.timeout(40_000);
  const slow = Array.from({ length: 50 }, () => trickle(port, tooLong));
  await sleep(1_000);
  expect((await instance.request("GET", "/v3/")).status).toBe(200);
  for (const answer of await Promise.all(slow)) expect(answer).toMatch(/^HTTP\/1\.1 408 /);
});
