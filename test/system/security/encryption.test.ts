import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { writeKeyFile } from "../../format/backup-fixture.ts";
import { crashAt } from "../../kit/crash-at.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;

function filesBelow(folder: string): Buffer[] {
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return entries.map((entry) => readFileSync(join(entry.parentPath, entry.name)));
}

it("an encrypted repository serves backups over a lost worker, and a worker without the key loses nothing", {
  timeout: 240_000,
}, async () => {
  const keys = await mkdtemp(join(tmpdir(), "tephra-keys-"));
  await using _ = { [Symbol.asyncDispose]: () => rm(keys, { recursive: true, force: true }) };
  const keyFile = await writeKeyFile(keys, ["1"]);
  const common = { range_bytes: 2 * MiB, worker: { slots: 1, lease_ms: 3000, heartbeat_ms: 500 } };
  const sizes = { object_bytes: 512 * 1024, compression: "none" };
  await using instance = await startInstance({
    workers: 0,
    config: common,
    repository: { ...sizes, encryption: { key_file: keyFile } },
  });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  const secret = Buffer.alloc(5 * MiB, "a secret that is stored nowhere, ");
  const size = 12 * MiB + 12_345;
  await writeIslands(image, size, [
    { offset: 0, data: secret },
    { offset: 8 * MiB, data: randomBytesOf("noise", 3 * MiB) },
  ]);
  const doomed = await instance.startWorker(crashAt("copy:20"));
  const volume = await user.importVolume(image);
  const started = await user.startBackup(volume, { name: "full" });
  await doomed.exited;
  await instance.startWorker();
  await user.settled("backups", started, "available");
  const first = await sha256Of(image);
  await writeIslands(user.volumeFile(volume), null, [{ offset: 3 * MiB + 100, data: randomBytesOf("c", 70_000) }]);
  const second = await sha256Of(user.volumeFile(volume));
  const incremental = await user.backUp(volume, { name: "incremental", incremental: true });
  await user.expectExact(started, first);
  await user.expectExact(incremental, second);
  for (const stored of filesBelow(instance.repositoryDir)) {
    for (const told of [secret.subarray(0, 33), "full", '"md5"']) expect(stored.includes(told)).toBe(false);
  }

  await instance.workers[1]?.stop();
  const blindDir = join(instance.dataDir, "blind");
  mkdirSync(blindDir);
  const config = JSON.parse(readFileSync(join(instance.dataDir, "tephra.yml"), "utf8"));
  delete config.repositories[0].encryption;
  writeFileSync(join(blindDir, "tephra.yml"), JSON.stringify(config));
  const blind = await instance.startWorker({ TEPHRA_CONFIG: join(blindDir, "tephra.yml") });
  const target = await user.startRestore(incremental);
  await user.settled("volumes", target, "error_restoring");
  await user.settled("backups", incremental, "available");
  const [{ fail_reason: reason }] = await instance.sql(
    "SELECT fail_reason FROM operations WHERE backup_id = $1 AND kind = 'backup-restore' AND state = 'failed'",
    [incremental],
  );
  expect(reason).toMatch(/is encrypted: its repository was opened without master keys/);
  const refused = await user.startBackup(volume, { name: "on an encrypted one", incremental: true });
  const { fail_reason: why } = (await user.settled("backups", refused, "error")) as unknown as { fail_reason: string };
  expect(why).toMatch(/is encrypted/);
  await user.deleteBackup(refused);

  await blind.stop();
  await instance.startWorker();
  await user.expectExact(incremental, second);
  await user.deleteBackup(incremental);
  await user.deleteBackup(started);
  await user.expectQuiet();
  expect(
    readdirSync(instance.repositoryDir, { recursive: true }).filter((name) => /backup_/.test(String(name))),
  ).toEqual([]);
  expect((await user.get(`/v3/${project}/backups`)).backups).toEqual([]);
  const key = readFileSync(keyFile, "utf8").trim().slice(2);
  expect(instance.logs()).not.toContain(key);
  const rows = await instance.sql("SELECT plan::text AS plan FROM operations");
  expect(JSON.stringify(rows)).not.toContain(keyFile);
});
