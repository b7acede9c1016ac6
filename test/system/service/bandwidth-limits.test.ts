import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { initialiseRepository } from "../../../scripts/repository.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

const config = {
  range_bytes: 2 * MiB,
  worker: { slots: 2, heartbeat_ms: 250, lease_ms: 2_000 },
  tasks: { reconcile_ms: 300 },
};
const repository = { object_bytes: 512 * KiB, compression: "none" };

const limitOf = (scope: string, name: string, traffic = "repositories"): string =>
  `/ops/limits/${traffic}/${scope}/${name}`;

it("a limit holds for all workers together, both ways, and is changed while they run", {
  timeout: 240_000,
}, async () => {
  await using instance = await startInstance({ workers: 2, config, repository });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 8 * MiB, [{ offset: 0, data: randomBytesOf("limits", 8 * MiB) }]);
  const volume = await user.importVolume(image);
  const sha256 = await sha256Of(image);
  const put = async (path: string, body: object, status = 200) => {
    const reply = await instance.request("PUT", path, body);
    expect(reply.status, reply.text).toBe(status);
    return reply;
  };
  /** Every worker has heard of it. */
  const heard = async (): Promise<void> => {
    const [{ at }] = await instance.sql("SELECT now() AS at");
    const late = "SELECT count(*)::int AS n FROM workers WHERE heartbeat_at <= $1";
    await instance.waitFor(async () => (await instance.sql(late, [at]))[0].n === 0, { what: "all workers know" });
  };
  const seconds = async (work: () => Promise<unknown>): Promise<number> => {
    const began = performance.now();
    await work();
    return (performance.now() - began) / 1000;
  };

  await put(limitOf("repository", "main"), { bytes_per_second: 2 * MiB });
  await heard();
  let backup = "";
  // 8 MiB and what describes them, less what may be made up for.
  expect(await seconds(async () => (backup = await user.backUp(volume)))).toBeGreaterThan(3.6);
  expect(await seconds(() => user.expectExact(backup, sha256))).toBeGreaterThan(3.6);

  await put(limitOf("repository", "main"), { bytes_per_second: 16 * KiB });
  await heard();
  const slow = await user.startBackup(volume);
  const copying =
    "SELECT 1 FROM tasks t JOIN operations o ON o.id = t.operation_id WHERE o.backup_id = $1 AND t.kind = 'copy' AND t.state = 'running'";
  await instance.waitFor(async () => (await instance.sql(copying, [slow])).length > 0, { what: "it is copied" });
  expect((await instance.request("DELETE", limitOf("repository", "main"))).status).toBe(204);
  await user.settled("backups", slow, "available");
  await user.expectExact(slow, sha256);

  await put(limitOf("backend", "files", "volumes"), { bytes_per_second: 2 * MiB });
  await heard();
  expect(await seconds(() => user.backUp(volume))).toBeGreaterThan(3.6);
  const { body } = await instance.request("GET", "/ops/limits");
  expect(body.limits).toMatchObject([
    { traffic: "volumes", scope: "backend", name: "files", bytes_per_second_now: 2 * MiB, windows: [] },
  ]);
  await user.expectQuiet();
});

