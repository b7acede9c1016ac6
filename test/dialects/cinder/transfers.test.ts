import { createHash } from "node:crypto";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Instance, Reply } from "../../kit/instance.ts";
import { finishBackup, setStatus, startApiOnly } from "../api-only.ts";

const [a, b, ops] = ["a", "b", "c"].map((letter) => letter.repeat(32)) as [string, string, string];

const token = (name: string, projectId: string, role: string) => ({
  sha256: createHash("sha256").update(name).digest("hex"),
  user_id: `user-${name}`,
  project_id: projectId,
  roles: [role],
});

const config = {
  auth: {
    mode: "static",
    tokens: [token("giver", a, "member"), token("taker", b, "member"), token("admin", ops, "admin")],
  },
  quotas: { volumes: -1, snapshots: -1, gigabytes: -1 },
};
const projects: Record<string, string> = { giver: a, taker: b, admin: ops };

let instance: Instance;
beforeAll(async () => {
  instance = await startApiOnly({ config });
});
afterAll(() => instance[Symbol.asyncDispose]());

const ask = (who: string, method: string, path: string, body?: unknown, version = 71): Promise<Reply> =>
  instance.request(method, `/v3/${projects[who]}${path}`, body, {
    "x-auth-token": who,
    "openstack-api-version": `volume 3.${version}`,
  });

async function makeVolume(size = 1): Promise<string> {
  const { body } = await ask("giver", "POST", "/volumes", { volume: { size, name: "gift" } });
  await setStatus(instance, "volumes", body.volume.id, "available");
  return body.volume.id;
}

async function makeSnapshot(volume: string): Promise<string> {
  const { body } = await ask("giver", "POST", "/snapshots", { snapshot: { volume_id: volume, name: "s" } });
  await setStatus(instance, "snapshots", body.snapshot.id, "available");
  return body.snapshot.id;
}

const offer = async (volume: string, more: object = {}, path = "/volume-transfers") =>
  (await ask("giver", "POST", path, { transfer: { volume_id: volume, name: " for you ", ...more } })).body.transfer;

const used = async (project: string) => {
  const rows = await instance.sql(
    "SELECT volumes_used, gigabytes_used, snapshots_used FROM quotas WHERE project_id = $1",
    [project],
  );
  return rows[0] ?? { volumes_used: 0, gigabytes_used: 0, snapshots_used: 0 };
};

it("gives a volume with its snapshots to another project, quotas of both in the same moment", async () => {
  const volume = await makeVolume(2);
  const snapshot = await makeSnapshot(volume);
  const backup = (await ask("giver", "POST", "/backups", { backup: { volume_id: volume } })).body.backup.id;
  await finishBackup(instance, backup);
  const [givers, takers] = [await used(a), await used(b)];
  const transfer = await offer(volume);
  expect(transfer).toMatchObject({
    volume_id: volume,
    name: "for you",
    no_snapshots: false,
    source_project_id: a,
    destination_project_id: null,
    accepted: false,
  });
  expect(transfer.auth_key).toMatch(/^[0-9a-f]{32}$/);
  expect((await ask("giver", "GET", `/volumes/${volume}`)).body.volume.status).toBe("awaiting-transfer");
  // The key is nowhere but with the giver.
  const kept = await instance.sql("SELECT t::text AS row FROM transfers t");
  expect(JSON.stringify(kept)).not.toContain(transfer.auth_key);
  for (const path of ["/os-volume-transfer/detail", "/volume-transfers", `/os-volume-transfer/${transfer.id}`]) {
    const shown = await ask("giver", "GET", path);
    expect(shown.status).toBe(200);
    expect(shown.text).toContain(transfer.id);
    expect(shown.text).not.toContain(transfer.auth_key);
  }
  expect((await ask("taker", "GET", `/volume-transfers/${transfer.id}`)).status).toBe(404);
  expect((await ask("taker", "GET", "/volume-transfers/detail")).body.transfers).toEqual([]);

  const wrong = await ask("taker", "POST", `/volume-transfers/${transfer.id}/accept`, { accept: { auth_key: 12 } });
  expect(wrong.body.badRequest).toEqual({
    code: 400,
    message: `Invalid auth key: Attempt to transfer ${transfer.id} with invalid auth key.`,
  });
  const accept = { accept: { auth_key: transfer.auth_key } };
  const taken = await ask("taker", "POST", `/os-volume-transfer/${transfer.id}/accept`, accept);
  expect(taken.status).toBe(202);
  expect(taken.body.transfer).toMatchObject({ id: transfer.id, volume_id: volume, name: "for you" });
  expect((await ask("taker", "POST", `/os-volume-transfer/${transfer.id}/accept`, accept)).status).toBe(404);

  expect((await ask("giver", "GET", `/volumes/${volume}`)).status).toBe(404);
  expect((await ask("giver", "GET", `/snapshots/${snapshot}`)).status).toBe(404);
  expect((await ask("taker", "GET", `/volumes/${volume}`)).body.volume).toMatchObject({
    status: "available",
    user_id: "user-taker",
    "os-vol-tenant-attr:tenant_id": b,
  });
  expect((await ask("taker", "GET", `/snapshots/${snapshot}`)).status).toBe(200);
  const moved = { volumes_used: 1, gigabytes_used: 4, snapshots_used: 1 };
  const [giversNow, takersNow] = [await used(a), await used(b)];
  for (const [key, amount] of Object.entries(moved)) {
    expect(giversNow[key], key).toBe(givers[key] - amount);
    expect(takersNow[key], key).toBe(takers[key] + amount);
  }
  // The backup stays with who made it, and is nobody else's parent.
  expect((await ask("giver", "GET", `/backups/${backup}`)).status).toBe(200);
  const chained = await ask("taker", "POST", "/backups", { backup: { volume_id: volume, incremental: true } });
  expect(chained.status).toBe(400);
});

