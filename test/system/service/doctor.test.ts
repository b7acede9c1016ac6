import { execFile } from "node:child_process";
import { readdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";
import { type Instance, startInstance } from "../../kit/instance.ts";

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

  test("names what the configuration has wrong, and refuses options that it does not know", async () => {
    await using instance = await startInstance({ api: false, workers: 0 });
    writeFileSync(join(instance.dataDir, "tephra.yml"), JSON.stringify({ no_such_key: 1 }));
    const { status, findings } = await doctor(instance, ["--json"]);
    expect([status, findings[0]?.subject]).toEqual([1, "configuration"]);
    expect(findings[0]?.found).toContain("no_such_key");
    expect((await doctor(instance, ["--nonsense"])).status).toBe(2);
  });
});
