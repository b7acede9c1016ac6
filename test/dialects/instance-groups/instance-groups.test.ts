import { expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import { fingerprint, finishGroupBackup, setStatus, startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;
const unknown = "11111111-2222-4333-8444-555555555555";

/** An API whose requests wait for nobody: without workers none of them would ever end. */
const impatient = { config: { instance_groups: { sync_wait_timeout_ms: 0 } } };

async function makeVolume(instance: Instance, name: string): Promise<string> {
  const { body } = await instance.request("POST", `${base}/volumes`, { volume: { size: 1, name } });
  await setStatus(instance, "volumes", body.volume.id, "available");
  return body.volume.id as string;
}

/** A machine of two disks, the second attached before the first so that order is not chance. */
async function makeMachine(instance: Instance, name = "85scsi3_backup") {
  const boot = await makeVolume(instance, `${name} boot`);
  const data = await makeVolume(instance, `${name} data`);
  const made = { name, boot_volume_id: boot, configuration: { vcpus: 2 } };
  const { body, text } = await instance.request("POST", "/ops/instances", { instance: made });
  if (!body?.instance) throw new Error(text);
  const id = body.instance.id as string;
  await instance.request("POST", `/ops/instances/${id}/attach`, { volume_id: data, device: "/dev/vdb" });
  return { id, group: body.instance.group_id as string, boot, data };
}

const setPower = (instance: Instance, id: string, power_state: string) =>
  instance.request("PUT", `/ops/instances/${id}`, { instance: { power_state } });

it("answers as the page says, with or without a project in the path", { timeout: 180_000 }, async () => {
  await using instance = await startApiOnly(impatient);
  const { ask, check } = openGolden(instance, "instance-groups");
  const machine = await makeMachine(instance);
  const group = `${base}/instance-groups/${machine.group}`;
  await ask("the groups", "GET", `${base}/instance-groups`);
  await ask("a group without backups", "GET", group);
  const asked = { instance_id: machine.id, name: "backup2", async: "true" };
  await ask("a backup, asynchronously", "POST", `${group}/backup`, { body: asked });
  await ask("while it is made", "GET", group);
  const id = await finishGroupBackup(instance, machine.group);
  const listed = await ask("a backup in the list", "GET", `/v3/instance-groups/${machine.group}`);
  expect(Object.keys(listed.body[0].backups[0])).toHaveLength(25);
  expect(listed.body[0].created_at).toMatch(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d$/);
  await setPower(instance, machine.id, "SHUTOFF");
  const named = { instance_id: machine.id, group_snapshot_id: id, name: "backup2", async: "true" };
  await ask("a restore, asynchronously", "PUT", `/v3/instance-groups/${machine.group}/restore`, { body: named });
  await ask("while it is restored", "GET", group);
  await instance.sql("UPDATE volumes SET status = 'in-use' WHERE status = 'restoring-backup'");
  await instance.sql("UPDATE backups SET status = 'available' WHERE status = 'restoring'");
  await finishGroupBackup(instance, machine.group);
  await ask("a deletion that took too long to wait for", "PUT", `${group}/delete_backup`, {
    body: { ...named, async: undefined },
  });
  await ask("while it is deleted", "GET", group);
  await ask("deleting the group meanwhile", "DELETE", group);
  await instance.sql("DELETE FROM snapshots");
  await instance.sql("UPDATE backups SET status = 'deleted', deleted_at = now()");
  await instance.sql("DELETE FROM group_snapshots");
  await instance.sql("UPDATE groups SET operation_id = NULL");
  await ask("deleting the group", "DELETE", group);
  await ask("a group that is gone", "GET", group);
  await ask("its machine", "GET", `/ops/instances/${machine.id}`);
  check();
});

it("answers an asynchronous request with 202 where the configuration says so", { timeout: 180_000 }, async () => {
  await using instance = await startApiOnly({ config: { instance_groups: { async_status_code: 202 } } });
  const machine = await makeMachine(instance);
  const body = { instance_id: machine.id, name: "b", async: true };
  const reply = await instance.request("POST", `/v3/instance-groups/${machine.group}/backup`, body);
  expect([reply.status, reply.body, reply.headers.get("location")]).toEqual([
    202,
    { msg: "Backup request submitted" },
    `/v3/instance-groups/${machine.group}`,
  ]);
});

it("refuses a backup for each reason, in order, and leaves no row behind", { timeout: 180_000 }, async () => {
  await using instance = await startApiOnly(impatient);
  const { ask, check } = openGolden(instance, "instance-group-backup-refusals");
  const machine = await makeMachine(instance);
  const other = await makeMachine(instance, "other");
  const { body: plain } = await instance.request(
    "POST",
    `${base}/groups`,
    { group: { name: "plain", group_type: "instance_group_type", volume_types: ["__DEFAULT__"] } },
    { "openstack-api-version": "volume 3.13" },
  );
  await instance.sql(`INSERT INTO group_types (id, name) VALUES ('${unknown}', 'kind') `);
  const path = `${base}/instance-groups/${machine.group}/backup`;
  const good = { instance_id: machine.id, name: "b1" };
  const refused = async (name: string, body: unknown, at = path) => {
    const before = await fingerprint(instance);
    const reply = await ask(name, "POST", at, { body });
    expect(reply.status, name).toBeGreaterThanOrEqual(400);
    expect(await fingerprint(instance), name).toEqual(before);
  };
  await refused("no id at all", good, `${base}/instance-groups/nope/backup`);
  await refused("unknown group", good, `${base}/instance-groups/${unknown}/backup`);
  await instance.sql("UPDATE groups SET group_type_id = $1 WHERE id = $2", [unknown, plain.group.id]);
  await refused("a group of another type", good, `${base}/instance-groups/${plain.group.id}/backup`);
  await refused("unknown instance", { ...good, instance_id: unknown });
  await refused("another group's instance", { ...good, instance_id: other.id });
  await refused("async: maybe", { ...good, async: "maybe" });
  await refused("async: a number", { ...good, async: 7 });
  await refused("incremental: perhaps", { ...good, incremental: "perhaps" });
  await refused("no name", { instance_id: machine.id });
  await refused("an empty name", { ...good, name: "" });
  await refused("a name that is too long", { ...good, name: "n".repeat(256) });
  await refused("no instance", { name: "b1" });
  await refused("what is no id", { ...good, instance_id: "vm1" });
  await refused("an unknown key", { ...good, colour: "red" });
  await refused("no object", ["b1"]);
  await refused("nothing to build on", { ...good, incremental: true });
  await instance.sql("UPDATE groups SET status = 'updating' WHERE id = $1", [machine.group]);
  await refused("a group that is not available", good);
  await instance.sql("UPDATE groups SET status = 'available' WHERE id = $1", [machine.group]);
  for (const state of ["ERROR", "MIGRATING", "PAUSED"]) {
    await setPower(instance, machine.id, state);
    await refused(`a machine in ${state}`, good);
  }
  await setPower(instance, machine.id, "ACTIVE");
  for (const status of ["backing-up", "error", "restoring-backup"]) {
    await setStatus(instance, "volumes", machine.data, status);
    await refused(`a disk in ${status}`, good);
  }
  await setStatus(instance, "volumes", machine.data, "in-use");
  await instance.sql("UPDATE volumes SET group_id = $1 WHERE id = $2", [plain.group.id, machine.data]);
  await refused("a disk of another group", good);
  await instance.sql("UPDATE volumes SET group_id = NULL WHERE id = $1", [machine.data]);
  await instance.sql("DELETE FROM attachments WHERE server_id = $1", [other.id]);
  await instance.sql("UPDATE volumes SET group_id = NULL WHERE group_id = $1", [other.group]);
  const empty = { instance_id: other.id, name: "b1" };
  await refused("no disk", empty, `${base}/instance-groups/${other.group}/backup`);
  for (const limits of [{ snapshots: 1 }, { backups: 1 }, { backup_gigabytes: 1 }, { gigabytes: 5 }]) {
    await instance.request("PUT", `${base}/os-quota-sets/${project}`, { quota_set: limits });
    await refused(`quota ${JSON.stringify(limits)}`, good);
    await instance.request("DELETE", `${base}/os-quota-sets/${project}`);
  }
  const taken = await ask("the first, with a disk that had not joined", "POST", path, {
    body: { ...good, async: "Yes" },
  });
  expect(taken.status).toBe(201);
  await refused("while it is made", { ...good, name: "b2" });
  await finishGroupBackup(instance, machine.group);
  await refused("a name that is taken", good);
  check();
});

it("refuses a restore and a deletion for each reason, in order, and changes nothing", {
  timeout: 180_000,
}, async () => {
  await using instance = await startApiOnly(impatient);
  const { ask, check } = openGolden(instance, "instance-group-restore-refusals");
  const machine = await makeMachine(instance);
  const other = await makeMachine(instance, "other");
  const makeBackup = async ({ id, group }: { id: string; group: string }) => {
    await instance.request("POST", `${base}/instance-groups/${group}/backup`, {
      instance_id: id,
      name: "b",
      async: 1 > 0,
    });
    return finishGroupBackup(instance, group);
  };
  const snapshot = await makeBackup(machine);
  const foreign = await makeBackup(other);
  const good = { instance_id: machine.id, group_snapshot_id: snapshot, name: "b" };
  const path = `${base}/instance-groups/${machine.group}`;
  const refused = async (name: string, verb: string, body: unknown, at = path) => {
    const before = await fingerprint(instance);
    const reply = await ask(`${verb}: ${name}`, "PUT", `${at}/${verb}`, { body });
    expect(reply.status, name).toBeGreaterThanOrEqual(400);
    expect(await fingerprint(instance), name).toEqual(before);
  };
  for (const verb of ["restore", "delete_backup"]) {
    await refused("no id at all", verb, good, `${base}/instance-groups/nope`);
    await refused("unknown group", verb, good, `${base}/instance-groups/${unknown}`);
    await refused("unknown instance", verb, { ...good, instance_id: unknown });
    await refused("another group's instance", verb, { ...good, instance_id: other.id });
    await refused("unknown backup", verb, { ...good, group_snapshot_id: unknown });
    await refused("another group's backup", verb, { ...good, group_snapshot_id: foreign });
    await refused("another name", verb, { ...good, name: "c" });
    await refused("no name", verb, { ...good, name: undefined });
    await refused("async: maybe", verb, { ...good, async: "maybe" });
    await refused("an unknown key", verb, { ...good, force: true });
  }
  await refused("a machine that runs", "restore", good);
  await setPower(instance, machine.id, "SHUTOFF");
  await instance.sql("UPDATE group_snapshots SET status = 'error' WHERE id = $1", [snapshot]);
  await refused("a group snapshot in error", "restore", good);
  await instance.sql("UPDATE group_snapshots SET status = 'available' WHERE id = $1", [snapshot]);
  const [{ id: part }] = await instance.sql("SELECT id FROM backups WHERE volume_id = $1", [machine.data]);
  for (const status of ["error", "restoring"]) {
    await setStatus(instance, "backups", part, status);
    await refused(`a part in ${status}`, "restore", good);
  }
  await refused("a part in restoring", "delete_backup", good);
  await setStatus(instance, "backups", part, "available");
  await instance.sql("UPDATE volumes SET size_gib = 0 WHERE id = $1", [machine.data]);
  await refused("a disk that is too small", "restore", good);
  await instance.sql("UPDATE volumes SET size_gib = 1, group_id = NULL WHERE id = $1", [machine.data]);
  await refused("a disk that has left the group", "restore", good);
  await instance.sql("UPDATE volumes SET group_id = $1 WHERE id = $2", [machine.group, machine.data]);
  await instance.sql(`UPDATE workers SET free_bytes = '{"backend:files": 1610612736}'`);
  await refused("no space for both", "restore", good);
  await instance.sql("UPDATE workers SET free_bytes = '{}'");
  await setStatus(instance, "volumes", machine.data, "extending");
  await refused("a disk that is being extended", "restore", good);
  await setStatus(instance, "volumes", machine.data, "in-use");
  await instance.sql(
    `INSERT INTO backups (id, project_id, user_id, volume_id, parent_id, status, size_gib, repository, data_timestamp)
     VALUES ($1, $2, 'u', $3, $4, 'available', 1, 'main', now())`,
    [unknown, project, machine.data, part],
  );
  await refused("what others build on", "delete_backup", good);
  await instance.sql("DELETE FROM backups WHERE id = $1", [unknown]);
  await instance.sql("UPDATE backups SET deleted_at = now(), status = 'deleted' WHERE id = $1", [part]);
  await refused("a part that was deleted behind its back", "restore", good);
  await ask("with that part the whole is in error", "GET", path);
  await instance.sql("UPDATE backups SET deleted_at = NULL, status = 'available' WHERE id = $1", [part]);
  expect((await ask("restore", "PUT", `${path}/restore`, { body: { ...good, async: true } })).status).toBe(201);
  await refused("while it is restored", "delete_backup", good);
  await refused("while it is restored", "restore", good);
  const started = await setPower(instance, machine.id, "ACTIVE");
  expect(started.body.badRequest.message).toContain("An operation is already in progress on instance group");
  check();
});

it("takes one of two requests at once", { timeout: 180_000 }, async () => {
  await using instance = await startApiOnly(impatient);
  for (let round = 0; round < 5; round += 1) {
    const machine = await makeMachine(instance, `m${round}`);
    const ask = (name: string) =>
      instance.request("POST", `${base}/instance-groups/${machine.group}/backup`, {
        instance_id: machine.id,
        name,
        async: true,
      });
    const statuses = (await Promise.all([ask("a"), ask("b"), ask("a")])).map((reply) => reply.status);
    expect(statuses.sort()).toEqual([201, 400, 400]);
    const [row] = await instance.sql("SELECT count(*)::int AS n FROM group_snapshots WHERE group_id = $1", [
      machine.group,
    ]);
    expect(row.n).toBe(1);
    await instance.sql("UPDATE quotas SET volumes_used = 0, snapshots_used = 0, backups_used = 0");
  }
});

it("keeps what a machine's group is made of from being deleted behind its back", { timeout: 180_000 }, async () => {
  await using instance = await startApiOnly(impatient);
  const { ask, check } = openGolden(instance, "instance-group-parts");
  const machine = await makeMachine(instance);
  await instance.request("POST", `${base}/instance-groups/${machine.group}/backup`, {
    instance_id: machine.id,
    name: "b",
    async: true,
  });
  const id = await finishGroupBackup(instance, machine.group);
  const [{ id: snapshot }] = await instance.sql("SELECT id FROM snapshots WHERE volume_id = $1", [machine.data]);
  const version = 71;
  await ask("a disk's snapshot", "GET", `${base}/snapshots/${snapshot}`, { version: 14 });
  await ask("a disk", "GET", `${base}/volumes/${machine.data}`, { version: 13 });
  await ask("its volumes", "GET", `${base}/volumes?group_id=${machine.group}`, { version });
  await ask("deleting a snapshot of it", "DELETE", `${base}/snapshots/${snapshot}`, { version });
  const force = { "os-force_delete": {} };
  await ask("deleting it by force", "POST", `${base}/snapshots/${snapshot}/action`, { version, body: force });
  await ask("deleting the group snapshot", "DELETE", `${base}/group_snapshots/${id}`, { version });
  const remove = { delete: { "delete-volumes": true } };
  await ask("deleting the group as Cinder's", "POST", `${base}/groups/${machine.group}/action`, {
    version,
    body: remove,
  });
  await ask("deleting a disk", "DELETE", `${base}/volumes/${machine.data}`, { version });
  await ask("deleting the machine", "DELETE", `/ops/instances/${machine.id}`);
  await instance.request("POST", `${base}/volumes/${machine.data}/action`, { "os-detach": {} });
  const { body } = await ask("a disk that was detached", "GET", `${base}/volumes/${machine.data}`, { version: 13 });
  expect(body.volume.group_id).toBeNull();
  await ask("deleting what has snapshots in a group", "DELETE", `${base}/volumes/${machine.data}?cascade=true`, {
    version,
  });
  check();
});
