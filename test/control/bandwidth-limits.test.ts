import type { Database } from "@tephra/control";
import { type LimitKey, type Priority, reserveBandwidth } from "@tephra/control/work";
import { afterAll, beforeAll, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";

const stack = new AsyncDisposableStack();
let database: Database;
beforeAll(async () => {
  ({ database } = await openControl(stack));
});
afterAll(() => stack.disposeAsync());

const rate = 1_000_000;
async function limitNamed(name: string): Promise<LimitKey> {
  await database.$executeRaw`
    INSERT INTO bandwidth_limits (traffic, scope, name, bytes_per_second, changed_by)
    VALUES ('repositories', 'project', ${name}, ${rate}, 'u')`;
  return { traffic: "repositories", scope: "project", name };
}
/** In seconds, each as long as nothing had been reserved for an hour. */
const reserve = async (key: LimitKey, seconds: number, priority: Priority, by = rate): Promise<number> =>
  ((await reserveBandwidth(database, key, { bytes: by * seconds, rate: by, priority })) ?? Number.NaN) / 1000;
const hour = 3600;

it("workers that reserve of one limit wait for one another's bytes", async () => {
  const key = await limitNamed("shared");
  const waits = await Promise.all(Array.from({ length: 4 }, () => reserve(key, hour, "normal")));
  // Hours tell that apart from however long the statements take.
  expect(waits.map((wait) => Math.round(wait / hour)).sort()).toEqual([1, 2, 3, 4]);
});

it("who is higher does not wait for who is lower, and what is lower waits for all", async () => {
  const key = await limitNamed("priorities");
  const asked = [
    await reserve(key, hour, "low"),
    await reserve(key, hour, "normal"),
    await reserve(key, hour, "high"),
    await reserve(key, hour, "normal"),
    await reserve(key, hour, "low"),
    await reserve(key, hour, "high"),
  ];
  expect(asked.map((wait) => Math.round(wait / hour))).toEqual([1, 1, 1, 3, 5, 2]);
});

it("a rate that has changed begins anew, and a limit that is gone lets go", async () => {
  const key = await limitNamed("changed");
  await reserve(key, 10 * hour, "normal");
  expect(Math.round((await reserve(key, hour, "normal", 2 * rate)) / hour)).toBe(1);
  await database.$executeRaw`DELETE FROM bandwidth_limits WHERE name = 'changed'`;
  expect(await reserveBandwidth(database, key, { bytes: 1, rate, priority: "low" })).toBeNull();
});
