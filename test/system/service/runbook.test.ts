import { execFile } from "node:child_process";
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { expect, test } from "vitest";
import { projectNode, root } from "../../../scripts/bootstrap.mjs";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;

/** The lines of the runbook in docs/operations.md: of each step those of its block, in order. */
function stepsOfRunbook(): string[][] {
  const text = readFileSync(join(root, "docs/operations.md"), "utf8");
  const [, section = ""] = text.split("\n## Runbook: everything but the repository is lost\n");
  const [own = ""] = section.split("\n## ");
  return [...own.matchAll(/^ {3}```sh\n(.*?)^ {3}```$/gms)].map(([, block = ""]) =>
    block
      .split("\n")
      .map((line) => line.trim())
      .filter((line) => line !== ""),
  );
}

test("the runbook brings back, line by line, what only the repository still has", async () => {
  await using instance = await startInstance({ config: { range_bytes: 2 * MiB } });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 5 * MiB + 4096, [{ offset: MiB, data: randomBytesOf("runbook", 3 * MiB) }]);
  const volume = await user.importVolume(image);
  const full = await user.backUp(volume, { name: "full" });
  await writeIslands(user.volumeFile(volume), null, [{ offset: 4 * MiB, data: randomBytesOf("later", 9000) }]);
  const newest = await user.backUp(volume, { name: "newest", incremental: true });
  const wanted = await sha256Of(user.volumeFile(volume));

  const rescue = join(instance.dataDir, "rescue");
  const bin = join(instance.dataDir, "bin");
  for (const folder of [rescue, bin]) mkdirSync(folder);
  const command = (name: string, words: string): void => {
    writeFileSync(join(bin, name), `#!/bin/sh\nexec ${words} "$@"\n`);
    chmodSync(join(bin, name), 0o755);
  };
  for (const name of ["tephra", "tephra-engine"]) {
    command(name, `${projectNode()} ${join(root, "apps/cli/dist/bundle", `${name}.js`)}`);
  }
  command("npx", `sh -c 'shift; exec ${projectNode()} ${root}/node_modules/prisma/build/index.js "$@"' npx`);
  const env = {
    PATH: `${bin}:${dirname(projectNode())}:${process.env["PATH"]}`,
    DATABASE_URL: instance.databaseUrl,
    REDIS_URL: instance.redisUrl,
    TEPHRA_CONFIG: join(instance.dataDir, "tephra.yml"),
    TEPHRA_DATA_DIR: instance.dataDir,
    TEPHRA_URL: instance.url,
    REPOSITORY: `posix:${instance.repositoryDir}`,
    URGENT: newest,
    BACKUP: newest,
    RESCUE: rescue,
  };
  const run = (line: string): Promise<string> =>
    new Promise((resolve, reject) => {
      execFile("sh", ["-euc", line], { env, cwd: root, timeout: 120_000 }, (error, stdout, stderr) => {
        if (error === null) resolve(stdout);
        else reject(new Error(`${line}\n${stdout}${stderr}`));
      });
    });
  /** What units would do. */
  const systemctl = async (verb: string): Promise<void> => {
    if (verb === "stop") {
      await instance.killApi("SIGTERM");
      await Promise.all(instance.workers.map((worker) => worker.stop()));
    } else {
      await instance.startApi();
      await instance.startWorker();
    }
  };

  const said: string[] = [];
  const steps = stepsOfRunbook();
  expect(steps.length).toBe(8);
  for (const [at, lines] of steps.entries()) {
    if (at === 3) {
      // The disaster, as a new machine finds it: a database without tables, an empty Redis, no volume.
      await instance.sql("DROP SCHEMA public CASCADE");
      await instance.sql("CREATE SCHEMA public");
      await instance.redis.flushdb();
    }
    for (const line of lines) {
      const [, verb] = /^systemctl (stop|start) /.exec(line) ?? [];
      if (verb !== undefined) await systemctl(verb);
      else said.push(`${line}\n${await run(line)}`);
    }
  }
  const answerOf = (start: string): string => said.find((each) => each.startsWith(start)) ?? "";
  for (const id of [full, newest]) {
    expect(answerOf("tephra-engine list")).toContain(id);
    expect(answerOf("tephra backup list")).toContain(id);
  }
  expect(await sha256Of(join(rescue, "urgent.img"))).toBe(wanted);
  const [rescued] = await instance.sql("SELECT id FROM volumes WHERE name = 'rescued'");
  expect(await sha256Of(user.volumeFile(rescued.id))).toBe(wanted);
  const [after] = await instance.sql("SELECT status, parent_id FROM backups WHERE name = 'after'");
  expect(after).toEqual({ status: "available", parent_id: newest });
});
