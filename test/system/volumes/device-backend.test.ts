import { createHash, randomUUID } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { mkdir, open, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { crashAt } from "../../kit/crash-at.ts";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf } from "../../kit/journey.ts";
import { attachLoopDevice } from "../../kit/loop-device.ts";

const MiB = 1024 * 1024;
const base = `/v3/${project}`;
/** Short leases, so that a takeover is a matter of seconds. */
const brisk = {
  range_bytes: 4 * MiB,
  worker: { slots: 2, lease_ms: 2_000, heartbeat_ms: 400, drain_ms: 1_000 },
  tasks: { reconcile_ms: 300, dispatch_timeout_ms: 3_000, backoff_ms: 100 },
};

let home: string;
beforeAll(() => {
  home = mkdtempSync(join(tmpdir(), "tephra-devices-"));
});
afterAll(() => rmSync(home, { recursive: true, force: true }));

/** Starts a program as on another machine: another kernel, as far as it can see. */
async function elsewhere(): Promise<string[]> {
  const bootId = join(home, "boot_id");
  await writeFile(bootId, `${randomUUID()}\n`);
  const lines = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"';
  return ["unshare", "--mount", "--propagation", "private", "sh", "-c", lines, bootId];
}

const hashOf = async (path: string): Promise<string> =>
  createHash("sha256")
    .update(await readFile(path))
    .digest("hex");

it("backs up a block device where it is and restores it in place, also when the worker is killed", {
  timeout: 240_000,
}, async (context) => {
  const [records, disks, file] = [join(home, "records"), join(home, "disks"), join(home, "file")];
  for (const folder of [records, disks]) await mkdir(folder);
  await writeFile(file, randomBytesOf("device", 16 * MiB));
  const device = await attachLoopDevice(file);
  if (device === null) return context.skip("no loop devices here");
  const path = join(disks, "web");
  await symlink(device, path);
  const backends = [
    { name: "files", driver: "file", path: join(home, "files") },
    { name: "disks", driver: "device", path: records, roots: [disks] },
  ];
  await mkdir(join(home, "files"));
  await using instance = await startInstance({
    config: { ...brisk, volume_backends: backends },
    repository: { object_bytes: MiB },
  });
  const user = journeyOn(instance, { patienceMs: 60_000 });
  const adopt = async (image: string) => {
    const body = { image, backend: "disks", project_id: project };
    const accepted = await user.accepted("POST", "/ops/volumes/import", body);
    const ended = async () => {
      const { operation } = await user.get(`/ops/operations/${accepted.operation.id}`);
      return ["succeeded", "failed"].includes(operation.state) && operation;
    };
    const operation = await instance.waitFor(ended, { what: "the adoption has ended", timeoutMs: 60_000 });
    return { id: accepted.volume.id as string, operation };
  };
  const refused = await adopt("device:/etc/passwd");
  expect(refused.operation).toMatchObject({ state: "failed", fail_reason: expect.stringContaining("no block device") });
  const { id, operation } = await adopt(`device:${path}`);
  expect(operation.state).toBe("succeeded");

  // What a device cannot do is refused at once, and told to schedulers.
  for (const [resource, body] of [
    ["snapshots", { snapshot: { volume_id: id } }],
    ["volumes", { volume: { source_volid: id } }],
  ] as const) {
    const answer = await instance.request("POST", `${base}/${resource}`, body);
    expect([answer.status, answer.text]).toEqual([400, expect.stringContaining("Operation not supported: create ")]);
  }
  const { pools } = await user.get(`${base}/scheduler-stats/get_pools?detail=true`);
  const capabilities = { storage_protocol: "block", snapshot_support: false, volume_creation_support: false };
  expect(pools[1]).toMatchObject({ capabilities });
  await instance.sql("UPDATE volumes SET status = 'in-use' WHERE id = $1", [id]);
  const inUse = await instance.request("POST", `${base}/backups`, { backup: { volume_id: id, force: true } });
  expect([inUse.status, inUse.text]).toEqual([400, expect.stringContaining("must be available, but")]);
  await instance.sql("UPDATE volumes SET status = 'available' WHERE id = $1", [id]);

  // Each of several ranges is for whoever is free.
  await instance.startWorker({}, await elsewhere());
  const full = await user.backUp(id);
  const whole = await hashOf(path);
  await using disk = await open(path, "r+");
  await disk.write(Buffer.alloc(MiB), 0, MiB, 5 * MiB);
  await disk.sync();
  const changed = await hashOf(path);
  const incremental = await user.backUp(id, { incremental: true });

  await disk.write(randomBytesOf("overwritten", 16 * MiB), 0, 16 * MiB, 0);
  for (const [backup, hash, at] of [
    [incremental, changed, 3],
    [full, whole, 3],
  ] as const) {
    for (const worker of instance.workers) if (worker.running()) await worker.stop();
    const doomed = await instance.startWorker(crashAt(`plan-restore:${at}`));
    await user.startRestore(backup, id);
    await instance.waitFor(() => !doomed.running(), { what: "the worker died", timeoutMs: 60_000 });
    await instance.startWorker();
    await user.settled("volumes", id, "available");
    expect(await hashOf(path)).toBe(hash);
  }
  await user.expectQuiet();
  expect((await readdir(records)).filter((name) => !name.startsWith("."))).toEqual([`device-${id}`]);

  // Another machine has been writing it: nobody here can know whether it has ended.
  const record = join(records, `restoring-${id}`);
  await writeFile(record, JSON.stringify({ restoreId: "x", boot: randomUUID(), host: "web1", process: 7 }));
  await user.startRestore(incremental, id);
  await user.settled("volumes", id, "error_restoring");
  const ended = await user.operation(`volume_id=${id}&state=failed`);
  expect(ended.fail_reason).toMatch(/process 7 of host web1 .*Make sure that this process no longer runs/);
  expect(await hashOf(path)).toBe(whole);
  await rm(record);
  await user.accepted("POST", `${base}/volumes/${id}/action`, { "os-reset_status": { status: "available" } });
  await user.restore(incremental, id);
  expect(await hashOf(path)).toBe(changed);

  await user.accepted("DELETE", `${base}/volumes/${id}`);
  await user.expectQuiet();
  expect(await hashOf(path)).toBe(changed);
});
