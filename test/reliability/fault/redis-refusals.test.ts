import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { redisConnection } from "@tephra/control/process";
import { Redis } from "ioredis";
import { describe, expect, inject, it } from "vitest";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";
import { redisProgram, startRedis } from "../../../scripts/redis.ts";
import { freePort, spawnProgram } from "../../../scripts/spawn-program.ts";
import { makeCertificate } from "../../kit/certificate.ts";
import { redisRules } from "../../kit/global-setup.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, writeIslands } from "../../kit/journey.ts";
import { isLong } from "../../kit/long.ts";
import { waitFor } from "../../kit/wait-for.ts";

const MiB = 1024 * 1024;
const cli = join(root, "apps/cli/dist/bundle/tephra.js");
const config = {
  quotas: { backups: 100 },
  worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400, drain_ms: 1_000 },
  tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
};

async function importImage(instance: Instance, sizeBytes = MiB): Promise<string> {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, sizeBytes, [{ offset: 0, data: randomBytesOf("image", sizeBytes) }]);
  return journeyOn(instance).importVolume(image);
}

const refusalsOf = async (instance: Instance): Promise<(string | null)[]> =>
  (await instance.sql("SELECT unreachable ->> 'redis' AS why FROM workers")).map(({ why }) => why);

/** A folder of a server's own. */
const folder = (): string => mkdtempSync(join(inject("servers").dir, "redis-"));

describe("a Redis that answers and refuses", () => {
  it("(a wrong password) is named everywhere, the work is done without it, and it is used again when it lets us in", async () => {
    const logs = folder();
    await using instance = await startInstance({ workers: 2, ownRedis: true, config, logs });
    const user = journeyOn(instance);
    const volume = await importImage(instance);
    expect(await refusalsOf(instance)).toEqual([null, null]);
    const password = new URL(instance.redisUrl).password;
    await instance.redis.config("SET", "requirepass", "another");
    await instance.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
    for (let left = 4; left > 0; left -= 1) await user.backUp(volume);
    await instance.waitFor(async () => (await refusalsOf(instance)).every((why) => why?.includes("WRONGPASS")), {
      what: "both registrations say it",
    });
    const ready = await instance.request("GET", "/readyz");
    expect(ready.status).toBe(200);
    expect(ready.body.warnings).toEqual([expect.stringMatching(/by 2 of 2 workers.*slowly: WRONGPASS/)]);
    const told = (): string[] =>
      readdirSync(logs)
        .flatMap((name) => readFileSync(join(logs, name), "utf8").split("\n"))
        .filter((line) => /"level":40.*redis\.refused.*WRONGPASS/.test(line));
    await expect.poll(() => told().length, { message: "once per worker" }).toBe(2);
    await instance.redis.config("SET", "requirepass", password);
    await instance.waitFor(async () => (await refusalsOf(instance)).every((why) => why === null), {
      what: "it is used again",
      timeoutMs: 30_000,
    });
    await user.backUp(volume);
    await user.expectQuiet();
  });

  const tenMinutesMs = 600_000;
  /** Set TEPHRA_TEST_LONG to run it. */
  it.runIf(isLong)(
    "(everything, for ten minutes) keeps no backup from being made, and the status says why it is slow",
    async () => {
      await using instance = await startInstance({ workers: 2, ownRedis: true, config });
      const user = journeyOn(instance);
      const volume = await importImage(instance);
      const end = Date.now() + tenMinutesMs;
      await instance.redis.config("SET", "requirepass", "another");
      await instance.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
      const waits: number[] = [];
      for (let left = 20; left > 0; left -= 1) {
        const began = Date.now();
        await user.backUp(volume);
        waits.push(Date.now() - began);
        const status = execFileSync(projectNode(), [cli, "status"], {
          env: { TEPHRA_URL: instance.url },
          encoding: "utf8",
        });
        expect(status).toContain("WRONGPASS");
        const next = end - (left - 1) * (tenMinutesMs / 20);
        await instance.waitFor(() => Date.now() >= next, { what: "the next is due", timeoutMs: tenMinutesMs });
      }
      process.stdout.write(`without Redis: ${waits.length} backups, of at most ${Math.max(...waits)} ms\n`);
      expect(await refusalsOf(instance)).toEqual([
        expect.stringContaining("WRONGPASS"),
        expect.stringContaining("WRONGPASS"),
      ]);
      await user.expectQuiet();
    },
    2 * tenMinutesMs,
  );

  it.each([
    { refuses: "scripts", settings: ["user limited on >limited ~* &* +@all -@scripting"], word: /NOPERM/ },
    { refuses: "keys", settings: ["user limited on >limited ~other:* &* +@all"], word: /NOPERM/ },
    {
      refuses: "what spans slots, being a Cluster",
      settings: ["cluster-enabled yes", "user limited on >limited ~* &* +@all"],
      word: /is a Cluster/,
    },
  ])("($refuses) is named, and a service that starts with it does its work", async ({ settings, word }) => {
    await using stack = new AsyncDisposableStack();
    const dir = folder();
    const server = await startRedis({ dir, log: join(dir, "redis.log"), settings });
    stack.defer(server.stop);
    const REDIS_URL = `redis://limited:limited@127.0.0.1:${server.port}`;
    await using instance = await startInstance({ config, env: { REDIS_URL } });
    const user = journeyOn(instance);
    await user.backUp(await importImage(instance));
    await instance.waitFor(async () => word.test((await refusalsOf(instance))[0] ?? ""), {
      what: "its registration says it",
    });
    expect((await instance.request("GET", "/readyz")).body.warnings[0]).toMatch(word);
    await user.expectQuiet();
  });
});

