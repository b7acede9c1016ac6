import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Redis } from "ioredis";
import { describe, expect, inject, it } from "vitest";
import { startRedis } from "../../../scripts/redis.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { startTcpProxy, type TcpProxy } from "../../kit/tcp-proxy.ts";
import { patience } from "../../kit/wait-for.ts";

const MiB = 1024 * 1024;

const brisk = {
  config: {
    range_bytes: 1 * MiB,
    worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 1_500, backoff_ms: 100 },
  },
  repository: { object_bytes: 512 * 1024 },
};

async function importImage(instance: Instance, user: Journey) {
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 32 * MiB, [{ offset: 0, data: randomBytesOf("image", 30 * MiB) }]);
  return { volume: await user.importVolume(image), sha256: await sha256Of(image) };
}

const succeeded = async (instance: Instance) =>
  (await instance.sql("SELECT count(*)::int AS n FROM tasks WHERE kind = 'copy' AND state = 'succeeded'"))[0]
    .n as number;

describe("an API that is killed", () => {
  it("right after its 202 has lost nothing: the backup is made, without it", async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const { volume, sha256 } = await importImage(instance, user);
    await instance.workers[0]?.stop();
    const backup = await user.startBackup(volume);
    await instance.killApi("SIGKILL");
    await instance.startWorker();
    await instance.waitFor(
      async () => (await instance.sql("SELECT status FROM backups WHERE id = $1", [backup]))[0].status === "available",
      {
        what: "the backup is available with no API running",
        timeoutMs: 60_000,
      },
    );
    await instance.startApi();
    await user.expectExact(backup, sha256);
    await user.expectQuiet();
  });
});

describe("a Redis that is emptied", () => {
  it("again and again while jobs run loses nothing", async () => {
    await using instance = await startInstance({ workers: 2, ownRedis: true, ...brisk });
    const user = journeyOn(instance);
    const { volume, sha256 } = await importImage(instance, user);
    const backup = await user.startBackup(volume);
    for (const done of [2, 8, 14]) {
      await instance.waitFor(async () => (await succeeded(instance)) >= done, {
        what: `${done} ranges are done`,
        timeoutMs: 60_000,
        everyMs: 20,
      });
      await instance.redis.flushall();
    }
    await user.settled("backups", backup, "available");
    await user.expectExact(backup, sha256);
    await user.expectQuiet();
  });
});

/** Begins a backup, does something in the middle of it, and waits until it is there, exactly, without asking the API before. */
async function backUpThrough(instance: Instance, bring: () => Promise<void>): Promise<void> {
  const user = journeyOn(instance);
  const { volume, sha256 } = await importImage(instance, user);
  const backup = await user.startBackup(volume);
  const done = async () => (await succeeded(instance)) >= 5;
  await instance.waitFor(done, { what: "five ranges are done", timeoutMs: 60_000, everyMs: 20 });
  await bring();
  const available = async () =>
    (await instance.sql("SELECT status FROM backups WHERE id = $1", [backup]))[0].status === "available";
  await instance.waitFor(available, { what: "the backup is available", timeoutMs: 90_000 });
  await user.expectExact(backup, sha256);
  await user.expectQuiet();
}

describe("a Redis that fails over", () => {
  it("to an empty one, while the old one lives on and only reads, loses nothing", async () => {
    const { dir } = inject("servers");
    await using stack = new AsyncDisposableStack();
    const start = async (name: string) => {
      const folder = mkdtempSync(join(dir, `${name}-`));
      const server = await startRedis({ dir: folder, log: join(folder, "redis.log"), password: "of-both" });
      const client = new Redis(server.url);
      stack.defer(async () => {
        client.disconnect();
        await server.stop();
      });
      return { ...server, client };
    };
    const [old, heir] = [await start("old"), await start("heir")];
    const target = { port: old.port };
    const proxy = stack.use(await startTcpProxy(target));
    const env = { REDIS_URL: proxy.through(old.url) };
    await using instance = await startInstance({ workers: 2, env, ...brisk });
    await backUpThrough(instance, async () => {
      target.port = heir.port;
      await old.client.replicaof("127.0.0.1", heir.port);
    });
    expect(await heir.client.dbsize()).toBeGreaterThan(0);
  });
});