it("a restore is done while backups hold every slot of the only worker, and a backup while a restore holds its own", {
  timeout: 240_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  const places = mkdtempSync(join(tmpdir(), "tephra-slots-"));
  stack.defer(() => rmSync(places, { recursive: true, force: true }));
  const whole = { ...repository, object_bytes: 16 * MiB };
  const named = (name: string, more: object = {}) => ({ name, url: `posix:${join(places, name)}`, ...whole, ...more });
  const repositories = [named("main", { default: true }), named("second")];
  for (const { url } of repositories) await initialiseRepository(url);
  await using instance = await startInstance({
    config: { ...config, repositories, range_bytes: 16 * MiB, worker: { ...config.worker, slots: 1 } },
  });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 16 * MiB, [{ offset: 0, data: randomBytesOf("slots", 16 * MiB) }]);
  const sha256 = await sha256Of(image);
  const volumes = [await user.importVolume(image), await user.importVolume(image)];
  const backup = await user.backUp(volumes[0] as string);
  const limit = async (path: string, rate: number | null): Promise<void> => {
    const reply = await instance.request(rate === null ? "DELETE" : "PUT", path, rate && { bytes_per_second: rate });
    expect(reply.status, reply.text).toBe(rate === null ? 204 : 200);
  };
  const running = async (kind: string): Promise<number> => {
    const live = `SELECT FROM tasks t JOIN operations o ON o.id = t.operation_id WHERE o.kind = $1 AND t.state = 'running'`;
    return (await instance.sql(live, [kind])).length;
  };
  const heard = async (): Promise<void> => {
    const [{ at }] = await instance.sql("SELECT now() AS at");
    const late = "SELECT FROM workers WHERE heartbeat_at <= $1";
    await instance.waitFor(async () => (await instance.sql(late, [at])).length === 0, { what: "the worker knows" });
  };

  // So slow that nothing is done while it holds.
  await limit(limitOf("backend", "files", "volumes"), 16 * KiB);
  await heard();
  const slow = await Promise.all(volumes.map((volume) => user.startBackup(volume)));
  await instance.waitFor(async () => (await running("backup-create")) === 1, { what: "a backup has the only slot" });
  const restored = await user.startRestore(backup);
  await user.settled("volumes", restored, "available");
  expect(await running("backup-create")).toBe(1);
  expect(await sha256Of(user.volumeFile(restored))).toBe(sha256);
  await limit(limitOf("backend", "files", "volumes"), null);
  for (const each of slow) await user.settled("backups", each, "available");

  await limit(limitOf("repository", "main"), 16 * KiB);
  await heard();
  const held = await user.startRestore(backup);
  await instance.waitFor(async () => (await running("backup-restore")) === 1, { what: "the restore is at work" });
  const policy = { name: "other", schedule: { cron: "0 2 * * *" }, repository: "second", priority: "low" };
  const made = await instance.request("POST", "/ops/policies", { policy });
  expect(made.status, made.text).toBe(201);
  const { id } = made.body.policy;
  await instance.request("POST", `/ops/policies/${id}/assignments`, { assignment: { volume_id: volumes[1] } });
  await instance.request("POST", `/ops/policies/${id}/run`, {});
  const [item] = await instance.waitFor(
    async () => {
      const items = await instance.sql("SELECT state, backup_id FROM policy_run_items WHERE state = 'succeeded'");
      return items.length === 1 && items;
    },
    { what: "the backup is done" },
  );
  expect(await running("backup-restore")).toBe(1);
  const operations = await instance.request("GET", `/ops/operations?backup_id=${item.backup_id}`);
  expect(operations.body.operations).toMatchObject([{ kind: "backup-create", priority: "low" }]);
  await limit(limitOf("repository", "main"), null);
  await user.settled("volumes", held, "available");
  await user.expectQuiet();
});

it("a limit that makes no sense is refused with the key and the reason", async () => {
  await using instance = await startInstance({ workers: 0 });
  const window = { from: "08:00", to: "18:00", timezone: "UTC", bytes_per_second: 1e6 };
  const refused: [path: string, body: object, why: string][] = [
    [limitOf("repository", "main"), { bytes_per_second: -1 }, "bytes_per_second:"],
    [limitOf("repository", "main"), {}, "bytes_per_second: nothing would be limited"],
    [limitOf("repository", "main"), { windows: [window, window] }, "windows.1: overlaps"],
    [limitOf("repository", "main"), { windows: [{ ...window, timezone: "Nowhere" }] }, "windows.0.timezone"],
    [limitOf("repository", "main"), { windows: [{ ...window, from: "24:00" }] }, "windows.0.from"],
    [limitOf("repository", "nowhere"), { bytes_per_second: 1e6 }, "name: there is no repository"],
    [limitOf("repository", "main", "volumes"), { bytes_per_second: 1e6 }, "scope: of volumes"],
    [limitOf("repository", "main", "requests"), { bytes_per_second: 1e6 }, "traffic:"],
  ];
  for (const [path, body, why] of refused) {
    const reply = await instance.request("PUT", path, body);
    expect([reply.status, reply.text], path).toEqual([400, expect.stringContaining(why)]);
  }
  expect((await instance.request("DELETE", limitOf("repository", "main"))).status).toBe(404);
  expect((await instance.request("GET", "/ops/limits")).body).toEqual({ limits: [] });
});
