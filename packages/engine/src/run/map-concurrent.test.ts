import { expect, test } from "vitest";
import { mapConcurrent } from "./map-concurrent.ts";

const signal = new AbortController().signal;

test("results come in the items' order, with no more calls at once than allowed", async () => {
  let running = 0;
  let most = 0;
  const gates = Array.from({ length: 9 }, () => Promise.withResolvers<void>());
  const results = mapConcurrent(
    gates.keys(),
    async (index) => {
      most = Math.max(most, ++running);
      // Among concurrent calls, later ones finish first.
      gates[index + 2]?.resolve();
      if (index % 3 === 0) gates[Math.min(8, index + 2)]?.resolve();
      await Promise.resolve();
      running--;
      return index;
    },
    { concurrency: 3, signal },
  );
  expect(await Array.fromAsync(results)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
  expect(most).toBeLessThanOrEqual(3);
});

test("the first failure stops the others, which have ended before it is passed on", async () => {
  const ended: number[] = [];
  const started: number[] = [];
  const work = async (item: number, inner: AbortSignal): Promise<number> => {
    started.push(item);
    if (item === 2) throw new Error("the second fails");
    await new Promise<void>((resolve) => inner.addEventListener("abort", () => resolve(), { once: true }));
    ended.push(item);
    throw inner.reason;
  };
  await expect(Array.fromAsync(mapConcurrent([1, 2, 3, 4, 5], work, { concurrency: 3, signal }))).rejects.toThrow(
    "the second fails",
  );
  expect(ended.sort()).toEqual(started.filter((item) => item !== 2).sort());
  expect(started).not.toContain(5);
});

test("an abort from outside throws its reason after all calls have ended", async () => {
  const controller = new AbortController();
  let ended = 0;
  const work = async (_item: number, inner: AbortSignal): Promise<void> => {
    controller.abort(new Error("cancelled"));
    await Promise.resolve();
    ended++;
    inner.throwIfAborted();
  };
  const results = mapConcurrent([1, 2, 3], work, { concurrency: 2, signal: controller.signal });
  await expect(Array.fromAsync(results)).rejects.toThrow("cancelled");
  expect(ended).toBe(1);
});

test("in any order, a call that lasts long keeps none behind it waiting, and comes last", async () => {
  const long = Promise.withResolvers<number>();
  const work = (item: number): Promise<number> => (item === 0 ? long.promise : Promise.resolve(item));
  const came: number[] = [];
  for await (const item of mapConcurrent([0, 1, 2, 3, 4, 5], work, { concurrency: 2, signal, anyOrder: true })) {
    came.push(item);
    if (item === 5) long.resolve(0);
  }
  expect(came).toEqual([1, 2, 3, 4, 5, 0]);
});
