import { randomUUID } from "node:crypto";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { unpackFaketime } from "../../../scripts/faketime-package.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;

const brisk = {
  config: {
    range_bytes: 2 * MiB,
    // A lease may also run out because the machine is busy: not so soon.
    worker: { slots: 2, lease_ms: 6_000, heartbeat_ms: 400 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
    reaper: { interval_hours: null, grace_minutes: 1 },
  },
  repository: { object_bytes: 512 * 1024 },
};

it("no lease runs out early or late, and nothing young is reaped, by clocks that are an hour fast or slow", async () => {
  const faketime = await unpackFaketime((line) => process.stderr.write(`${line}\n`));
  await using instance = await startInstance({ workers: 0, api: false, ...brisk });
  await instance.startApi(faketime("+1h"));
  const slow = await instance.startWorker(faketime("-1h"));
  await instance.startWorker(faketime("+1h"));
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 48 * MiB, [{ offset: 4 * MiB, data: randomBytesOf("image", 40 * MiB) }]);
  const sha256 = await sha256Of(image);
  const volume = await user.importVolume(image);
  const claims = () =>
    instance.sql("SELECT id, worker_id, state, claim FROM tasks WHERE kind = 'copy' ORDER BY claim, id");

  await user.backUp(volume);
  const [clocks] = await instance.sql("SELECT created_at > now() + interval '50 minutes' AS wrong FROM backups");
  expect(clocks, "the API's clock is wrong").toEqual({ wrong: true });
  expect((await claims()).every(({ claim }) => claim === 1)).toBe(true);
  // On a busy machine one of them may be asleep for the whole of a backup.
  const atWork = async () => new Set((await claims()).map(({ worker_id }) => worker_id)).size;
  for (let more = 0; more < 5 && (await atWork()) < 2; more += 1) await user.backUp(volume);
  expect(await atWork(), "both have worked").toBe(2);

  const second = await user.startBackup(volume);
  const begun = async () =>
    (await claims()).some(({ worker_id, state }) => state === "running" && worker_id.includes(`:${slow.pid}:`));
  await instance.waitFor(begun, { what: "the slow one is at work", timeoutMs: 30_000, everyMs: 10 });
  slow.kill("SIGKILL");
  await user.settled("backups", second, "available", 30_000);
  expect((await claims()).filter(({ claim }) => claim > 1).length).toBeLessThanOrEqual(brisk.config.worker.slots);

  const young = join(instance.repositoryDir, ".tephra/tmp", randomUUID());
  writeFileSync(young, "half of an obj");
  const { operation } = await user.accepted("POST", "/ops/repositories/main/reap", {});
  const reaped = async () => (await user.get(`/ops/operations/${operation.id}`)).operation.result?.removed;
  const removed = await instance.waitFor(reaped, { what: "the reaper has passed", timeoutMs: 30_000 });
  expect(removed).toMatchObject({ objects: 0, staged: 0, temporary: 0, snapshots: 0 });
  expect(existsSync(young)).toBe(true);

  await user.expectExact(second, sha256);
  await user.expectQuiet();
});
