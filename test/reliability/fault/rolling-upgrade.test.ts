import { join } from "node:path";
import { expect, inject, it } from "vitest";
import type { Program } from "../../../scripts/spawn-program.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { isLong } from "../../kit/long.ts";
import { buildLastRelease, NoReleaseError } from "../../kit/release.ts";

const MiB = 1024 * 1024;
const sizeBytes = 96 * MiB;
/** Many ranges, each of which takes a while. */
const config = {
  range_bytes: MiB,
  worker: { slots: 1, lease_ms: 5_000, heartbeat_ms: 500 },
  tasks: { reconcile_ms: 500, dispatch_timeout_ms: 3_000 },
};
const repository = { object_bytes: MiB, compression: "bz2" };
const patience = { patienceMs: 240_000 };

it.runIf(isLong)(
  "the last release's API and worker run beside this one's on one database, a backup and a restore in flight, and nothing fails",
  { timeout: 900_000 },
  async ({ skip }) => {
    await using stack = new AsyncDisposableStack();
    const release = await buildLastRelease(inject("servers").dir, stack).catch((error: unknown) => {
      if (!(error instanceof NoReleaseError)) throw error;
      process.stdout.write(`rolling upgrade: not tested, ${error.message}\n`);
      return skip(error.message);
    });
    await using instance = await startInstance({ workers: 0, config, repository });
    const old = await instance.startBeside(release);
    const newUser = journeyOn(instance, patience);
    const oldUser = journeyOn({ ...instance, request: old.request }, patience);
    /** Ranges of a backup or of a restore to a volume that the worker has finished. */
    const finishedBy = async (worker: Program, id: string): Promise<number> => {
      const sql = `SELECT count(*)::int AS ranges FROM tasks t JOIN operations o ON o.id = t.operation_id
        WHERE (o.backup_id = $1 OR o.volume_id = $1) AND t.kind IN ('copy', 'restore') AND t.state = 'succeeded'
          AND split_part(t.worker_id, ':', 2) = $2`;
      return (await instance.sql(sql, [id, String(worker.pid)]))[0].ranges;
    };
    const begunBy = (worker: Program, id: string) =>
      instance.waitFor(async () => (await finishedBy(worker, id)) > 2, {
        what: `${worker.name} has finished ranges of ${id}`,
        timeoutMs: patience.patienceMs,
      });

    // No worker is so fast that the other one comes too late.
    const limit = "/ops/limits/repositories/repository/main";
    expect((await instance.request("PUT", limit, { bytes_per_second: 6 * MiB })).status).toBe(200);

    const image = join(instance.dataDir, "disk.img");
    await writeIslands(image, sizeBytes, [{ offset: 0, data: randomBytesOf("upgrade", sizeBytes) }]);
    const digest = await sha256Of(image);
    const volume = await oldUser.importVolume(image);
    const source = await oldUser.backUp(volume);

    // What the last release has accepted and begun, both finish.
    const backup = await oldUser.startBackup(volume);
    const restored = await oldUser.startRestore(source);
    await begunBy(old.worker, restored);
    const worker = await instance.startWorker();
    for (const id of [restored, backup]) for (const one of [worker, old.worker]) await begunBy(one, id);
    expect((await instance.request("DELETE", limit)).status).toBe(204);
    await newUser.settled("backups", backup, "available");
    await newUser.settled("volumes", restored, "available");
    expect(await sha256Of(newUser.volumeFile(restored))).toBe(digest);

    // What this release has accepted, both begin, and it goes on when the last release goes.
    const later = await newUser.startBackup(volume);
    const target = await newUser.startRestore(source);
    await Promise.all([begunBy(old.worker, later), begunBy(worker, later)]);
    const gone = [await old.worker.stop({ signal: "SIGTERM" }), await old.api.stop({ signal: "SIGTERM" })];
    expect(gone.map(({ code }) => code)).toEqual([0, 0]);
    await newUser.settled("backups", later, "available");
    await newUser.settled("volumes", target, "available");
    expect(await sha256Of(newUser.volumeFile(target))).toBe(digest);
    for (const id of [backup, later]) await newUser.expectExact(id, digest);

    await newUser.expectQuiet();
    expect(await instance.sql("SELECT kind, fail_reason FROM operations WHERE state <> 'succeeded'")).toEqual([]);
    expect(await instance.sql("SELECT kind, fail_reason FROM tasks WHERE fail_reason IS NOT NULL")).toEqual([]);
    expect(instance.logs().match(/"level":[56]0.*/g)).toBeNull();
  },
);
