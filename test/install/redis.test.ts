import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Redis } from "ioredis";
import { expect, inject, onTestFinished, test } from "vitest";
import { startRedis } from "../../scripts/redis.ts";

function folder(): { dir: string; log: string } {
  const dir = mkdtempSync(join(inject("servers").dir, "redis-"));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  return { dir, log: join(dir, "redis.log") };
}

async function ask<T>(url: string, question: (redis: Redis) => Promise<T>): Promise<T> {
  const redis = new Redis(url, { maxRetriesPerRequest: 0, retryStrategy: () => null });
  redis.on("error", () => {}); // The question itself fails, which is what counts.
  try {
    return await question(redis);
  } finally {
    redis.disconnect();
  }
}

test("what was written survives a stop, and nothing is ever evicted", async () => {
  const place = folder();
  const first = await startRedis(place);
  expect(await ask(first.url, (redis) => redis.config("GET", "maxmemory-policy"))).toContain("noeviction");
  await ask(first.url, (redis) => redis.set("kept", "42"));
  await first.stop();
  const second = await startRedis(place);
  expect(await ask(second.url, (redis) => redis.get("kept"))).toBe("42");
  await second.stop();
});

test("a server left over by a killed parent is stopped before the next one starts", async () => {
  const place = folder();
  const left = await startRedis(place);
  await ask(left.url, (redis) => redis.set("kept", "42"));
  const said: string[] = [];
  const next = await startRedis({ ...place, say: (line) => said.push(line) });
  expect(left.program.running()).toBe(false);
  expect(said).toEqual(["stopping the Redis of an earlier run"]);
  expect(await ask(next.url, (redis) => redis.get("kept"))).toBe("42");
  await next.stop();
});

test("the password is asked for, and stands in no command line", async () => {
  const server = await startRedis(folder());
  const { password } = new URL(server.url);
  expect(password).toMatch(/^[0-9a-f]{48}$/);
  expect(readFileSync(`/proc/${server.program.pid}/cmdline`, "utf8")).not.toContain(password);
  await expect(ask(server.url.replace(password, "guessed"), (redis) => redis.get("key"))).rejects.toThrow();
  await server.stop();
});
