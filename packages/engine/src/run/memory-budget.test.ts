import { expect, test } from "vitest";
import { MemoryBudget } from "./memory-budget.ts";

const signal = new AbortController().signal;

test("claims are granted in order, and only while there is room", async () => {
  const budget = new MemoryBudget(100);
  const order: string[] = [];
  const releaseFirst = await budget.claim(60, signal);
  const second = budget.claim(60, signal).then((release) => {
    order.push("second");
    return release;
  });
  // Would fit, but must not overtake.
  const third = budget.claim(30, signal).then((release) => {
    order.push("third");
    return release;
  });
  await Promise.resolve();
  expect(order).toEqual([]);
  releaseFirst();
  releaseFirst();
  (await second)();
  (await third)();
  expect(order).toEqual(["second", "third"]);
});

test("a claim larger than everything waits until it is alone, then runs", async () => {
  const budget = new MemoryBudget(100);
  const release = await budget.claim(1, signal);
  let granted = false;
  const large = budget.claim(1000, signal).then((give) => {
    granted = true;
    return give;
  });
  await Promise.resolve();
  expect(granted).toBe(false);
  release();
  (await large)();
});

test("whoever stops waiting lets the next one in", async () => {
  const budget = new MemoryBudget(100);
  const release = await budget.claim(60, signal);
  const controller = new AbortController();
  const impatient = budget.claim(60, controller.signal);
  const small = budget.claim(30, signal);
  controller.abort(new Error("cancelled"));
  await expect(impatient).rejects.toThrow("cancelled");
  (await small)();
  release();
  (await budget.claim(100, signal))();
});
