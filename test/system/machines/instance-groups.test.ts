import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { startInstance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { machinesOn } from "../../kit/machines.ts";

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

describe("a group of a source", () => {
  const headers = { "openstack-api-version": "volume 3.71" };

  it("has a copy of each disk, and is available when all of them are", { timeout: 120_000 }, async () => {
    await using instance = await startInstance({ workers: 1, ...small });
    const user = journeyOn(instance);
    const machines = machinesOn(instance, user);
    const machine = await machines.create(disks("source", 2));
    const before = await Promise.all(machine.volumes.map((id) => sha256Of(user.volumeFile(id))));
    await machines.ask(204, "DELETE", `/ops/instances/${machine.id}`);
    const type = { group_type: { name: "kind" } };
    expect((await instance.request("POST", `${base}/group_types`, type, headers)).status).toBe(202);
    const wanted = { group: { name: "g", group_type: "kind", volume_types: ["__DEFAULT__"] } };
    const { id: group } = (await instance.request("POST", `${base}/groups`, wanted, headers)).body.group;
    const joining = { group: { add_volumes: machine.volumes.join(",") } };
    expect((await instance.request("PUT", `${base}/groups/${group}`, joining, headers)).status).toBe(202);
    const snapshot = { group_snapshot: { group_id: group, name: "moment" } };
    const taken = await instance.request("POST", `${base}/group_snapshots`, snapshot, headers);
    expect(taken.status, taken.text).toBe(202);
    const snapshotId = taken.body.group_snapshot.id as string;
    const statusOf = async (table: "groups" | "group_snapshots", id: string): Promise<string> =>
      (await instance.sql(`SELECT status FROM ${table} WHERE id = $1`, [id]))[0].status;
    const rests = (table: "groups" | "group_snapshots", id: string) =>
      instance.waitFor(async () => (await statusOf(table, id)) !== "creating", { what: `${table} ${id} rests` });
    await rests("group_snapshots", snapshotId);
    for (const volume of machine.volumes) {
      await writeIslands(user.volumeFile(volume), null, [{ offset: 0, data: randomBytesOf("later", MiB) }]);
    }
    const later = await Promise.all(machine.volumes.map((id) => sha256Of(user.volumeFile(id))));

    const makeOf = async (source: object, expected: readonly string[]): Promise<void> => {
      const body = { "create-from-src": { name: "copy", ...source } };
      const made = await instance.request("POST", `${base}/groups/action`, body, headers);
      expect(made.status, made.text).toBe(202);
      const { id } = made.body.group;
      await rests("groups", id);
      const shown = await instance.request("GET", `${base}/groups/${id}?list_volume=true`, undefined, headers);
      expect(shown.body.group).toMatchObject({ status: "available", ...source });
      const digests = await Promise.all(shown.body.group.volumes.map((v: string) => sha256Of(user.volumeFile(v))));
      expect(digests.sort()).toEqual([...expected].sort());
      await user.expectQuiet();
    };
    await makeOf({ group_snapshot_id: snapshotId }, before);
    await makeOf({ source_group_id: group }, later);

    // One of the copies cannot be made: the group says so.
    const [lost] = await instance.sql("SELECT id FROM snapshots WHERE group_snapshot_id = $1", [snapshotId]);
    const [file] = (await readdir(instance.volumesDir)).filter((name) => name.includes(lost.id));
    await rm(join(instance.volumesDir, file ?? ""));
    const body = { "create-from-src": { group_snapshot_id: snapshotId } };
    const broken = await instance.request("POST", `${base}/groups/action`, body, headers);
    await rests("groups", broken.body.group.id);
    expect(await statusOf("groups", broken.body.group.id)).toBe("error");
    const volumes = await instance.sql("SELECT status FROM volumes WHERE group_id = $1", [broken.body.group.id]);
    expect(volumes.map(({ status }) => status).sort()).toEqual(["available", "error"]);

    // Of two groups that a new volume names, group_id counts: here one that takes no volume.
    const volume = { size: 1, volume_type: "__DEFAULT__", consistencygroup_id: group, group_id: broken.body.group.id };
    const refused = await instance.request("POST", `${base}/volumes`, { volume }, headers);
    expect(refused.status, refused.text).toBe(400);
    expect(refused.text).toContain("Group status must be available, but current status is: error.");
  });
});
