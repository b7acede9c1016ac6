import { expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import { setStatus, startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;
const unknown = "11111111-2222-4333-8444-555555555555";

async function makeVolume(instance: Instance, name: string): Promise<string> {
  const { body } = await instance.request("POST", `${base}/volumes`, { volume: { size: 1, name } });
  await setStatus(instance, "volumes", body.volume.id, "available");
  return body.volume.id as string;
}

it("shows groups, their types and their snapshots as Cinder does, from each microversion on", {
  timeout: 180_000,
}, async () => {
  await using instance = await startApiOnly();
  const { ask, check } = openGolden(instance, "groups");
  const [first, second] = [await makeVolume(instance, "one"), await makeVolume(instance, "two")];
  const version = 71;

  for (const before of [10, 11]) await ask(`types at 3.${before}`, "GET", `${base}/group_types`, { version: before });
  const type = { group_type: { name: "kind", description: "of a test", group_specs: { a: "1" } } };
  const made = await ask("a new type", "POST", `${base}/group_types`, { version, body: type });
  expect(made.status).toBe(202);
  const kind = `${base}/group_types/${made.body.group_type.id}`;
  await ask("a type", "GET", kind, { version });
  await ask("a type of that name again", "POST", `${base}/group_types`, { version, body: type });
  await ask("a changed type", "PUT", kind, { version, body: { group_type: { description: "changed" } } });
  await ask("specs", "GET", `${kind}/group_specs`, { version });
  await ask("new specs", "POST", `${kind}/group_specs`, { version, body: { group_specs: { b: "2" } } });
  await ask("a spec", "GET", `${kind}/group_specs/b`, { version });
  await ask("a changed spec", "PUT", `${kind}/group_specs/b`, { version, body: { b: "3" } });
  await ask("another's key", "PUT", `${kind}/group_specs/b`, { version, body: { c: "3" } });
  await ask("a spec that goes", "DELETE", `${kind}/group_specs/b`, { version });
  await ask("a spec that is gone", "GET", `${kind}/group_specs/b`, { version });
  const [{ id: reserved }] = await instance.sql("SELECT id FROM group_types WHERE name = 'instance_group_type'");
  await ask("the type of instance groups stays", "DELETE", `${base}/group_types/${reserved}`, { version });

  const group = { name: "g", description: "d", group_type: "kind", volume_types: ["__DEFAULT__"] };
  const create = (name: string, change: object, at = version) =>
    ask(name, "POST", `${base}/groups`, { version: at, body: { group: { ...group, ...change } } });
  await create("a group before its microversion", {}, 12);
  await create("a group of an unknown type", { group_type: "none" });
  await create("a group for unknown volumes", { volume_types: ["none"] });
  await create("a group for no volumes", { volume_types: [] });
  const id = (await create("a new group", {})).body.group.id as string;
  const path = `${base}/groups/${id}`;
  const change = (name: string, fields: object) => ask(name, "PUT", path, { version, body: { group: fields } });
  await change("joining", { add_volumes: `${first},${second}` });
  await change("a volume that is not there", { add_volumes: unknown });
  await change("leaving what one is not in", { remove_volumes: unknown });
  await change("joining and leaving", { add_volumes: first, remove_volumes: first });
  await change("nothing", {});
  await change("another name", { name: "h" });
  for (const at of [12, 13, 14, 38, 58]) await ask(`a group at 3.${at}`, "GET", path, { version: at });
  await ask("with its volumes", "GET", `${path}?list_volume=True`, { version: 25 });
  await ask("groups", "GET", `${base}/groups`, { version });
  await ask("groups in detail", "GET", `${base}/groups/detail?limit=1`, { version });
  await ask("an unknown group", "GET", `${base}/groups/${unknown}`, { version });
  const from = (name: string, source: object, at = version) =>
    ask(name, "POST", `${base}/groups/action`, { version: at, body: { "create-from-src": source } });
  await from("a group of a group before its microversion", { source_group_id: id }, 13);
  const copy = (await from("a group of a group", { name: "copy", source_group_id: id })).body.group.id as string;
  await ask("a group that is being made", "GET", `${base}/groups/${copy}?list_volume=True`, { version });
  await ask("what is being made stays", "POST", `${base}/groups/${copy}/action`, { version, body: { delete: {} } });
  await ask("what is being made does not change", "PUT", `${base}/groups/${copy}`, {
    version,
    body: { group: { add_volumes: first } },
  });
  await from("a group of an unknown group", { source_group_id: unknown });
  await from("a group of an unknown group snapshot", { group_snapshot_id: unknown });
  await from("a group of nothing", {});
  await from("a group of two sources", { source_group_id: id, group_snapshot_id: unknown });
  const empty = (await create("an empty group", {})).body.group.id as string;
  await from("a group of an empty group", { source_group_id: empty });
  const startIn = (name: string, group_id: string) =>
    ask(name, "POST", `${base}/volumes`, {
      version,
      body: { volume: { size: 1, group_id, volume_type: "__DEFAULT__" } },
    });
  await ask("a volume of no type in a group", "POST", `${base}/volumes`, {
    version,
    body: { volume: { size: 1, group_id: empty } },
  });
  const started = await startIn("a volume in a group from the start", empty);
  await startIn("a volume in a group that is being made", copy);
  await startIn("a volume in an unknown group", unknown);
  await setStatus(instance, "volumes", started.body.volume.id, "available");
  await ask("a group in which a volume was made", "GET", `${base}/groups/${empty}?list_volume=True`, { version });
  const quota = (name: string) => ask(name, "GET", `${base}/os-quota-sets/${project}?usage=true`, { version });
  await quota("groups are counted");
  await ask("a quota of groups", "PUT", `${base}/os-quota-sets/${project}`, { body: { quota_set: { groups: 3 } } });
  await create("a group too many", {});
  await from("a group of a group too many", { source_group_id: id });
  await ask("a quota below what is there", "PUT", `${base}/os-quota-sets/${project}`, {
    body: { quota_set: { groups: 2 } },
  });

  const snapshots = `${base}/group_snapshots`;
  const wanted = { group_snapshot: { group_id: id, name: "s" } };
  await ask("a group snapshot before its microversion", "POST", snapshots, { version: 13, body: wanted });
  const taken = await ask("a new group snapshot", "POST", snapshots, { version, body: wanted });
  const snapshot = `${snapshots}/${taken.body.group_snapshot.id}`;
  await ask("another one meanwhile", "POST", snapshots, { version, body: wanted });
  for (const at of [13, 14, 58]) await ask(`a group snapshot at 3.${at}`, "GET", snapshot, { version: at });
  await ask("group snapshots", "GET", snapshots, { version });
  await ask("group snapshots in detail", "GET", `${snapshots}/detail?group_id=${id}`, { version });
  await ask("one that is being made stays", "DELETE", snapshot, { version });
  const reset = (status: string) => ({ version, body: { reset_status: { status } } });
  await ask("a status that is none", "POST", `${snapshot}/action`, reset("in-use"));
  await ask("cancelled by another status", "POST", `${snapshot}/action`, reset("error"));
  const [{ state }] = await instance.sql("SELECT state FROM operations WHERE kind = 'group-snapshot'");
  expect(state).toBe("cancelled");
  await ask("a group with a snapshot stays", "POST", `${path}/action`, { version, body: { delete: {} } });
  await ask("a group snapshot that goes", "DELETE", snapshot, { version });
  await instance.sql("DELETE FROM snapshots");
  await instance.sql("DELETE FROM group_snapshots");
  await instance.sql("UPDATE groups SET operation_id = NULL");
  await ask("what a volume was made in goes without it", "PUT", `${base}/groups/${empty}`, {
    version,
    body: { group: { remove_volumes: started.body.volume.id } },
  });
  await ask("the empty one goes", "POST", `${base}/groups/${empty}/action`, { version, body: { delete: {} } });
  await quota("what is gone is not counted");
  await instance.sql("UPDATE volumes SET group_id = NULL WHERE group_id = $1", [copy]);
  await instance.sql("DELETE FROM groups WHERE id = $1", [copy]);
  await change("all leave", { remove_volumes: `${first},${second}` });
  await ask("a status of a group", "POST", `${path}/action`, reset("error"));
  await ask("a type that groups have stays", "DELETE", kind, { version });
  await ask("a group goes", "POST", `${path}/action`, { version, body: { delete: { "delete-volumes": false } } });
  await ask("a type goes", "DELETE", kind, { version });
  check();
});

it("keeps a record of machines, whose groups follow what is attached to them", { timeout: 180_000 }, async () => {
  await using instance = await startApiOnly();
  const { ask, check } = openGolden(instance, "instances");
  const [boot, data] = [await makeVolume(instance, "boot"), await makeVolume(instance, "data")];
  const id = "aaaaaaaa-1111-4222-8333-444444444444";
  const create = (name: string, fields: object) => ask(name, "POST", "/ops/instances", { body: { instance: fields } });
  const made = await create("a machine that boots from a volume", {
    id,
    name: "vm",
    boot_volume_id: boot,
    configuration: { vcpus: 2, nics: [{ mac: "52:54:00:00:00:01" }] },
  });
  const group = made.body.instance.group_id as string;
  const path = `/ops/instances/${id}`;
  await create("the same again", { id, name: "vm" });
  await create("one that boots from nothing", { name: "diskless" });
  await create("one that boots from a disk of another", { name: "thief", boot_volume_id: boot });
  await create("one that boots from what is not there", { name: "v", boot_volume_id: unknown });
  await create("one without a name", {});
  await create("one in a state that is none", { name: "v", power_state: "on" });
  await create("one without a socket", { name: "v", driver: "qmp" });
  await ask("attached", "POST", `${path}/attach`, { body: { volume_id: data } });
  const members = await instance.sql("SELECT id FROM volumes WHERE group_id = $1", [group]);
  expect(members).toHaveLength(2);
  await ask("attached again", "POST", `${path}/attach`, { body: { volume_id: data } });
  await ask("what it boots from stays", "POST", `${path}/detach`, { body: { volume_id: boot } });
  await ask("detached", "POST", `${path}/detach`, { body: { volume_id: data } });
  expect(await instance.sql("SELECT id FROM volumes WHERE group_id = $1", [group])).toEqual([{ id: boot }]);
  await ask("a device that is taken", "POST", `${path}/attach`, { body: { volume_id: data, device: "/dev/vda" } });
  await ask("a device that is none", "POST", `${path}/attach`, { body: { volume_id: data, device: "C:" } });
  await instance.request("POST", `${base}/volumes/${data}/action`, {
    "os-attach": { instance_uuid: id, mountpoint: "/dev/vdc" },
  });
  await ask("attached by Cinder's API", "GET", path);
  expect(await instance.sql("SELECT id FROM volumes WHERE group_id = $1", [group])).toHaveLength(2);
  await ask("shut off", "PUT", path, { body: { instance: { power_state: "SHUTOFF", configuration: {} } } });
  await ask("booting from no disk of it", "PUT", path, { body: { instance: { boot_volume_id: unknown } } });
  await instance.request("DELETE", `${base}/instance-groups/${group}`);
  await ask("without its group", "GET", path);
  await ask("started again, with a new group", "PUT", path, { body: { instance: { power_state: "ACTIVE" } } });
  await ask("machines", "GET", "/ops/instances");
  await ask("deleted", "DELETE", path);
  await ask("gone", "GET", path);
  expect(await instance.sql("SELECT DISTINCT status, group_id FROM volumes")).toEqual([
    { status: "available", group_id: null },
  ]);
  await ask("no group snapshot", "GET", `/ops/group-snapshots/${unknown}`);
  check();
});
