import { createHash } from "node:crypto";
import { expect, it } from "vitest";
import { fingerprint, finishBackup, setStatus, startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";

const a = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const b = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const ops = "cccccccccccccccccccccccccccccccc";

const token = (name: string, projectId: string, role: string) => ({
  sha256: createHash("sha256").update(name).digest("hex"),
  user_id: `user-${name}`,
  project_id: projectId,
  roles: [role],
});

const config = {
  auth: {
    mode: "static",
    tokens: [
      token("reader-a", a, "reader"),
      token("member-a", a, "member"),
      token("member-b", b, "member"),
      token("admin", ops, "admin"),
    ],
  },
};

const as = (name: string): Record<string, string> => ({ "x-auth-token": name });

it("lets a token do what its role allows, in its own project", async () => {
  await using instance = await startApiOnly({ config });
  const golden = openGolden(instance, "tenants");
  const member = (method: string, path: string, body?: unknown) =>
    instance.request(method, `/v3/${a}${path}`, body, as("member-a"));
  const volume = (await member("POST", "/volumes", { volume: { size: 1, name: "va" } })).body.volume.id as string;
  await setStatus(instance, "volumes", volume, "available");
  const backup = (await member("POST", "/backups", { backup: { volume_id: volume, name: "ba" } })).body.backup
    .id as string;
  await finishBackup(instance, backup);
  const snapshot = (await member("POST", "/snapshots", { snapshot: { volume_id: volume } })).body.snapshot.id as string;
  await setStatus(instance, "snapshots", snapshot, "available");
  const before = await fingerprint(instance);

  const ask = (name: string, who: string | null, method: string, path: string, body?: unknown, version?: number) =>
    golden.ask(name, method, path, {
      headers: who === null ? {} : as(who),
      ...(body !== undefined && { body }),
      ...(version !== undefined && { version }),
    });
  await ask("no token", null, "GET", `/v3/${a}/backups`);
  await ask("empty token", "", "GET", `/v3/${a}/backups`);
  await ask("unknown token", "nobody", "POST", `/v3/${a}/backups`, { backup: { volume_id: volume } });
  await ask("no token, unknown route", null, "GET", `/v3/${a}/nope`);
  await ask("no token, no version asked", null, "GET", "/v3/");
  await ask("no token for operations", null, "GET", "/ops/operations");

  for (const resource of ["backups", "volumes", "snapshots"]) {
    await ask(`reader lists ${resource}`, "reader-a", "GET", `/v3/${a}/${resource}/detail`, undefined, 71);
    await ask(`stranger lists ${resource}`, "member-b", "GET", `/v3/${b}/${resource}?all_tenants=1`);
    await ask(
      `stranger's all_tenants is not even read for ${resource}`,
      "member-b",
      "GET",
      `/v3/${b}/${resource}?all_tenants=maybe`,
    );
    await ask(`admin lists ${resource}`, "admin", "GET", `/v3/${ops}/${resource}`);
    await ask(
      `admin lists all ${resource}`,
      "admin",
      "GET",
      `/v3/${ops}/${resource}/detail?all_tenants=1`,
      undefined,
      71,
    );
    await ask(`admin lists ${resource} of one`, "admin", "GET", `/v3/${ops}/${resource}?all_tenants=1&project_id=${b}`);
  }
  for (const [resource, id] of [
    ["backups", backup],
    ["volumes", volume],
    ["snapshots", snapshot],
  ] as const) {
    await ask(`reader shows ${resource}`, "reader-a", "GET", `/v3/${a}/${resource}/${id}`, undefined, 71);
    await ask(`stranger shows ${resource}`, "member-b", "GET", `/v3/${b}/${resource}/${id}`);
    await ask(`stranger deletes ${resource}`, "member-b", "DELETE", `/v3/${b}/${resource}/${id}`);
    await ask(`stranger pages after ${resource}`, "member-b", "GET", `/v3/${b}/${resource}?marker=${id}`);
    await ask(`reader deletes ${resource}`, "reader-a", "DELETE", `/v3/${a}/${resource}/${id}`);
    await ask(`reader deletes unknown ${resource}`, "reader-a", "DELETE", `/v3/${a}/${resource}/nope`);
    await ask(`admin shows ${resource}`, "admin", "GET", `/v3/${ops}/${resource}/${id}`, undefined, 71);
  }
  await ask("reader in another project", "reader-a", "GET", `/v3/${b}/backups`);
  await ask("admin in another project", "admin", "GET", `/v3/${a}/backups`);
  await ask("reader creates a backup", "reader-a", "POST", `/v3/${a}/backups`, { backup: { volume_id: volume } });
  const missing = { backup: { volume_id: "11111111222233334444555555555555" } };
  await ask("reader backs up an unknown volume", "reader-a", "POST", `/v3/${a}/backups`, missing);
  await ask("reader with a bad body", "reader-a", "POST", `/v3/${a}/backups`, { backup: {} });
  await ask("reader restores", "reader-a", "POST", `/v3/${a}/backups/${backup}/restore`, { restore: {} });
  await ask("reader creates a volume", "reader-a", "POST", `/v3/${a}/volumes`, { volume: { size: 1 } });
  await ask("reader creates a snapshot", "reader-a", "POST", `/v3/${a}/snapshots`, { snapshot: { volume_id: volume } });
  const attach = { "os-attach": { instance_uuid: volume, mountpoint: "/dev/vdb" } };
  await ask("reader attaches", "reader-a", "POST", `/v3/${a}/volumes/${volume}/action`, attach);
  await ask("stranger attaches", "member-b", "POST", `/v3/${b}/volumes/${volume}/action`, attach);
  await ask("stranger backs up", "member-b", "POST", `/v3/${b}/backups`, { backup: { volume_id: volume } });
  const foreign = { backup: { volume_id: volume, snapshot_id: snapshot } };
  await ask("stranger backs up a snapshot", "member-b", "POST", `/v3/${b}/backups`, foreign);
  await ask("stranger snapshots", "member-b", "POST", `/v3/${b}/snapshots`, { snapshot: { volume_id: volume } });
  await ask("stranger restores", "member-b", "POST", `/v3/${b}/backups/${backup}/restore`, { restore: {} });
  await ask("unknown filter, older", "reader-a", "GET", `/v3/${a}/backups?colour=red`, undefined, 30);
  await ask("unknown filters, newer", "reader-a", "GET", `/v3/${a}/backups?colour=red&amount=1`, undefined, 31);
  await ask("an admin's filter", "reader-a", "GET", `/v3/${a}/backups?parent_id=${backup}`, undefined, 31);
  await ask("member sees its quota", "member-a", "GET", `/v3/${a}/os-quota-sets/${a}?usage=true`);
  await ask("member sees another's quota", "member-a", "GET", `/v3/${a}/os-quota-sets/${b}`);
  await ask("member sets its quota", "member-a", "PUT", `/v3/${a}/os-quota-sets/${a}`, { quota_set: { volumes: -1 } });
  await ask("member imports", "member-a", "POST", "/ops/volumes/import", { path: "/etc/passwd" });
  for (const id of [volume, missing.backup.volume_id]) {
    const reply = await instance.request("POST", "/ops/volumes/import", { id }, as("member-b"));
    expect([reply.status, Object.keys(reply.body)]).toEqual([403, ["forbidden"]]);
  }
  const taken = await instance.request("POST", "/ops/volumes/import", { id: volume, project_id: b }, as("admin"));
  expect([taken.status, taken.text.includes(a)]).toEqual([409, false]);
  await ask("member exports", "member-a", "POST", `/ops/volumes/${volume}/export`, { path: "/etc/passwd" });
  await ask("stranger looks at a volume's bytes", "member-b", "GET", `/ops/volumes/${volume}`);
  await ask("stranger lists operations", "member-b", "GET", `/ops/operations?volume_id=${volume}`);
  const { body } = await instance.request("GET", `/ops/operations?backup_id=${backup}`, undefined, as("reader-a"));
  await ask("stranger shows an operation", "member-b", "GET", `/ops/operations/${body.operations[0].id}`);
  await ask("member looks at the queues", "member-a", "GET", "/ops/queues");
  expect(await fingerprint(instance)).toEqual(before);
  await ask("admin sets a quota", "admin", "PUT", `/v3/${ops}/os-quota-sets/${a}`, { quota_set: { backups: 2 } });
  golden.check();
});

it("charges an import to the project that it is for, and never writes a token to its log", async () => {
  await using instance = await startApiOnly({ config });
  const path = `${instance.dataDir}/image.raw`;
  const body = { path, name: "image", project_id: b };
  const reply = await instance.request("POST", "/ops/volumes/import", body, as("admin"));
  expect(reply.status).toBe(202);
  const rows = await instance.sql(
    "SELECT v.project_id, o.project_id AS op, o.request_id, q.volumes_used FROM volumes v, operations o, quotas q",
  );
  const requestId = reply.headers.get("x-openstack-request-id");
  expect(rows).toEqual([{ project_id: b, op: b, request_id: requestId, volumes_used: 1 }]);
  await instance.request("GET", `/v3/${a}/backups`, undefined, as("member-a"));
  await expect.poll(instance.logs).toContain(requestId);
  for (const name of ['admin"', 'member-a"']) expect(instance.logs()).not.toContain(name);
});
