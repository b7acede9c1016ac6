import { expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import { finishBackup, setStatus, startApiOnly } from "../api-only.ts";
import { type Golden, openGolden } from "../golden.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;

async function makeVolume(instance: Instance, size: number, name: string): Promise<string> {
  const reply = await instance.request("POST", `${base}/volumes`, { volume: { size, name } });
  const id = reply.body.volume.id as string;
  await setStatus(instance, "volumes", id, "available");
  return id;
}

async function makeBackups(instance: Instance, golden: Golden, volume: string) {
  const make = async (name: string, backup: object, version?: number): Promise<string> => {
    const options = { body: { backup: { volume_id: volume, ...backup } }, ...(version !== undefined && { version }) };
    const reply = await golden.ask(name, "POST", `${base}/backups`, options);
    expect(reply.status, name).toBe(202);
    return reply.body.backup.id;
  };
  const full = await make("create full", {
    name: "  full  ",
    description: " first ",
    container: null,
    snapshot_id: null,
  });
  await golden.ask("show while creating", "GET", `${base}/backups/${full}`);
  const listed = await instance.request("GET", `${base}/volumes/${volume}`);
  expect(listed.body.volume.status).toBe("backing-up");
  await finishBackup(instance, full);
  const metadata = await make("create with metadata", { container: "box/a", metadata: { k1: "v1", k2: "" } }, 43);
  await finishBackup(instance, metadata);
  const inc = await make("create incremental", { name: "inc", incremental: "true", force: "0", container: "" });
  await finishBackup(instance, inc);
  const zoned = await make("create in a zone", { name: "", availability_zone: "nova" }, 51);
  await finishBackup(instance, zoned);
  return { full, metadata, inc, zoned };
}

/** Follows the links of pages of one item each, as clients do. */
async function walk(instance: Instance, sort: string): Promise<string[]> {
  const ids: string[] = [];
  let path: string | undefined = `${base}/backups?limit=1&sort=${sort}`;
  while (path !== undefined) {
    const { body } = await instance.request("GET", path, undefined, { "openstack-api-version": "volume 3.71" });
    ids.push(...body.backups.map((b: { id: string }) => b.id));
    expect(ids.length).toBeLessThan(20);
    path = body.backups_links?.[0].href.slice(instance.url.length);
  }
  return ids;
}

async function askLists(
  golden: Golden,
  ids: { full: string; metadata: string; inc: string; volume: string },
): Promise<void> {
  const list = (name: string, query: string, version?: number) =>
    golden.ask(`list ${name}`, "GET", `${base}/backups${query}`, version === undefined ? {} : { version });
  await list("all", "");
  await list("in detail", "/detail");
  await list("in detail, newest version", "/detail", 71);
  await list("one", "?limit=1");
  await list("none", "?limit=0");
  await list("more than there may be", "?limit=99999999999999999999");
  await list("first of two limits", "?limit=1&limit=3");
  await list("one after an offset", "?limit=1&offset=1");
  await list("beyond the end", "?offset=1000");
  await list("after a marker", `?marker=${ids.inc}`);
  await list("one after a marker, oldest first", `/detail?marker=${ids.full}&limit=1&sort=created_at:asc`);
  await list("after a marker and an offset", `?marker=${ids.inc}&offset=1`);
  await list("by size, then time", "?sort=size:desc,created_at:asc");
  await list("by old sort keys", "?sort_key=created_at&sort_dir=asc");
  await list("by name", "?sort=name:asc", 37);
  await list("of a name", "?name=inc");
  await list("of a status in capitals", "?status=AVAILABLE");
  await list("of a status that no backup has", "?status=error_restoring");
  await list("of a volume", `?volume_id=${ids.volume}&status=available&name=inc`);
  await list("of what is no volume", "?volume_id=abc");
  await list("of a percent sign", "?name=%zz");
  await list("of a column nobody knows, as admin", "?colour=red");
  await list("with a count", "?with_count=true&limit=2", 45);
  await list("with a count before there was one", "?with_count=true");
  await list("of all projects", "?all_tenants=1&name=inc");
  await list("of one project among all", "?all_tenants=1&project_id=abc");
  await list("limit of a word", "?limit=x");
  await list("limit of nothing", "?limit=");
  await list("negative limit", "?limit=-1");
  await list("offset of a word", "?offset=abc");
  await list("negative offset", "?offset=-1");
  await list("huge offset", "?offset=2147483648");
  await list("unknown marker", "?marker=11111111-2222-3333-4444-555555555555");
  await list("marker that is no id", "?marker=x");
  await list("unknown sort key", "?sort=bogus");
  await list("empty sort key", "?sort=");
  await list("sort key from Object", "?sort=constructor");
  await list("sort by name too early", "?sort=name");
  await list("unknown direction", "?sort=id:sideways");
  await list("two ways to sort", "?sort=id&sort_dir=asc");
  await list("count of a word", "?with_count=maybe", 45);
  await list("all tenants of a word", "?all_tenants=perhaps");
  await list("of a name in capitals", "?name=INC");
  await list("of a name with a wildcard", "?name=in%25");
  await list("of a part of a name, as admin", "?name~=N", 34);
  await list("of a part of a name too early", "?name~=n", 33);
  await list("of a part of an id, as admin", "?volume_id~=-4", 34);
  await list("of a part of a size, as admin", "?size~=2", 34);
  await list("of a size and a parent, as admin", `?size=1&parent_id=${ids.metadata}`);
  await list("of a host, as admin", "?host=nowhere");
  await list("of a column that is the same for all, as admin", "?temp_volume_id=x");
  await list("by a column that is the same for all", "?sort=num_dependent_backups");
  await list("NUL in a filter", "?name=%00");
  await list("key beyond ASCII", "?n%C3%A4me=x");
}

async function askChanges(golden: Golden, id: string): Promise<void> {
  const path = `${base}/backups/${id}`;
  const update = (name: string, body: unknown, version = 71) =>
    golden.ask(`update ${name}`, "PUT", path, { body, version });
  await update("too early", { backup: { name: "x" } }, 8);
  await update("name and description", { backup: { name: " new ", description: " text " } }, 9);
  await update("metadata too early", { backup: { metadata: { a: "b" } } }, 42);
  await update("metadata, and nothing else", { backup: { metadata: { a: "b" } } }, 43);
  await golden.ask("show after updates", "GET", path, { version: 71 });
  await update("of null, as of nothing", { backup: null });
  await update("of bare fields, as gophercloud sends them", { name: "bare", metadata: {} });
  await update("to no name", { backup: { name: null } });
  await update("to an emoji", { backup: { description: "\u{1f600}" } });
  await update("metadata to null", { backup: { metadata: null } });
  await golden.ask("show after more updates", "GET", `${path}.json`, { version: 71 });
  await golden.ask("the form to edit", "GET", `${path}/edit`);
  await golden.ask("the form of a new one", "GET", `${base}/backups/new`);
  const act = (name: string, body: unknown, of = path) =>
    golden.ask(`action ${name}`, "POST", `${of}/action`, body === undefined ? {} : { body });
  const nobody = `${base}/backups/11111111-2222-3333-4444-555555555555`;
  await act("of nothing", undefined);
  await act("of two", { "os-reset_status": {}, "os-force_delete": {} });
  await act("reset to a status in capitals", { "os-reset_status": { status: "ERROR" } });
  await golden.ask("show after a reset", "GET", path);
  await act("reset back", { "os-reset_status": { status: "available" } });
  await act("reset to what is not allowed", { "os-reset_status": { status: "creating" } }, nobody);
  await act("reset to a number", { "os-reset_status": { status: 1 } });
  await act("reset of nobody", { "os-reset_status": { status: "error" } }, nobody);
  await act("force delete of a parent", { "os-force_delete": null });
  await act("force delete of nobody", { "os-force_delete": {} }, nobody);
}

it("answers every backup route as Cinder does", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "backups");
  const volume = await makeVolume(instance, 1, "vol");
  await golden.ask("empty list", "GET", `${base}/backups`);
  await golden.ask("empty list with a count", "GET", `${base}/backups?with_count=true`, { version: 45 });
  const ids = await makeBackups(instance, golden, volume);
  for (const version of [0, 17, 18, 42, 43, 55, 56, 63, 64, 71]) {
    await golden.ask(`show at 3.${version}`, "GET", `${base}/backups/${ids.metadata}`, { version });
  }
  await golden.ask("show a parent", "GET", `${base}/backups/${ids.metadata}`);
  await golden.ask("show an incremental", "GET", `/v3/backups/${ids.inc}`);
  await golden.ask("show what is no id", "GET", `${base}/backups/nope`);
  await golden.ask("show what is not there", "GET", `${base}/backups/11111111-2222-3333-4444-555555555555`);
  await askLists(golden, { ...ids, volume });

  const restore = (name: string, id: string, body: object) =>
    golden.ask(`restore ${name}`, "POST", `${base}/backups/${id}/restore`, { body: { restore: body } });
  await restore("to a new volume", ids.full, { volume_id: null, name: null });
  await golden.ask("show while restoring", "GET", `${base}/backups/${ids.full}`);
  await restore("to a new volume with a name", ids.inc, { name: "back" });
  await restore("to the volume it came from", ids.zoned, { volume_id: volume });
  await restore("while restoring", ids.full, {});
  for (const id of [ids.full, ids.inc, ids.zoned]) await setStatus(instance, "backups", id, "available");
  const anonymous = await golden.ask("restore null", "POST", `${base}/backups/${ids.full}/restore`, {
    body: { restore: null },
  });
  expect(anonymous.status).toBe(202);
  await setStatus(instance, "backups", ids.full, "error_restoring");
  await golden.ask("show a damaged backup", "GET", `${base}/backups/${ids.full}`);

  await askChanges(golden, ids.metadata);
  await golden.ask("delete a parent", "DELETE", `${base}/backups/${ids.metadata}`);
  await golden.ask("delete", "DELETE", `${base}/backups/${ids.inc}`);
  await golden.ask("delete again", "DELETE", `${base}/backups/${ids.inc}`);
  await golden.ask("delete a damaged one", "DELETE", `${base}/backups/${ids.full}`);
  await golden.ask("force delete", "POST", `${base}/backups/${ids.zoned}/action`, { body: { "os-force_delete": {} } });
  await golden.ask("show while deleting", "GET", `${base}/backups/${ids.zoned}`);
  await golden.ask("delete what is no id", "DELETE", `${base}/backups/nope`);
  golden.check();
});