it("leaves the snapshots where they are when the giver says so, and then nobody deletes the volume over them", async () => {
  const volume = await makeVolume();
  const snapshot = await makeSnapshot(volume);
  const transfer = await offer(volume, { no_snapshots: true });
  expect(transfer.no_snapshots).toBe(true);
  await ask("taker", "POST", `/volume-transfers/${transfer.id}/accept`, { accept: { auth_key: transfer.auth_key } });
  expect((await ask("giver", "GET", `/snapshots/${snapshot}`)).status).toBe(200);
  expect((await ask("taker", "GET", `/snapshots/${snapshot}`)).status).toBe(404);
  expect((await ask("taker", "DELETE", `/volumes/${volume}?cascade=true`)).status).toBe(400);
});

it("changes nothing when the taker has no room, and says so", async () => {
  const volume = await makeVolume(3);
  const snapshot = await makeSnapshot(volume);
  const transfer = await offer(volume);
  const accept = { accept: { auth_key: transfer.auth_key } };
  const limits: [object, string][] = [
    [{ volumes: (await used(b)).volumes_used }, "VolumeLimitExceeded: Maximum number of volumes allowed"],
    [
      { volumes: -1, gigabytes: (await used(b)).gigabytes_used + 2 },
      "Requested volume or snapshot exceeds allowed gigabytes",
    ],
    [{ gigabytes: (await used(b)).gigabytes_used + 5 }, "Requested volume or snapshot exceeds allowed gigabytes"],
    [{ gigabytes: -1, per_volume_gigabytes: 2 }, "VolumeSizeExceedsLimit: Requested volume size 3G is larger"],
  ];
  const before = [await used(a), await used(b)];
  for (const [quota_set, message] of limits) {
    expect((await ask("admin", "PUT", `/os-quota-sets/${b}`, { quota_set })).status).toBe(200);
    const refused = await ask("taker", "POST", `/volume-transfers/${transfer.id}/accept`, accept);
    expect(refused.status).toBe(413);
    expect(refused.body.overLimit.message).toContain(message);
    expect([await used(a), await used(b)]).toEqual(before);
    expect((await ask("giver", "GET", `/volumes/${volume}`)).body.volume.status).toBe("awaiting-transfer");
    expect((await ask("giver", "GET", `/snapshots/${snapshot}`)).status).toBe(200);
  }
  await ask("admin", "DELETE", `/os-quota-sets/${b}`);
  expect((await ask("taker", "POST", `/volume-transfers/${transfer.id}/accept`, accept)).status).toBe(202);
});

