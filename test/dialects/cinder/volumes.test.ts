import { expect, it } from "vitest";
import { finishBackup, setStatus, startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;
const server = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee";

it("answers every volume route as Cinder does, and records attachments", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "volumes");
  await golden.ask("empty list", "GET", `${base}/volumes`);
  const body = {
    volume: { size: "2", name: " v1 ", description: "d", metadata: { a: "b" }, availability_zone: "nova" },
  };
  const created = await golden.ask("create", "POST", `${base}/volumes`, { body });
  const id = created.body.volume.id as string;
  const old = {
    volume: { size: 1, display_name: "v2", display_description: "d2", volume_type: "__DEFAULT__", "'backup_id": "x" },
  };
  await golden.ask("create with old names and a key nobody knows", "POST", `${base}/volumes`, { body: old });
  await golden.ask("create at the newest version", "POST", "/v3/volumes", {
    body: { volume: { size: 1 } },
    version: 71,
  });
  for (const version of [0, 12, 13, 21, 48, 61, 63, 65, 71]) {
    await golden.ask(`show at 3.${version}`, "GET", `${base}/volumes/${id}`, { version });
  }
  await golden.ask("show what is no id", "GET", `${base}/volumes/nope`);
  await golden.ask("list", "GET", `${base}/volumes`);
  await golden.ask("list in detail", "GET", `${base}/volumes/detail?limit=1`);
  await golden.ask("list after a marker", "GET", `${base}/volumes?limit=1&sort=size:asc&marker=${id}`);
  await golden.ask("list with a count", "GET", `${base}/volumes?with_count=1&limit=1`, { version: 45 });
  await golden.ask("list of a name", "GET", `${base}/volumes?name=v1`);
  await golden.ask("list of a size", "GET", `${base}/volumes?size=2`);
  await golden.ask("list of a size that is a word", "GET", `${base}/volumes?size=two`);
  await golden.ask("list of what boots", "GET", `${base}/volumes?bootable=true`);
  await golden.ask("list of what boots perhaps", "GET", `${base}/volumes?bootable=perhaps`);
  await golden.ask("list of a status", "GET", `${base}/volumes?status=error`);
  await golden.ask("list of all projects", "GET", `${base}/volumes?all_tenants=1&name=v2`);

  const act = (name: string, action: object) =>
    golden.ask(name, "POST", `${base}/volumes/${id}/action`, { body: action });
  const attach = { instance_uuid: server, mountpoint: "/dev/vdb", mode: "rw" };
  await act("attach while creating", { "os-attach": attach });
  await act("extend while creating", { "os-extend": { new_size: 3 } });
  await act("make read-only while creating", { "os-update_readonly_flag": { readonly: true } });
  await setStatus(instance, "volumes", id, "available");
  await act("attach to nothing", { "os-attach": { mountpoint: "/dev/vdb" } });
  await act("attach without a place", { "os-attach": { instance_uuid: server } });
  await act("attach in a mode nobody knows", { "os-attach": { ...attach, mode: "rx" } });
  await act("attach", { "os-attach": attach });
  const shown = await golden.ask("show in use", "GET", `${base}/volumes/${id}`);
  await act("attach again", { "os-attach": attach });
  await golden.ask("delete in use", "DELETE", `${base}/volumes/${id}`);
  await act("detach another", { "os-detach": { attachment_id: server } });
  await act("detach", { "os-detach": { attachment_id: shown.body.volume.attachments[0].attachment_id } });
  await act("detach what is not attached", { "os-detach": null });
  await act("reserve", { "os-reserve": null });
  await act("reserve again", { "os-reserve": {} });
  await act("unreserve", { "os-unreserve": {} });
  await act("unreserve what is not reserved", { "os-unreserve": {} });
  await act("begin detaching what is not attached", { "os-begin_detaching": {} });
  await act("make read-only", { "os-update_readonly_flag": { readonly: "yes" } });
  await act("attach a read-only one for writing", { "os-attach": attach });
  await act("make writable", { "os-update_readonly_flag": { readonly: false } });
  await act("make read-only, perhaps", { "os-update_readonly_flag": { readonly: "maybe" } });
  await act("make read-only, without a word", { "os-update_readonly_flag": {} });
  await act("attach to a host", { "os-attach": { host_name: "h1", mountpoint: "/dev/vdc" } });
  await act("begin detaching", { "os-begin_detaching": {} });
  await golden.ask("show while detaching", "GET", `${base}/volumes/${id}`);
  await act("roll detaching back", { "os-roll_detaching": {} });
  await act("detach the only one", { "os-detach": {} });
  await golden.ask("show after it all", "GET", `${base}/volumes/${id}`);
  await act("unknown action", { zap: {} });
  await act("two actions", { "os-attach": attach, "os-detach": {} });
  await act("no action", {});
  await golden.ask("attach what is no id", "POST", `${base}/volumes/nope/action`, { body: { "os-attach": attach } });
  await act("make bootable", { "os-set_bootable": { bootable: "true" } });
  await act("make bootable, perhaps", { "os-set_bootable": { bootable: 2 } });
  await act("extend to what it is", { "os-extend": { new_size: 2 } });
  await act("extend to nothing", { "os-extend": { new_size: 0 } });
  await act("extend to a word", { "os-extend": { new_size: "two" } });
  await act("extend beyond all numbers", { "os-extend": { new_size: "2147483648" } });
  await act("reset to a word", { "os-reset_status": { status: "zap" } });
  await act("reset to nothing", { "os-reset_status": {} });
  await act("reset to an attachment nobody knows", { "os-reset_status": { attach_status: "Half" } });
  await act("reset to in use without an attachment", { "os-reset_status": { status: "in-use" } });
  await act("reset to deleting", { "os-reset_status": { status: "deleting" } });
  await act("reset", { "os-reset_status": { status: "ERROR", attach_status: "detached", migration_status: "none" } });
  await golden.ask("show after a reset", "GET", `${base}/volumes/${id}`);
  await act("reset back", { "os-reset_status": { status: "available" } });
  await golden.ask("delete", "DELETE", `${base}/volumes/${id}`);
  await golden.ask("delete again", "DELETE", `${base}/volumes/${id}`);
  await golden.ask("delete what is no id", "DELETE", `${base}/volumes/nope`);
  await golden.ask("delete in cascade, perhaps", "DELETE", `${base}/volumes/${id}?cascade=maybe`);
  expect(await instance.sql("SELECT count(*)::int AS n FROM attachments")).toEqual([{ n: 0 }]);
  golden.check();
});