describe("a Redis that is set up with care", () => {
  it("(TLS by an authority of its own, a user who may do only what the manual says) is used", async () => {
    await using stack = new AsyncDisposableStack();
    const dir = folder();
    const tls = await makeCertificate(join(dir, "tls"));
    const settings = [`user tephra on >p%40ss ${redisRules.join(" ")}`];
    const server = await startRedis({ dir, log: join(dir, "redis.log"), settings, tls });
    stack.defer(server.stop);
    const REDIS_URL = `rediss://tephra:p%2540ss@127.0.0.1:${server.port}/0?ca=${tls.ca}`;
    await using instance = await startInstance({ config, env: { REDIS_URL } });
    const user = journeyOn(instance);
    await user.backUp(await importImage(instance));
    expect(await refusalsOf(instance)).toEqual([null]);
    expect((await instance.request("GET", "/readyz")).body).toEqual({ status: "ready" });
    const admin = new Redis({ ...redisConnection(server.url), maxRetriesPerRequest: 1 });
    stack.defer(() => admin.disconnect());
    const refused = ((await admin.call("ACL", "LOG")) as unknown[][]).map((entry) => entry.slice(0, 8));
    expect(refused, "nothing was tried that the user may not").toEqual([]);
    expect((await admin.keys("bull:tephra-*")).length).toBeGreaterThan(0);
  });

  it("(behind Sentinels, which know the primary) is used, and its next primary after it", async () => {
    await using stack = new AsyncDisposableStack();
    const [one, other, sentinelDir] = [folder(), folder(), folder()];
    const password = "of-both";
    const settings = [`masterauth ${password}`];
    const primary = await startRedis({ dir: one, log: join(one, "redis.log"), password, settings });
    stack.defer(primary.stop);
    const replicaOf = [...settings, `replicaof 127.0.0.1 ${primary.port}`];
    const replica = await startRedis({ dir: other, log: join(other, "redis.log"), password, settings: replicaOf });
    stack.defer(replica.stop);
    const port = await freePort();
    const file = join(sentinelDir, "sentinel.conf");
    const lines = [
      `bind 127.0.0.1`,
      `port ${port}`,
      `dir "${sentinelDir}"`,
      `sentinel monitor backups 127.0.0.1 ${primary.port} 1`,
      `sentinel auth-pass backups ${password}`,
      "sentinel down-after-milliseconds backups 1000",
      "sentinel failover-timeout backups 5000",
    ];
    writeFileSync(file, `${lines.join("\n")}\n`);
    const { command, env } = await redisProgram(() => {});
    const program = { name: "sentinel", command, env: { PATH: process.env["PATH"], ...env } };
    const sentinel = await spawnProgram({ ...program, args: [file, "--sentinel"] });
    stack.defer(async () => void (await sentinel.stop()));
    const REDIS_URL = `redis+sentinel://:${password}@127.0.0.1:${port}/backups`;
    await using instance = await startInstance({ config, env: { REDIS_URL } });
    const user = journeyOn(instance);
    const volume = await importImage(instance);
    await user.backUp(volume);
    expect(await refusalsOf(instance)).toEqual([null]);
    await waitFor(() => sentinel.tail().includes("+slave slave"), {
      what: "the Sentinel knows the replica",
      timeoutMs: 30_000,
    });
    await primary.stop();
    await user.backUp(volume);
    await instance.waitFor(
      async () => (await refusalsOf(instance))[0] === null && sentinel.tail().includes("+switch-master"),
      {
        what: "the replica, which leads now, is used",
        timeoutMs: 60_000,
      },
    );
    await user.backUp(volume);
    await user.expectQuiet();
  });
});

it("two services on one Redis, one a copy of the other's database, have queues of their own", async () => {
  // A job that a busy machine is slow to take is not one that went astray.
  const patient = { ...config, tasks: { ...config.tasks, dispatch_timeout_ms: 60_000 } };
  await using one = await startInstance({ workers: 1, config: patient });
  await using other = await startInstance({ workers: 1, config: patient, env: { REDIS_URL: one.redisUrl } });
  const users = [journeyOn(one), journeyOn(other)];
  const volumes = [await importImage(one), await importImage(other)];
  const queues = (await Promise.all([one, other].map((it) => it.sql("SELECT DISTINCT queue FROM workers")))).flat();
  expect(new Set(queues.map(({ queue }) => queue)).size).toBe(2);
  for (const [index, user] of users.entries()) await user.backUp(volumes[index] ?? "");
  const again = await one.sql("SELECT max(dispatch)::int AS most FROM tasks");
  expect(again[0].most, "no job went astray").toBe(1);
});

it("a job of a task that nobody knows is told of and left where it can be seen", async () => {
  await using instance = await startInstance({ workers: 1, config });
  const [{ queue }] = await instance.sql("SELECT queue FROM workers");
  const key = `bull:${queue}`;
  const data = JSON.stringify({ taskId: "00000000-0000-4000-8000-000000000000" });
  await instance.redis.hset(`${key}:stray`, { name: "task", data, opts: "{}", timestamp: 1, delay: 0, priority: 0 });
  await instance.redis.lpush(`${key}:wait`, "stray");
  await instance.redis.zadd(`${key}:marker`, 0, "0");
  await instance.waitFor(() => instance.redis.zscore(`${key}:failed`, "stray"), { what: "the job is set aside" });
  const reason = await instance.redis.hget(`${key}:stray`, "failedReason");
  expect(reason).toContain("No task 00000000-0000-4000-8000-000000000000");
  await instance.waitFor(() => /"level":40.*job\.failed.*stray/.test(instance.logs()), { what: "the log tells of it" });
  await journeyOn(instance).backUp(await importImage(instance));
});
