import { expect, test } from "vitest";
import { GiveWay } from "./give-way.ts";

const MiB = 2 ** 20;
const waiter = (signal = new AbortController().signal) => ({ signal, onWait: () => {} });
/** Whether it is over by itself, without any time passing. */
const isOver = async (wait: Promise<void> | null): Promise<boolean> =>
  wait === null || Promise.race([wait.then(() => true), new Promise<false>((next) => setImmediate(() => next(false)))]);

test("nothing waits while nothing of high priority is at work", async () => {
  const way = new GiveWay();
  expect(way.pass(MiB, waiter())).toBeNull();
  const leave = way.enter();
  const waiting = way.pass(MiB, waiter());
  expect(await isOver(waiting)).toBe(false);
  leave();
  await waiting;
  expect(way.pass(MiB, waiter())).toBeNull();
});

test("others begin a twentieth of what is begun at high priority", async () => {
  const way = new GiveWay({ idleMs: 3_600_000 });
  const leave = way.enter();
  way.begun(19 * MiB);
  const one = way.pass(MiB, waiter());
  expect(await isOver(one)).toBe(false);
  way.begun(2 * MiB);
  await one;
  const another = way.pass(MiB, waiter());
  expect(await isOver(another)).toBe(false);
  leave();
  await another;
});

test("others go on, though what is of high priority stands still", async () => {
  const way = new GiveWay({ idleMs: 1 });
  way.enter();
  for (let window = 0; window < 3; window += 1) await way.pass(MiB, waiter());
});

test("what waits tells that it is alive, and ends with its task", async () => {
  const way = new GiveWay({ idleMs: 3_600_000 });
  way.enter();
  const controller = new AbortController();
  const alive = Promise.withResolvers<void>();
  const ended = expect(way.pass(MiB, { signal: controller.signal, onWait: alive.resolve })).rejects.toThrow(
    "cancelled",
  );
  await alive.promise;
  controller.abort(new Error("cancelled"));
  await ended;
});