it("answers changes, metadata and sources of volumes as Cinder does", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "volume-changes");
  const create = (name: string, volume: object, version?: number) =>
    golden.ask(name, "POST", `${base}/volumes`, { body: { volume }, ...(version !== undefined && { version }) });
  const first = await create("create", { size: 2, name: "v1", metadata: { a: "b" } });
  const id = first.body.volume.id as string;
  await setStatus(instance, "volumes", id, "available");

  const long = "n".repeat(256);
  await create("create with a long name", { size: 1, name: long });
  await create("create with a long description", { size: 1, display_description: long });
  await create("create without a size", { name: "v" });
  for (const size of [0, -1, "0", "two", 1.5, true, 2_147_483_648, 8_388_608]) {
    await create(`create of size ${JSON.stringify(size)}`, { size });
  }
  await create("create in an empty zone", { size: 1, availability_zone: "" });
  await create("create in a zone nobody knows", { size: 1, availability_zone: "moon" });
  await create("create of a type nobody knows", { size: 1, volume_type: "fast" });
  await create("create of many attachments", { size: 1, multiattach: true });
  await create("create of an image", { size: 1, imageRef: server });
  await create("create in a group", { size: 1, consistencygroup_id: server });
  await create("create of a snapshot nobody knows", { snapshot_id: server });
  await create("create of a volume nobody knows", { source_volid: server });
  await create("create of a backup nobody knows", { backup_id: server }, 47);
  await create("create of a backup, older", { size: 1, backup_id: server }, 46);
  await create("create with a key nobody knows, newer", { size: 1, "'backup_id": server }, 53);

  await create("create of a volume, smaller", { source_volid: id, size: 1 });
  await create("create of a volume", { source_volid: id, name: "copy" });
  await create("create of a volume, larger", { source_volid: id, size: 3 });
  const body = { snapshot: { volume_id: id, name: "s" } };
  const snapshot = (await instance.request("POST", `${base}/snapshots`, body)).body.snapshot.id as string;
  await create("create of a snapshot in the making", { snapshot_id: snapshot });
  await setStatus(instance, "snapshots", snapshot, "available");
  await create("create of a snapshot, smaller", { snapshot_id: snapshot, size: "1" });
  const copy = await create("create of a snapshot", { snapshot_id: snapshot });
  await golden.ask("show a copy", "GET", `${base}/volumes/${copy.body.volume.id}`);

  const sent = { backup: { volume_id: id } };
  const backup = (await instance.request("POST", `${base}/backups`, sent)).body.backup.id as string;
  await create("create of a volume that is backed up", { source_volid: id });
  await create("create of a backup in the making", { backup_id: backup }, 47);
  await finishBackup(instance, backup);
  await create("create of a backup, smaller", { backup_id: backup, size: 1 }, 47);
  const filled = await create("create of a backup", { backup_id: backup, size: 3, name: "filled" }, 47);
  await golden.ask("show the backup", "GET", `${base}/backups/${backup}`);
  await golden.ask("show what it fills", "GET", `${base}/volumes/${filled.body.volume.id}`);
  await create("create of a backup that is being restored", { backup_id: backup }, 47);

  const change = (name: string, volume: object, version?: number) =>
    golden.ask(name, "PUT", `${base}/volumes/${id}`, { body: { volume }, ...(version !== undefined && { version }) });
  await change("change", { name: " new ", description: null, metadata: { c: "d" } });
  await change("change by old names", { display_name: "older", display_description: "d" });
  await change("change nothing", {});
  await change("change nothing, newer", {}, 53);
  await change("change to a long name", { name: long });
  await change("change what cannot be", { size: 3 });
  await change("change metadata to null", { metadata: null });
  await golden.ask("change what is no id", "PUT", `${base}/volumes/nope`, { body: { volume: { name: "x" } } });
  await golden.ask("show after changes", "GET", `${base}/volumes/${id}`);

  const metadata = `${base}/volumes/${id}/metadata`;
  const meta = (name: string, method: string, path: string, sentBody?: unknown) =>
    golden.ask(name, method, path, sentBody === undefined ? {} : { body: sentBody });
  await meta("metadata", "GET", metadata);
  await meta("add metadata", "POST", metadata, { metadata: { e: "f", g: "h" } });
  await meta("replace metadata", "PUT", metadata, { metadata: { i: "j", k: "l" } });
  await meta("replace metadata by nothing sensible", "PUT", metadata, { metadata: null });
  await meta("add metadata with a bad key", "POST", metadata, { metadata: { "": "x" } });
  await meta("metadata of a key", "GET", `${metadata}/i`);
  await meta("metadata of no key", "GET", `${metadata}/zap`);
  await meta("set a key", "PUT", `${metadata}/i`, { meta: { i: "m" } });
  await meta("set another key", "PUT", `${metadata}/i`, { meta: { k: "m" } });
  await meta("set no key", "PUT", `${metadata}/i`, { meta: {} });
  await meta("set two keys", "PUT", `${metadata}/i`, { meta: { i: "1", k: "2" } });
  await meta("remove a key", "DELETE", `${metadata}/i`);
  await meta("remove a key again", "DELETE", `${metadata}/i`);
  await meta("metadata of what is no id", "GET", `${base}/volumes/nope/metadata`);

  const list = (name: string, query: string, version = 0) =>
    golden.ask(name, "GET", `${base}/volumes?${query}`, { version });
  await list("list by metadata", "metadata={'k': 'l'}");
  await list("list by metadata that nobody has", 'metadata={"k": "x"}');
  await list("list by metadata that is none", "metadata=k");
  await list("list by part of a name", "name~=ill", 34);
  await list("list of what boots, older", "bootable=perhaps");
  await list("list of what boots perhaps", "bootable=perhaps", 2);
  await list("list by time, older", "created_at=zap:2026-01-01T00:00:00");
  await list("list by time", "created_at=gt:2026-01-01T00:00:00,lt:2026-01-02T00:00:00", 60);
  await list("list by a time that is none", "created_at=gt:yesterday", 60);
  await list("list by an operator that is none", "updated_at=zap:2026-01-01T00:00:00", 60);
  await list("list of a group", "group_id=x", 10);
  await list("list of what uses no quota", "consumes_quota=false", 65);
  await list("list of what comes from a snapshot", `snapshot_id=${snapshot}`);
  await golden.ask("summary, older", "GET", `${base}/volumes/summary`);
  await golden.ask("summary", "GET", `${base}/volumes/summary`, { version: 12 });
  await golden.ask("summary with metadata", "GET", `${base}/volumes/summary`, { version: 36 });

  await golden.ask("types", "GET", `${base}/types`);
  const types = await golden.ask("the default type", "GET", `${base}/types/default`);
  await golden.ask("a type", "GET", `${base}/types/${types.body.volume_type.id}`);
  await golden.ask("a type's extra specs", "GET", `${base}/types/${types.body.volume_type.id}/extra_specs`);
  await golden.ask("a type nobody knows", "GET", `${base}/types/nope`);

  const remove = (name: string, query: string, version: number) =>
    golden.ask(name, "DELETE", `${base}/volumes/${id}${query}`, { version });
  await remove("delete with snapshots", "", 0);
  await setStatus(instance, "snapshots", snapshot, "backing-up");
  await remove("delete in cascade with a busy snapshot", "?cascade=true", 0);
  await remove("delete by force with snapshots", "?force=true", 23);
  await setStatus(instance, "snapshots", snapshot, "available");
  await remove("delete in cascade", "?cascade=true", 0);
  await golden.ask("show its snapshot", "GET", `${base}/snapshots/${snapshot}`);
  golden.check();
});

