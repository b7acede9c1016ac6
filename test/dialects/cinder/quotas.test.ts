import { expect, it } from "vitest";
import { finishBackup, setStatus, startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;
const sets = `${base}/os-quota-sets`;

it("shows and changes quotas, and refuses in Cinder's words what they do not allow", async () => {
  await using instance = await startApiOnly();
  const golden = openGolden(instance, "quotas");
  const put = (name: string, quota: unknown) =>
    golden.ask(name, "PUT", `${sets}/${project}`, { body: { quota_set: quota } });
  await golden.ask("defaults", "GET", `${sets}/${project}`);
  await golden.ask("of another project", "GET", `${sets}/abc?usage=True`);
  await put("set", { volumes: 2, gigabytes: "3", snapshots: 1, backups: 1, backup_gigabytes: 2 });
  await put("set what nothing here has", { per_volume_gigabytes: -1, groups: 12 });
  await put("set a key nobody knows", { cheese: 5 });
  await put("set a word", { volumes: "many" });
  await put("set below no limit", { volumes: -2 });
  await put("set beyond every number", { volumes: 2147483648 });
  await put("set a fraction", { volumes: 1.5 });
  await put("set null", null);
  await put("set a list", []);
  const volume = await golden.ask("volume within", "POST", `${base}/volumes`, { body: { volume: { size: 1 } } });
  const id = volume.body.volume.id as string;
  await setStatus(instance, "volumes", id, "available");
  await golden.ask("volume too large", "POST", `${base}/volumes`, { body: { volume: { size: 3 } } });
  const snapshot = await golden.ask("snapshot within", "POST", `${base}/snapshots`, {
    body: { snapshot: { volume_id: id } },
  });
  expect(snapshot.status).toBe(202);
  await golden.ask("snapshots too many", "POST", `${base}/snapshots`, { body: { snapshot: { volume_id: id } } });
  const backup = await golden.ask("backup within", "POST", `${base}/backups`, { body: { backup: { volume_id: id } } });
  await finishBackup(instance, backup.body.backup.id);
  await golden.ask("backups too many", "POST", `${base}/backups`, { body: { backup: { volume_id: id } } });
  await put("set more backups, fewer gigabytes", { backups: 5, backup_gigabytes: 1 });
  await golden.ask("backup gigabytes too many", "POST", `${base}/backups`, { body: { backup: { volume_id: id } } });
  await put("set below what is used", { volumes: 0 });
  await golden.ask("usage", "GET", `${sets}/${project}?usage=True`);
  const restore = { body: { restore: {} } };
  await put("set volumes to what is used", { volumes: 1 });
  await golden.ask("restore too many", "POST", `${base}/backups/${backup.body.backup.id}/restore`, restore);
  await put("set gigabytes to what is used", { volumes: 5, gigabytes: 2 });
  await golden.ask("restore too large", "POST", `${base}/backups/${backup.body.backup.id}/restore`, restore);
  await put("set no limit", { volumes: -1, gigabytes: -1 });
  const accepted = await golden.ask(
    "restore without a limit",
    "POST",
    `${base}/backups/${backup.body.backup.id}/restore`,
    restore,
  );
  expect(accepted.status).toBe(202);
  golden.check();
});

it("never lets requests that come at once overrun a quota", async () => {
  await using instance = await startApiOnly();
  const quotaOf = async () => (await instance.request("GET", `${sets}/${project}?usage=true`)).body.quota_set;
  /** Leaves room for `fitting` requests, which need `each` of the resource, sends all at once, and expects that exactly so many are accepted. */
  const expectOnly = async (
    { resource, fitting, each = 1 }: { resource: string; fitting: number; each?: number },
    requests: readonly [path: string, body: object][],
  ) => {
    const before = (await quotaOf())[resource].in_use;
    const unlimited = { volumes: -1, snapshots: -1, gigabytes: -1, backups: -1, backup_gigabytes: -1 };
    const set = await instance.request("PUT", `${sets}/${project}`, {
      quota_set: { ...unlimited, [resource]: before + fitting * each },
    });
    expect(set.status, set.text).toBe(200);
    const replies = await Promise.all(requests.map(([path, body]) => instance.request("POST", base + path, body)));
    const count = (status: number) => replies.filter((reply) => reply.status === status).length;
    expect([count(202), count(413)], resource).toEqual([fitting, requests.length - fitting]);
    expect((await quotaOf())[resource].in_use, resource).toBe(before + fitting * each);
  };
  const many = <T>(count: number, make: (index: number) => T): T[] => Array.from({ length: count }, (_, i) => make(i));

  await expectOnly(
    { resource: "volumes", fitting: 5 },
    many(20, () => ["/volumes", { volume: { size: 1 } }]),
  );
  await expectOnly(
    { resource: "gigabytes", fitting: 3, each: 2 },
    many(12, () => ["/volumes", { volume: { size: 2 } }]),
  );
  await instance.sql("UPDATE volumes SET status = 'available'");
  const volumes = (await instance.sql("SELECT id FROM volumes")).map((row) => row.id as string);
  await expectOnly(
    { resource: "snapshots", fitting: 4 },
    many(12, () => ["/snapshots", { snapshot: { volume_id: volumes[0] } }]),
  );
  const backUpAll = volumes.map((id): [string, object] => ["/backups", { backup: { volume_id: id } }]);
  await expectOnly({ resource: "backups", fitting: 3 }, backUpAll);
  await instance.sql("UPDATE volumes SET status = 'available'");
  const small = (await instance.sql("SELECT id FROM volumes WHERE size_gib = 1")).map((row) => row.id as string);
  await expectOnly(
    { resource: "backup_gigabytes", fitting: 2 },
    small.map((id) => ["/backups", { backup: { volume_id: id } }]),
  );
  const [rows] = await instance.sql(
    "SELECT (SELECT count(*)::int FROM volumes) AS volumes, (SELECT count(*)::int FROM backups) AS backups",
  );
  expect(rows).toEqual({ volumes: 8, backups: 5 });
});