it("refuses what cannot be given, and an offer can be withdrawn", async () => {
  const volume = await makeVolume();
  const snapshot = await makeSnapshot(volume);
  const transfer = { volume_id: volume, name: "x" };
  await setStatus(instance, "snapshots", snapshot, "error");
  const busy = await ask("giver", "POST", "/os-volume-transfer", { transfer }, 0);
  expect(busy.body.badRequest.message).toBe(`Invalid snapshot: snapshot: ${snapshot} status must be available`);
  await setStatus(instance, "snapshots", snapshot, "available");
  const cases: [unknown, number][] = [
    [{ transfer: { volume_id: "x" } }, 400],
    [{ transfer: { volume_id: volume, name: "" } }, 400],
    [{ transfer: { volume_id: volume, name: "  " } }, 400],
    [{ transfer: { volume_id: volume, no_snapshots: true } }, 400],
    [{ transfer: { volume_id: "99999999-9999-9999-9999-999999999999" } }, 404],
  ];
  for (const [body, status] of cases) {
    expect((await ask("giver", "POST", "/os-volume-transfer", body)).status, JSON.stringify(body)).toBe(status);
  }
  expect((await ask("taker", "POST", "/os-volume-transfer", { transfer })).status).toBe(404);
  const offered = (await ask("giver", "POST", "/os-volume-transfer", { transfer }, 0)).body.transfer;
  expect(Object.keys(offered).sort()).toEqual(["auth_key", "created_at", "id", "links", "name", "volume_id"]);
  const twice = await ask("giver", "POST", "/volume-transfers", { transfer });
  expect(twice.body.badRequest.message).toBe("Invalid volume: status must be available");
  for (const action of [{ "os-reserve": {} }, { "os-attach": { host_name: "h", mountpoint: "/x" } }]) {
    expect((await ask("giver", "POST", `/volumes/${volume}/action`, action)).status).toBe(400);
  }
  for (const [path, body] of [
    ["/backups", { backup: { volume_id: volume, force: true } }],
    ["/snapshots", { snapshot: { volume_id: volume } }],
    ["/volumes", { volume: { size: 1, source_volid: volume } }],
  ] as const) {
    expect((await ask("giver", "POST", path, body)).status, path).toBe(400);
  }
  expect((await ask("giver", "DELETE", `/volumes/${volume}`)).status).toBe(400);
  expect((await ask("taker", "DELETE", `/volume-transfers/${offered.id}`)).status).toBe(404);
  expect((await ask("giver", "DELETE", `/volume-transfers/${offered.id}`)).status).toBe(202);
  expect((await ask("giver", "GET", `/volumes/${volume}`)).body.volume.status).toBe("available");
  expect((await ask("giver", "GET", `/volume-transfers/${offered.id}`)).status).toBe(404);
});

it("lets one of many takers have a volume, and none after it was withdrawn", async () => {
  const volume = await makeVolume();
  const transfer = await offer(volume);
  const before = await used(b);
  const accept = { accept: { auth_key: transfer.auth_key } };
  const tries = Array.from({ length: 8 }, () =>
    ask("taker", "POST", `/volume-transfers/${transfer.id}/accept`, accept),
  );
  const withdrawn = ask("giver", "DELETE", `/volume-transfers/${transfer.id}`);
  const statuses = (await Promise.all(tries)).map(({ status }) => status);
  const { status } = await withdrawn;
  const taken = statuses.filter((each) => each === 202).length;
  expect(taken + Number(status === 202)).toBe(1);
  expect((await used(b)).volumes_used).toBe(before.volumes_used + taken);
});

it("writes into the audit who offered and who took a volume", async () => {
  const transfer = await offer(await makeVolume());
  await ask("taker", "POST", `/volume-transfers/${transfer.id}/accept`, { accept: { auth_key: transfer.auth_key } });
  const { body } = await instance.request("GET", `/ops/audit?resource=transfer&resource_id=${transfer.id}`, undefined, {
    "x-auth-token": "admin",
  });
  const told = body.audit.map((each: Record<string, string>) => [each["from"], each["to"], each["user_id"]]);
  expect(told.reverse()).toEqual([
    [null, "pending", "user-giver"],
    ["pending", "accepted", "user-taker"],
    ["accepted", "deleted", "user-taker"],
  ]);
});