it("refuses what a project's quota has no room for, in the words of each resource", async () => {
  await using instance = await startApiOnly({ config: { quotas: { volumes: 1, gigabytes: 2, snapshots: 0 } } });
  const post = (path: string, body: object) => instance.request("POST", `${base}${path}`, body);
  const text = async (path: string, body: object) => {
    const reply = await post(path, body);
    expect(reply.status).toBe(413);
    expect(reply.headers.get("retry-after")).toBe("0");
    return reply.body.overLimit.message as string;
  };
  const gigabytes = "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota.";
  expect(await text("/volumes", { volume: { size: 3 } })).toBe(
    `${gigabytes} Requested 3G, quota is 2G and 0G has been consumed.`,
  );
  const id = (await post("/volumes", { volume: { size: 1 } })).body.volume.id as string;
  expect(await text("/volumes", { volume: { size: 1 } })).toBe(
    "VolumeLimitExceeded: Maximum number of volumes allowed (1) exceeded for quota 'volumes'.",
  );
  await setStatus(instance, "volumes", id, "available");
  expect(await text("/snapshots", { snapshot: { volume_id: id } })).toBe(
    "SnapshotLimitExceeded: Maximum number of snapshots allowed (0) exceeded",
  );
  expect(await text(`/volumes/${id}/action`, { "os-extend": { new_size: 3 } })).toBe(
    `${gigabytes} Requested 2G, quota is 2G and 1G has been consumed.`,
  );
});
