import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { patience } from "../kit/wait-for.ts";
import { startApiOnly } from "./api-only.ts";

/** What a machine that does other things may take to notice. */
const slackMs = 10_000 * patience;

/** What was answered, and after how many milliseconds the client was cut off. */
interface CutOff {
  answer: string;
  afterMs: number;
}

const headers = "Host: localhost\r\nContent-Type: application/json\r\n";
/** What is begun, and never ends: a header, a body of a stated length, one in chunks, one that no route reads. */
const begun = [
  "GET /v3 HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
  `POST /v3/volumes HTTP/1.1\r\n${headers}Content-Length: 100000\r\n\r\n{`,
  `POST /ops/instances HTTP/1.1\r\n${headers}Content-Length: 60000\r\n\r\n{`,
  `GET /v3/volumes HTTP/1.1\r\n${headers}Content-Length: 100000\r\n\r\n`,
];

/** Sends what is begun, and then letter by letter. Resolves when it is cut off. */
function trickle(port: number, start: string, signal: AbortSignal): Promise<CutOff> {
  return new Promise((done, failed) => {
    const startedMs = performance.now();
    const socket = connect({ port, host: "127.0.0.1" });
    let answer = "";
    socket.setEncoding("utf8").on("data", (text: string) => {
      answer += text;
    });
    socket.on("error", () => {}); // Writing on after the end of the other side: the answer is what counts.
    socket.on("close", () => done({ answer, afterMs: performance.now() - startedMs }));
    signal.addEventListener("abort", () => {
      socket.destroy();
      failed(new Error("the client was not cut off"));
    });
    socket.write(start);
    const letters = setInterval(() => socket.writable && socket.write("a"), 500);
    socket.on("close", () => clearInterval(letters));
  });
}

it("cuts off clients that never finish their headers or bodies within 15 s, and serves others meanwhile", {
  timeout: 60_000 * patience,
}, async () => {
  await using instance = await startApiOnly();
  const port = Number(new URL(instance.url).port);
  const tooLong = AbortSignal.timeout(40_000 * patience);
  const slow = Array.from({ length: 48 }, (_, at) => trickle(port, begun[at % begun.length] ?? "", tooLong));
  await sleep(1_000);
  expect((await instance.request("GET", "/v3/")).status).toBe(200);
  for (const [at, { answer, afterMs }] of (await Promise.all(slow)).entries()) {
    // Who is answered before the end of a body that nobody reads is cut off all the same.
    expect(answer).toMatch(/^HTTP\/1\.1 (408|[24]\d\d) /);
    expect(afterMs, `${begun[at % begun.length]?.slice(0, 20)}`).toBeLessThan(15_000 + slackMs);
  }
});
