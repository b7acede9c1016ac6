import { PassThrough } from "node:stream";
import { pino } from "pino";
import { expect, test } from "vitest";
import { logVitals, type Vitals } from "./telemetry.ts";

test("a process logs what it weighs, and how long its event loop was blocked since the last line", async () => {
  const lines = new PassThrough();
  const blocker = setInterval(() => {
    const end = performance.now() + 60;
    while (performance.now() < end);
  }, 100);
  logVitals(pino(lines), 500);
  const keepAlive = setInterval(() => {}, 1_000);
  const [line] = (await lines.take(1).toArray()) as Buffer[];
  clearInterval(blocker);
  clearInterval(keepAlive);
  const vitals = JSON.parse(String(line)) as Vitals & { event: string };
  expect(vitals.event).toBe("process.vitals");
  expect(vitals.rss_mib).toBeGreaterThan(vitals.heap_mib);
  expect(vitals.loop_delay_max_ms).toBeGreaterThan(20);
  expect(vitals.descriptors === null || vitals.descriptors > 2).toBe(true);
});
