import { expect, it } from "vitest";
import { startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;
const services = `${base}/os-services`;

it("lists services, and switches them off and on", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "services");
  await instance.sql(
    `INSERT INTO workers (id, host, pid, queue, reaches, slots, heartbeat_at)
     VALUES ('late', 'there', 2, 'tephra-late', '{repository:main}', 1, now() - interval '10 minutes')`,
  );
  const list = (name: string, query = "", version?: number) =>
    golden.ask(name, "GET", `${services}${query}`, version === undefined ? {} : { version });
  const put = (name: string, action: string, body?: unknown) =>
    golden.ask(name, "PUT", `${services}/${action}`, body === undefined ? {} : { body });
  await list("all");
  await list("with clusters", "", 7);
  await list("with states of backends", "", 49);
  await list("one binary", "?binary=cinder-backup");
  await list("one host", "?host=here");
  await list("one backend", "?host=here@files");
  await list("a binary that is not here", "?binary=cinder-scheduler");
  await list("both", "?binary=cinder-backup&host=there");

  const backup = { binary: "cinder-backup", host: "here" };
  await put("disable", "disable", backup);
  await list("disabled", "?binary=cinder-backup&host=here");
  await put("disable with a reason", "disable-log-reason", { ...backup, disabled_reason: "new disks" });
  await put("disable by the old name", "disable", { service: "cinder-backup", host: "here" });
  await list("disabled with a reason", "?binary=cinder-backup&host=here");
  await put("disable a backend", "disable", { binary: "cinder-volume", host: "here@files" });
  await golden.ask("zones without a backend", "GET", `${base}/os-availability-zone`);
  await put("enable", "enable", backup);
  await put("enable a backend", "enable", { binary: "cinder-volume", host: "here@files" });
  await list("enabled", "?host=here");
  await golden.ask("zones", "GET", `${base}/os-availability-zone`);

  await put("unknown action", "explode", backup);
  await put("no body", "enable");
  await put("nothing named", "enable", { host: "here" });
  await put("no host", "enable", { binary: "cinder-backup" });
  await put("host null", "enable", { binary: "cinder-backup", host: null });
  await put("empty host", "enable", { binary: "cinder-backup", host: "" });
  await put("impossible host", "enable", { binary: "cinder-backup", host: "a b" });
  await put("empty binary", "enable", { binary: "", host: "here" });
  await put("binary of another type", "enable", { binary: 7, host: "here" });
  await put("long binary", "enable", { binary: "b".repeat(256), host: "here" });
  await put("unknown host", "enable", { binary: "cinder-backup", host: "nowhere" });
  await put("unknown binary", "enable", { binary: "cinder-scheduler", host: "here" });
  await put("a reason where none belongs", "disable", { ...backup, disabled_reason: "why" });
  await put("empty reason", "disable-log-reason", { ...backup, disabled_reason: "" });
  await put("long reason", "disable-log-reason", { ...backup, disabled_reason: "r".repeat(256) });
  expect(await instance.sql("SELECT * FROM disabled_services")).toEqual([]);
  golden.check();
});

it("shows limits, classes of quotas, extensions and filters", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "limits");
  const ask = (name: string, path: string, version?: number) =>
    golden.ask(name, "GET", `${base}${path}`, version === undefined ? {} : { version });
  await golden.ask("a volume", "POST", `${base}/volumes`, { body: { volume: { size: 3 } } });
  await ask("limits", "/limits");
  await ask("limits of another before 3.39", "/limits?project_id=abc", 38);
  await ask("limits of another", "/limits?project_id=abc", 39);
  await ask("limits of another by the old name", "/limits?tenant_id=abc", 71);

  const put = (name: string, path: string, body: unknown) => golden.ask(name, "PUT", `${base}${path}`, { body });
  await ask("a class that nobody made", "/os-quota-class-sets/gold");
  await put("change a class", "/os-quota-class-sets/default", {
    quota_class_set: { volumes: 2, backups: "7", groups: 11, volumes___DEFAULT__: 5 },
  });
  await ask("the class that was changed", "/os-quota-class-sets/default");
  await ask("defaults of a project", "/os-quota-sets/abc/defaults");
  await ask("quotas of a project without its own", "/os-quota-sets/abc");
  await ask("limits follow the class", "/limits");
  await golden.ask("one more within", "POST", `${base}/volumes`, { body: { volume: { size: 1 } } });
  await golden.ask("one more beyond the class", "POST", `${base}/volumes`, { body: { volume: { size: 1 } } });
  await put("own limits above the class", `/os-quota-sets/${project}`, {
    quota_set: { volumes: 9, volumes___DEFAULT__: 2, groups: 3, tenant_id: "x", id: "y" },
  });
  await golden.ask("beyond the type", "POST", `${base}/volumes`, { body: { volume: { size: 1 } } });
  await put("gigabytes of the type", `/os-quota-sets/${project}`, {
    quota_set: { volumes___DEFAULT__: -1, gigabytes___DEFAULT__: 4 },
  });
  await golden.ask("beyond the gigabytes of the type", "POST", `${base}/volumes`, { body: { volume: { size: 1 } } });
  await put("below what is used of the type", `/os-quota-sets/${project}`, { quota_set: { gigabytes___DEFAULT__: 3 } });
  await put("size of one volume", `/os-quota-sets/${project}`, {
    quota_set: { gigabytes___DEFAULT__: -1, per_volume_gigabytes: 1 },
  });
  await golden.ask("a volume that is too large by itself", "POST", `${base}/volumes`, {
    body: { volume: { size: 2 } },
  });
  await ask("usage", `/os-quota-sets/${project}?usage=true&user_id=somebody`);
  await ask("usage that is no boolean", `/os-quota-sets/${project}?usage=maybe`);
  const removed = await golden.ask("forget own limits", "DELETE", `${base}/os-quota-sets/${project}`);
  expect(removed.text).toBe("");
  await ask("after that", `/os-quota-sets/${project}?usage=true`);
  for (const [name, set] of Object.entries({
    "a key nobody knows": { cheese: 1 },
    "a word": { volumes: "many" },
    "a negative number": { volumes: -2 },
    "a negative text": { volumes: "-1" },
    "a fraction": { volumes: 1.5 },
    "null in it": { volumes: null },
    "beyond every number": { volumes: 2147483648 },
    "an empty text": { volumes: "" },
    "no change": {},
    null: null,
  })) {
    await put(`class: ${name}`, "/os-quota-class-sets/default", { quota_class_set: set });
  }
  await put("class: no set", "/os-quota-class-sets/default", {});
  await put("quota: a wrong value before an unknown key", `/os-quota-sets/${project}`, {
    quota_set: { cheese: 1, volumes: "many" },
  });
  await put("quota: a long name", `/os-quota-sets/${"a".repeat(256)}`, { quota_set: { volumes: 1 } });

  await ask("extensions", "/extensions");
  await ask("an extension", "/extensions/backups");
  await ask("no extension", "/extensions/toString");
  await ask("filters before 3.33", "/resource_filters", 32);
  await ask("filters", "/resource_filters", 33);
  await ask("filters of backups", "/resource_filters?resource=backup", 71);
  await ask("filters of nothing", "/resource_filters?resource=", 71);
  await ask("filters of what nobody knows", "/resource_filters?resource=constructor", 71);
  golden.check();
});
