import { join } from "node:path";
import { expect, it } from "vitest";
import { withClient } from "../../../scripts/postgres.ts";
import type { Program } from "../../../scripts/spawn-program.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";

const MiB = 1024 * 1024;
const services = `/v3/${project}/os-services`;
const binary = "cinder-backup";

interface Service {
  binary: string;
  host: string;
  status: string;
  state: string;
  disabled_reason: string | null;
}

/** Short times, so that a worker is soon missed, and small ranges, so that a backup has many tasks. */
const config = {
  range_bytes: MiB,
  worker: { slots: 1, heartbeat_ms: 250, lease_ms: 1_500, down_ms: 1_500 },
  tasks: { unplaced_timeout_ms: 1_500, reconcile_ms: 250 },
};

const listOf = async (instance: Instance, query = ""): Promise<Service[]> =>
  (await instance.request("GET", `${services}${query}`)).body.services;

async function change(instance: Instance, action: string, body: object): Promise<void> {
  const reply = await instance.request("PUT", `${services}/${action}`, body);
  expect(reply.status, reply.text).toBe(200);
}

/** A host takes note of its switch with its next heartbeat, and hands back what it has taken since: only then is it quiet. */
const claimedLate = async (instance: Instance, host: string): Promise<number> => {
  const [row] = await instance.sql(
    `SELECT count(*)::int AS tasks FROM tasks t, disabled_services d
     WHERE d.host = $1 AND t.worker_id LIKE $1 || ':%' AND t.started_at > d.disabled_at`,
    [host],
  );
  return row.tasks;
};

it("gives a disabled host no new task, and one that is enabled again its share", { timeout: 240_000 }, async () => {
  await using instance = await startInstance({
    workers: 0,
    config,
    repository: { object_bytes: MiB, compression: "none" },
  });
  for (const host of ["east", "west"]) await instance.startWorker({ TEPHRA_HOST_NAME: host });
  const user = journeyOn(instance);
  const image = join(instance.dataDir, "disk.img");
  await writeIslands(image, 32 * MiB, [{ offset: 0, data: randomBytesOf("services", 32 * MiB) }]);
  const volume = await user.importVolume(image);
  const seen = async () => (await listOf(instance)).map((s) => [s.binary, s.host, s.status, s.state].join(" "));
  // A host that is busy is down for as long as it is not heard of.
  await expect
    .poll(seen)
    .toEqual([
      "cinder-backup east enabled up",
      "cinder-backup west enabled up",
      "cinder-volume east@files enabled up",
      "cinder-volume west@files enabled up",
    ]);

  const running = await user.startBackup(volume, { force: true });
  const busy = "SELECT 1 FROM tasks WHERE state = 'running' AND kind = 'copy' AND worker_id LIKE 'east:%'";
  await instance.waitFor(async () => (await instance.sql(busy)).length > 0, { what: "east copies" });
  await change(instance, "disable-log-reason", { binary, host: "east", disabled_reason: "new disks" });
  await user.settled("backups", running, "available");
  const alone = await user.backUp(volume);
  expect(await claimedLate(instance, "east")).toBe(0);
  const workers =
    "SELECT DISTINCT split_part(t.worker_id, ':', 1) AS host FROM tasks t JOIN operations o ON o.id = t.operation_id WHERE o.backup_id = $1 AND t.worker_id IS NOT NULL";
  expect(await instance.sql(workers, [alone])).toEqual([{ host: "west" }]);
  await expect
    .poll(() => listOf(instance, "?host=east&binary=cinder-backup"))
    .toMatchObject([{ host: "east", status: "disabled", state: "up", disabled_reason: "new disks" }]);
  await user.expectExact(running, await sha256Of(image));

  await change(instance, "disable", { binary, host: "west" });
  const nobody = await user.startBackup(volume);
  await user.settled("backups", nobody, "error");
  const { backup } = await user.get(`/v3/${project}/backups/${nobody}`);
  expect(backup.fail_reason).toBe("Service not found for creating backup.");

  await change(instance, "enable", { binary, host: "east" });
  const again = await user.backUp(volume);
  expect(await instance.sql(workers, [again])).toEqual([{ host: "east" }]);
  expect(await claimedLate(instance, "west")).toBe(0);
  await change(instance, "enable", { binary, host: "west" });
  expect((await listOf(instance)).map((s) => s.status)).toEqual(["enabled", "enabled", "enabled", "enabled"]);
  // On a busy machine one of them may be asleep for the whole of a backup.
  const share = async () => instance.sql(`${workers} ORDER BY 1`, [await user.backUp(volume)]);
  let shares = await share();
  for (let more = 0; more < 5 && shares.length < 2; more += 1) shares = await share();
  expect(shares).toEqual([{ host: "east" }, { host: "west" }]);
  await user.expectQuiet();
});

it("tells a worker that was killed from one that lives and from one that stopped", async () => {
  await using instance = await startInstance({ workers: 0, config });
  for (const host of ["east", "south", "west"]) await instance.startWorker({ TEPHRA_HOST_NAME: host });
  const [east, south] = instance.workers;
  east?.kill("SIGKILL");
  await south?.stop();
  const states = async (query: string) => (await listOf(instance, query)).map((s) => [s.host, s.state].join(" "));
  await expect.poll(() => states("?binary=cinder-backup")).toEqual(["east down", "west up"]);
  expect(await states("?binary=cinder-volume&host=east")).toEqual(["east@files down"]);
});

it("leaves no registration of a worker that is stopped while it registers", async () => {
  await using instance = await startInstance({ workers: 0, config });
  const writes = `SELECT 1 FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND query ~ 'INSERT INTO worker[s]'`;
  const isWritten = async (): Promise<boolean> => (await instance.sql(writes)).length > 0;
  let known: Promise<Program> | undefined;
  await withClient(instance.databaseUrl, async (locker) => {
    await locker.query("BEGIN; LOCK TABLE workers IN EXCLUSIVE MODE");
    known = instance.startWorker();
    await instance.waitFor(isWritten, { what: "a registration is being written", timeoutMs: 60_000 });
    const [worker] = instance.workers;
    worker?.kill("SIGTERM");
    const noticed = (): boolean => worker?.running() === false || /worker stops/.test(worker?.tail() ?? "");
    await instance.waitFor(noticed, { what: "the worker has taken note of the signal" });
    await locker.query("COMMIT");
  });
  expect(await (await known)?.exited).toEqual({ code: 0, signal: null });
  await instance.waitFor(async () => !(await isWritten()), { what: "nothing is written any more" });
  expect(await instance.sql("SELECT host FROM workers")).toEqual([]);
});
