import { join } from "node:path";
import { expect, it } from "vitest";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;

/** Short times, so that a task that nobody claims is soon handed out again. */
const config = {
  range_bytes: MiB,
  worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 250 },
  tasks: { reconcile_ms: 200, dispatch_timeout_ms: 500, backoff_ms: 100 },
};

it("leaves a plan of a newer release alone and says so once; one that nobody wrote ends its operation with the reason", {
  timeout: 180_000,
}, async () => {
  await using instance = await startInstance({ workers: 1, config });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 3 * MiB, [{ offset: 0, data: randomBytesOf("documents", 3 * MiB) }]);
  const [newer, malformed] = [await user.importVolume(image), await user.importVolume(image)];
  await instance.workers[0]?.stop({ signal: "SIGTERM" });

  const left = await user.startBackup(newer);
  const refused = await user.startBackup(malformed);
  const plan = (backup: string, document: object) =>
    instance.sql("UPDATE operations SET plan = $2 WHERE backup_id = $1", [backup, JSON.stringify(document)]);
  await plan(left, { version: 2, source: "as only a later release reads it" });
  await plan(refused, { version: 1, backupId: refused, level: "nine" });
  const worker = await instance.startWorker();

  const failed = await user.settled("backups", refused, "error");
  expect(failed.fail_reason).toContain("The plan stored for the operation cannot be read: volumeId: Invalid input");
  await user.settled("volumes", malformed, "available");

  const task = async () => {
    const sql = `SELECT t.dispatch, t.claim, t.attempts, t.state AS task, o.state AS operation, b.status AS backup
      FROM tasks t JOIN operations o ON o.id = t.operation_id JOIN backups b ON b.id = o.backup_id WHERE b.id = $1`;
    return (await instance.sql(sql, [left]))[0];
  };
  await instance.waitFor(async () => (await task()).dispatch >= 4, {
    what: "the worker was offered it again and again",
  });
  expect(await task()).toMatchObject({ claim: 0, attempts: 0, operation: "queued", backup: "creating" });
  const told = () =>
    worker
      .tail()
      .split("\n")
      .filter((line) => line.includes('"task.left"'));
  await instance.waitFor(() => told().length > 0, { what: "the worker has said so" });
  expect(told()).toHaveLength(1);

  // Whoever comes to know what it says does it: here it says nothing yet.
  await instance.sql("UPDATE operations SET plan = NULL WHERE backup_id = $1", [left]);
  await user.settled("backups", left, "available");
  await user.expectExact(left, await sha256Of(image));
  const { backup } = await user.get(`/v3/${project}/backups/${refused}`);
  expect(backup.status).toBe("error");
});
