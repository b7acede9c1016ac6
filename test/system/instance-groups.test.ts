import { readdir } from "node:fs/promises";
import { describe, expect, it } from "vitest";
import { startInstance } from "../harness/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../harness/journey.ts";
import { machinesOn } from "../harness/machines.ts";

const MiB = 1024 * 1024;
const base = `/v3/${project}`;

/** Small windows and ranges, so that a volume of a few MiB has several. */
const small = { config: { range_bytes: 2 * MiB, worker: { slots: 4 } }, repository: { object_bytes: 512 * 1024 } };

const disks = (seed: string, count = 3) =>
  Array.from({ length: count }, (_, at) => ({
    sizeBytes: (5 + at) * MiB + 512 * at,
    islands: [{ offset: MiB * at, data: randomBytesOf(`${seed} ${at}`, 3 * MiB) }],
  }));

describe("a virtual machine as one", () => {
  it("is backed up, destroyed and restored with all its disks, and its backup goes without a trace", {
    timeout: 180_000,
  }, async () => {
    await using instance = await startInstance({ workers: 2, ...small });
    const user = journeyOn(instance);
    const machines = machinesOn(instance, user);
    const machine = await machines.create(disks("whole"));
    const before = await Promise.all(machine.volumes.map((id) => sha256Of(user.volumeFile(id))));
    await machines.setPower(machine, "ACTIVE");

    const made = await machines.backup(machine, "first", { async: false });
    expect(made.status, made.text).toBe(201);
    const { group_snapshot_id: id, backup_id: backups, volume_snapshot_id: snapshots } = made.body;
    expect(made.body).toEqual({
      operation: "backup",
      success: true,
      instance_id: machine.id,
      group_id: machine.group,
      group_snapshot_id: id,
      volume_id: machine.volumes,
      volume_snapshot_id: snapshots,
      backup_id: backups,
    });
    const [listed] = await machines.list(machine);
    expect(listed).toMatchObject({
      id,
      name: "first",
      status: "available",
      description: "group backup for instance web-1",
    });
    const times = new Set(listed.backups.map((backup: { data_timestamp: string }) => backup.data_timestamp));
    expect(times.size).toBe(1);
    for (const [at, backup] of listed.backups.entries()) {
      expect(backup).toMatchObject({ id: backups[at], snapshot_id: snapshots[at], container: machine.group });
      expect(backup.metadata.mountpoint).toBe(`/dev/vd${"abc"[at]}`);
    }
    const stamps = await instance.sql("SELECT DISTINCT data_timestamp FROM backups");
    expect(stamps).toHaveLength(1);

    for (const volume of machine.volumes) {
      await writeIslands(user.volumeFile(volume), null, [{ offset: 0, data: randomBytesOf("spoilt", 5 * MiB) }]);
    }
    const running = await machines.restore(machine, { id, name: "first" });
    expect([running.status, running.body.badRequest?.message]).toEqual([
      400,
      `Instance ${machine.id} must be shut off before restore, but its status is ACTIVE.`,
    ]);
    await machines.setPower(machine, "SHUTOFF");
    const restored = await machines.restore(machine, { id, name: "first" }, { async: "off" });
    expect(restored.status, restored.text).toBe(201);
    expect(restored.body).toMatchObject({
      operation: "restore",
      success: true,
      backup_id: backups,
      volume_id: machine.volumes,
    });
    expect(await Promise.all(machine.volumes.map((volume) => sha256Of(user.volumeFile(volume))))).toEqual(before);
    for (const volume of machine.volumes) await user.settled("volumes", volume, "in-use");

    const refused = await instance.request("DELETE", `${base}/instance-groups/${machine.group}`);
    expect([refused.status, refused.body.badRequest.message]).toEqual([
      400,
      `Instance group ${machine.group} has existing backups. Delete all backups before deleting the group.`,
    ]);
    const deleted = await machines.deleteBackup(machine, { id, name: "first" });
    expect(deleted.status, deleted.text).toBe(201);
    expect(deleted.body).toMatchObject({ operation: "delete_backup", success: true, backup_id: backups });
    expect(await machines.list(machine)).toEqual([]);
    await user.expectQuiet();
    expect((await readdir(instance.volumesDir)).filter((name) => /snapshot|restore/.test(name))).toEqual([]);

    const gone = await instance.request("DELETE", `${base}/instance-groups/${machine.group}`);
    expect([gone.status, gone.text, gone.headers.get("content-length")]).toEqual([200, "", "0"]);
    expect((await instance.request("GET", `${base}/instance-groups/${machine.group}`)).status).toBe(404);
    for (const volume of machine.volumes) await user.settled("volumes", volume, "in-use");
    const { body } = await machines.ask(200, "GET", `/ops/instances/${machine.id}`);
    expect([body.instance.group_id, body.instance.attachments.length]).toEqual([null, 3]);
    const { quota_set: quota } = await user.get(`${base}/os-quota-sets/${project}?usage=true`);
    expect([
      quota.snapshots.in_use,
      quota.backups.in_use,
      quota.backup_gigabytes.in_use,
      quota.gigabytes.in_use,
    ]).toEqual([0, 0, 0, 3]);
  });
});
