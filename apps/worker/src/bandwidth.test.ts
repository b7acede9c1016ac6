import type { BandwidthLimit, Priority } from "@tephra/control/work";
import { expect, test } from "vitest";
import { Bandwidth, type Flow } from "./bandwidth.ts";

const limit = (of: Partial<BandwidthLimit>): BandwidthLimit => ({
  traffic: "repositories",
  scope: "worker",
  name: "*",
  bytesPerSecond: 1_000_000,
  windows: [],
  ...of,
});
const flow = (of: Partial<Flow> = {}): Flow => ({
  traffic: "repositories",
  projectId: "a",
  place: "main",
  priority: "normal",
  signal: new AbortController().signal,
  onWait: () => {},
  ...of,
});
const never = async (): Promise<number> => {
  throw new Error("nothing is shared");
};
const now = new Date("2026-11-30T10:00:00Z");

test("without a limit nothing waits, and a limit holds for what it names alone", () => {
  const bandwidth = new Bandwidth({ host: "here", reserve: never });
  expect(bandwidth.pace(1e9, flow())).toBeNull();
  bandwidth.update(
    [
      limit({ name: "there" }),
      limit({ scope: "project", name: "b" }),
      limit({ scope: "repository", name: "other" }),
      limit({ traffic: "volumes", scope: "backend", name: "main" }),
    ],
    now,
  );
  expect(bandwidth.limits(flow())).toBe(false);
  expect(bandwidth.pace(1e9, flow())).toBeNull();
  for (const other of [{ projectId: "b" }, { place: "other" }, { traffic: "volumes" }] as const)
    expect(bandwidth.limits(flow(other))).toBe(true);
});

test("bytes never go faster than the worker's own limit allows", async () => {
  const bandwidth = new Bandwidth({ host: "here", reserve: never });
  bandwidth.update([limit({ name: "here" })], now);
  const began = performance.now();
  for (let piece = 0; piece < 16; piece += 1) await bandwidth.pace(65_536, flow());
  // What was not used before can be made up for.
  expect(performance.now() - began).toBeGreaterThan(1048 - 300 - 50);
});

test("small pieces share reservations, and each priority has its own", async () => {
  const asked: [number, Priority][] = [];
  const reserve = async (_: unknown, { bytes, priority }: { bytes: number; priority: Priority }): Promise<number> => {
    asked.push([bytes, priority]);
    return 0;
  };
  const bandwidth = new Bandwidth({ host: "here", reserve });
  bandwidth.update([limit({ scope: "repository", name: "main" })], now);
  for (let piece = 0; piece < 10; piece += 1) await bandwidth.pace(10_000, flow());
  await bandwidth.pace(250_000, flow({ priority: "high" }));
  expect(asked).toEqual([
    [100_000, "normal"],
    [250_000, "high"],
  ]);
});

test("what waits takes note of a change, of the end of its limit, and of its task's end", async () => {
  const waits = [1e9, 0];
  const bandwidth = new Bandwidth({ host: "here", reserve: async () => waits.shift() ?? 1e9 });
  const shared = limit({ scope: "repository", name: "main" });
  bandwidth.update([shared], now);
  const changed = bandwidth.pace(100, flow());
  await new Promise((next) => setTimeout(next, 20));
  bandwidth.update([{ ...shared, bytesPerSecond: 2_000_000 }], now);
  await changed;

  const freed = bandwidth.pace(1e9, flow());
  await new Promise((next) => setTimeout(next, 20));
  bandwidth.update([], now);
  await freed;
  expect(bandwidth.pace(1e9, flow())).toBeNull();

  bandwidth.update([shared], now);
  const controller = new AbortController();
  const ended = expect(bandwidth.pace(1e9, flow({ signal: controller.signal }))).rejects.toThrow("cancelled");
  controller.abort(new Error("cancelled"));
  await ended;
});

test("a window's rate holds while it is open", () => {
  const bandwidth = new Bandwidth({ host: "here", reserve: never });
  const window = {
    from: "08:00",
    to: "18:00",
    days: ["mon" as const],
    timezone: "UTC",
    bytes_per_second: 1_000_000,
  };
  bandwidth.update([limit({ bytesPerSecond: null, windows: [window] })], new Date("2026-11-30T07:59:00Z"));
  expect(bandwidth.limits(flow())).toBe(false);
  bandwidth.update([limit({ bytesPerSecond: null, windows: [window] })], new Date("2026-11-30T08:00:00Z"));
  expect(bandwidth.limits(flow())).toBe(true);
});