describe("a Redis that is full", () => {
  it("takes no jobs, and when it has room again nothing was lost", async () => {
    await using instance = await startInstance({ workers: 2, ownRedis: true, ...brisk });
    await backUpThrough(instance, async () => {
      await instance.redis.config("SET", "maxmemory", "1");
      // One more job, in case that the backup has none left.
      await journeyOn(instance).accepted("POST", `/v3/${project}/volumes`, { volume: { size: 1 } });
      const refused = async () => (await instance.redis.info("errorstats")).includes("errorstat_OOM");
      await instance.waitFor(refused, { what: "Redis has refused a job", timeoutMs: 30_000 });
      await sleep(1_000);
      await instance.redis.config("SET", "maxmemory", "0");
    });
  });
});

describe("servers that fall silent", () => {
  /** An instance whose programs reach PostgreSQL and Redis through proxies; `silence` is what happens to these. */
  async function startReached(stack: AsyncDisposableStack, workers: number) {
    const instance = stack.use(await startInstance({ workers: 0, api: false, ...brisk }));
    const proxies: TcpProxy[] = [];
    const proxied = async (url: string): Promise<string> => {
      const proxy = stack.use(await startTcpProxy(new URL(url)));
      proxies.push(proxy);
      return proxy.through(url);
    };
    const env = {
      DATABASE_URL: await proxied(instance.databaseUrl),
      REDIS_URL: await proxied(instance.redisUrl),
    };
    const api = await instance.startApi(env);
    for (let i = 0; i < workers; i += 1) await instance.startWorker(env);
    const silence = async (): Promise<void> => {
      for (const proxy of proxies) proxy.trouble({ kind: "silent" });
    };
    const silent = (): number => proxies.reduce((sum, proxy) => sum + proxy.silentConnections(), 0);
    return { instance, api, silence, silent };
  }

  it("are asked on new connections, and nothing was lost", async () => {
    await using stack = new AsyncDisposableStack();
    const { instance, silence, silent } = await startReached(stack, 2);
    await backUpThrough(instance, async () => {
      await silence();
      expect(silent()).toBeGreaterThan(0);
      const answer = await fetch(`${instance.url}/v3/${project}/volumes/detail`, {
        signal: AbortSignal.timeout(90_000),
      });
      expect(answer.status).toBe(503);
      expect(await answer.text()).toContain("temporarily unable to reach its database");
      // A connection that was used last is given up last: until then a request may still be given it, and answer 503.
      await instance.waitFor(() => silent() === 0, { what: "no program holds a silent connection", timeoutMs: 60_000 });
    });
  });

  it("keep no program from stopping within ten seconds", async () => {
    await using stack = new AsyncDisposableStack();
    const { instance, api, silence } = await startReached(stack, 1);
    const user = journeyOn(instance);
    await user.startBackup((await importImage(instance, user)).volume);
    await instance.waitFor(async () => (await succeeded(instance)) > 0, { what: "ranges are copied", everyMs: 20 });
    await silence();
    const programs = [api, ...instance.workers];
    const asked = performance.now();
    for (const program of programs) program.kill("SIGTERM");
    await Promise.all(programs.map((program) => program.exited));
    expect(performance.now() - asked).toBeLessThan(10_000 * patience);
  });
});

describe("a worker that may open too few files", () => {
  it("says so in the reason, and goes on", async () => {
    await using instance = await startInstance({ workers: 0, ...brisk });
    const starved = await instance.startWorker({}, ["prlimit", "--nofile=40"]);
    const user = journeyOn(instance);
    const { volume } = await importImage(instance, user);
    const shown = await user.settled("backups", await user.startBackup(volume), "error");
    expect(shown.fail_reason).toMatch(/EMFILE|A thread/);
    await user.settled("volumes", volume, "available");
    expect(starved.running()).toBe(true);
    await user.expectQuiet();
  });
});

describe("no worker that reaches what is needed", () => {
  it("ends the backup as Cinder does, and the volume is as it was", async () => {
    const config = { ...brisk.config, tasks: { ...brisk.config.tasks, unplaced_timeout_ms: 3_000 } };
    await using instance = await startInstance({ workers: 1, ...brisk, config });
    const user = journeyOn(instance);
    const { volume } = await importImage(instance, user);
    await instance.workers[0]?.stop();
    const backup = await user.startBackup(volume);
    const shown = await user.settled("backups", backup, "error");
    expect(shown).toMatchObject({ fail_reason: "Service not found for creating backup." });
    await user.settled("volumes", volume, "available");
  });
});