it("visits every backup once, page by page, whatever it is sorted by and whether that is null", async () => {
  await using instance = await startApiOnly();
  const volume = await makeVolume(instance, 1, "vol");
  const bodies = [{ name: "b" }, { name: null }, { name: "a", container: "c" }, { name: null }, { name: "" }];
  const ids: string[] = [];
  for (const backup of bodies) {
    const reply = await instance.request("POST", `${base}/backups`, { backup: { volume_id: volume, ...backup } });
    ids.push(reply.body.backup.id);
    await finishBackup(instance, reply.body.backup.id);
  }
  await instance.sql("UPDATE backups SET container = NULL, updated_at = NULL WHERE id = ANY($1)", [ids.slice(0, 2)]);
  for (const key of [
    "name",
    "container",
    "updated_at",
    "status",
    "created_at",
    "parent_id",
    "id",
    "size",
    "snapshot_id",
  ]) {
    for (const direction of ["asc", "desc"]) {
      const walked = await walk(instance, `${key}:${direction}`);
      expect([key, direction, walked.toSorted()]).toEqual([key, direction, ids.toSorted()]);
    }
  }
  const byName = await walk(instance, "name:asc");
  expect(byName).toEqual([ids[1], ids[3], ids[4], ids[2], ids[0]]);
  // A marker that the filters leave out.
  await instance.sql("UPDATE backups SET status = 'error' WHERE id = $1", [ids[3]]);
  const after = await instance.request("GET", `${base}/backups?status=available&marker=${ids[3]}`);
  expect(after.body.backups.map(({ id }: { id: string }) => id)).toEqual([ids[2], ids[1], ids[0]]);
});
