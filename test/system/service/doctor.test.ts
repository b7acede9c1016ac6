import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { createServer, request } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { openRepository } from "@tephra/engine";
import { describe, expect, test } from "vitest";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";
import { initialiseRepository } from "../../../scripts/repository.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { startIdentity } from "../../kit/keystone.ts";
import { startSwift } from "../../kit/swift.ts";

interface Finding {
  subject: string;
  state: "ok" | "warning" | "failed";
  found: string;
  remedy?: string;
}

/** `tephra doctor` on the configuration of an instance, with `env` over its environment. */
function doctor(
  instance: Instance,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<{ status: number; stdout: string; findings: Finding[] }> {
  const environment = {
    PATH: process.env["PATH"],
    DATABASE_URL: instance.databaseUrl,
    REDIS_URL: instance.redisUrl,
    TEPHRA_CONFIG: join(instance.dataDir, "tephra.yml"),
    TEPHRA_DATA_DIR: instance.dataDir,
    ...env,
  };
  const command = [join(root, "apps/cli/dist/bundle/tephra.js"), "doctor", ...args];
  return new Promise((resolve) => {
    execFile(projectNode(), command, { env: environment }, (error, stdout) => {
      const findings = args.includes("--json") ? JSON.parse(stdout).findings : [];
      resolve({ status: error === null ? 0 : Number(error.code), stdout, findings });
    });
  });
}

/** Every path below a folder, with the time of its last change where it is no folder of drafts. */
function stateOf(folder: string): string[] {
  const names = readdirSync(folder, { recursive: true, encoding: "utf8" });
  return names
    .map((name) => (name === ".tephra/tmp" ? name : `${name} ${statSync(join(folder, name)).mtimeMs}`))
    .sort();
}

/** A way to an HTTP server that answers with a wrong date. */
async function startLateProxy(port: number, lateMs: number): Promise<AsyncDisposable & { port: number }> {
  const proxy = createServer((req, res) => {
    const there = request({ port, host: "127.0.0.1", path: req.url, method: req.method, headers: req.headers });
    there.on("response", (answer) => {
      res.writeHead(answer.statusCode ?? 500, { ...answer.headers, date: new Date(Date.now() - lateMs).toUTCString() });
      answer.pipe(res);
    });
    there.on("error", () => res.destroy());
    req.pipe(there);
  });
  proxy.listen(0, "127.0.0.1");
  await once(proxy, "listening");
  return {
    port: (proxy.address() as AddressInfo).port,
    [Symbol.asyncDispose]: async () => {
      proxy.close();
      proxy.closeAllConnections();
      await once(proxy, "close");
    },
  };
}

describe("tephra doctor", () => {
  test("asks every server of a set-up that is right, and leaves nothing behind", async () => {
    await using instance = await startInstance({ api: false, workers: 0 });
    const { status, findings } = await doctor(instance, ["--json"]);
    expect(findings.filter(({ state }) => state === "failed")).toEqual([]);
    expect(status).toBe(0);
    const subjects = new Set(findings.map(({ subject }) => subject));
    expect([...subjects].sort()).toEqual(["hashing", "postgresql", "redis", "repository main", "volume backend files"]);
    const files = readdirSync(instance.repositoryDir, { recursive: true, encoding: "utf8" });
    expect(files.filter((name) => name.includes("doctor"))).toEqual([]);
    expect((await instance.redis.keys("*doctor*")).filter((key) => key.includes(":wait"))).toEqual([]);
  });

  test("stores nothing with --quick, and shows with --problems only what is not as it should be", async () => {
    await using instance = await startInstance({ api: false, workers: 0 });
    const before = stateOf(instance.repositoryDir);
    const { status, stdout } = await doctor(instance, ["--quick", "--problems"]);
    expect([status, stdout.includes("FAIL"), stdout.includes("ok  ")]).toEqual([0, false, false]);
    expect(stateOf(instance.repositoryDir)).toEqual(before);
  });

  test("names what is wrong in the words of whoever refuses, and what to do, for all at once", async () => {
    await using instance = await startInstance({ api: false, workers: 0 });
    const gone = join(instance.dataDir, "gone");
    writeFileSync(
      join(instance.dataDir, "tephra.yml"),
      JSON.stringify({
        repositories: [
          { name: "main", url: `posix:${instance.repositoryDir}`, default: true },
          { name: "other", url: `posix:${instance.volumesDir}` },
        ],
        volume_backends: [{ name: "files", driver: "file", path: gone }],
      }),
    );
    const database = new URL(instance.databaseUrl);
    database.pathname = "/no_such_database";
    const redis = new URL(instance.redisUrl);
    redis.password = "guessed";
    const { status, findings } = await doctor(instance, ["--json"], {
      DATABASE_URL: database.href,
      REDIS_URL: redis.href,
    });
    expect(status).toBe(1);
    const failed = new Map(findings.filter(({ state }) => state === "failed").map((each) => [each.subject, each]));
    expect(failed.get("postgresql")?.found).toContain("no_such_database");
    expect(failed.get("redis")?.found).toMatch(/WRONGPASS|invalid username-password/);
    expect(failed.get("repository other")?.found).toContain("not marked as a repository");
    expect(failed.get("volume backend files")?.found).toContain("ENOENT");
    expect(failed.has("repository main")).toBe(false);
    for (const { remedy } of failed.values()) expect(remedy).toBeTruthy();
  });

  test("says of PostgreSQL which right is missing, and of Redis what it may forget", async () => {
    await using instance = await startInstance({ api: false, workers: 0, ownRedis: true });
    await instance.redis.config("SET", "maxmemory-policy", "allkeys-lru");
    await instance.redis.config("SET", "appendonly", "no");
    const role = `poor_${randomBytes(6).toString("hex")}`;
    await instance.sql(`CREATE ROLE ${role} LOGIN PASSWORD 'poor'`);
    try {
      await instance.sql(`GRANT SELECT ON ALL TABLES IN SCHEMA public TO ${role}`);
      const database = new URL(instance.databaseUrl);
      [database.username, database.password] = [role, "poor"];
      const { status, findings } = await doctor(instance, ["--json"], { DATABASE_URL: database.href });
      expect(status).toBe(1);
      const wrong = findings.filter(({ state }) => state !== "ok");
      expect(wrong.find(({ subject }) => subject === "postgresql")).toMatchObject({
        state: "failed",
        found: expect.stringContaining("rights"),
        remedy: expect.stringContaining("Grant"),
      });
      expect(wrong.filter(({ subject }) => subject === "redis").map(({ state, found }) => [state, found])).toEqual([
        ["warning", "maxmemory-policy is allkeys-lru"],
        ["warning", "appendonly is no"],
      ]);
    } finally {
      await instance.sql(`DROP OWNED BY ${role}`);
      await instance.sql(`DROP ROLE ${role}`);
    }
  });

  test("tries every right on a store, and says whose clock is wrong", async () => {
    await using store = await startSwift();
    await using late = await startLateProxy(store.port, 3_600_000);
    await using instance = await startInstance({ api: false, workers: 0 });
    const credentials = join(instance.dataDir, "credentials.json");
    const guessed = join(instance.dataDir, "guessed.json");
    writeFileSync(credentials, JSON.stringify({ access_key: store.user, secret_key: store.key }));
    writeFileSync(guessed, JSON.stringify({ access_key: store.user, secret_key: "guessed" }));
    const bucket = `d-${randomBytes(6).toString("hex")}`;
    const url = `s3://${bucket}?endpoint=${store.url}`;
    await initialiseRepository(`${url}&credentials=${encodeURIComponent(credentials)}`);
    const file = {
      repositories: [
        { name: "good", url, credentials, default: true },
        { name: "refused", url, credentials: guessed },
        { name: "late", url: `s3://${bucket}?endpoint=http://127.0.0.1:${late.port}`, credentials },
      ],
      volume_backends: [{ name: "files", driver: "file", path: instance.volumesDir }],
    };
    writeFileSync(join(instance.dataDir, "tephra.yml"), JSON.stringify(file));
    const { status, findings } = await doctor(instance, ["--json"]);
    expect(status).toBe(1);
    const of = (name: string): Finding[] => findings.filter(({ subject }) => subject === `repository ${name}`);
    expect(of("good").map(({ state, found }) => [state, found])).toEqual([
      ["ok", expect.stringContaining("s3, id ")],
      ["ok", expect.stringContaining("could not be overwritten")],
    ]);
    expect(of("refused")).toMatchObject([{ state: "failed", remedy: expect.any(String) }]);
    expect(of("late"), JSON.stringify(of("late"))).toContainEqual({
      subject: "repository late",
      state: "warning",
      remedy: expect.stringContaining("time server"),
      found: expect.stringMatching(/^its clock differs from this machine's by 3\d{3}\.\d s$/),
    });
    // Nothing of its own stays, and nothing else was touched.
    await using repository = await openRepository(url, { credentials });
    const left: string[] = [];
    for await (const { name } of repository.list(bucket, "")) left.push(name);
    expect(left).toEqual([]);
  });

  test("logs in to a Keystone as the service will", async () => {
    await using identity = await startIdentity({ tokenLifeSeconds: 3600 });
    await using instance = await startInstance({ api: false, workers: 0 });
    const ask = async (password: string) => {
      const keystone = { url: identity.url, username: identity.user, password, project: identity.project };
      const path = join(instance.dataDir, "tephra.yml");
      const file = JSON.parse(readFileSync(path, "utf8"));
      writeFileSync(path, JSON.stringify({ ...file, auth: { mode: "keystone", keystone } }));
      const { findings } = await doctor(instance, ["--json", "--quick"]);
      return findings.filter(({ subject }) => subject === "keystone").map(({ state, found }) => [state, found]);
    };
    expect(await ask(identity.password)).toEqual([["ok", expect.stringContaining("can authenticate")]]);
    expect(await ask("guessed")).toEqual([["failed", expect.stringContaining("failed with status 401")]]);
  });

  test("names what the configuration has wrong, and refuses options that it does not know", async () => {
    await using instance = await startInstance({ api: false, workers: 0 });
    writeFileSync(join(instance.dataDir, "tephra.yml"), JSON.stringify({ no_such_key: 1 }));
    const { status, findings } = await doctor(instance, ["--json"]);
    expect([status, findings[0]?.subject]).toEqual([1, "configuration"]);
    expect(findings[0]?.found).toContain("no_such_key");
    expect((await doctor(instance, ["--nonsense"])).status).toBe(2);
  });
});
