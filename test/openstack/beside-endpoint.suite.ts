import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { freePort } from "../../scripts/spawn-program.ts";
import type { CinderUser } from "../kit/cinder.ts";
import type { Instance } from "../kit/instance.ts";
import { times } from "../kit/long.ts";
import { startTcpProxy } from "../kit/tcp-proxy.ts";
import { waitFor } from "../kit/wait-for.ts";
import { startHaproxy, startNginx } from "./balancers.ts";
import { accept, asking, atRest, type BesideWorld, ended, same, startWorld, write } from "./beside-world.ts";

const MiB = 2 ** 20;

let world: BesideWorld;
let instance: Instance;
let ask: ReturnType<typeof asking>;
let admin: CinderUser;
let volume: string;
let backup: string;

beforeAll(async () => {
  world = await startWorld();
  instance = await world.start({ backend: { forward: true } });
  ask = asking(instance, world.user);
  const { user: name, password } = world.identity;
  admin = await world.cinder.as({ name, password, project: "admin" });
  volume = (await world.user.createVolume({ name: "data", metadata: { purpose: "web" } })).id;
  write(world.cinder.file(volume), 3 * MiB, MiB, "endpoint");
  backup = await accept(ask, { volume_id: volume });
  await ended(instance, ask, backup);
  await atRest(instance);
});
afterAll(async () => {
  await instance?.[Symbol.asyncDispose]();
  await world?.[Symbol.asyncDispose]();
});

/** Differ from request to request, or belong to one connection. */
const passing = ["date", "connection", "keep-alive", "x-openstack-request-id", "x-compute-request-id"];

interface Sent {
  method: string;
  path: string;
  headers?: Record<string, string>;
  body?: string;
}

async function send(origin: string, { method, path, headers = {}, body }: Sent) {
  const reply = await fetch(origin + path, {
    method,
    headers,
    redirect: "manual",
    ...(body !== undefined && { body }),
  });
  const own = [...reply.headers].filter(([name]) => !passing.includes(name));
  const text = await reply.text();
  const ids = [reply.headers.get("x-openstack-request-id"), reply.headers.get("x-compute-request-id")];
  const without = ids.reduce<string>((left, id) => (id === null ? left : left.replaceAll(id, "ID")), text);
  return { status: reply.status, headers: own, text: without.replace(/"updated_at": "[^"]*"/, "") };
}

it("what is not about backups is answered as Cinder answers it, for everybody", async () => {
  const { user, cinder } = world;
  const project = `/v3/${user.projectId}`;
  const own = { "x-auth-token": user.token, "content-type": "application/json" };
  const at = (version: string) => ({ ...own, "openstack-api-version": `volume ${version}` });
  const requests: Sent[] = [
    { method: "GET", path: "/" },
    { method: "GET", path: "/v3/", headers: own },
    { method: "GET", path: `${project}/volumes`, headers: own },
    { method: "GET", path: `${project}/volumes/detail?limit=1&sort=name:asc`, headers: at("3.70") },
    { method: "GET", path: `${project}/volumes/${volume}`, headers: at("3.0") },
    { method: "GET", path: `${project}/volumes/${volume}`, headers: at("3.71") },
    { method: "GET", path: `${project}/volumes/${volume}`, headers: { "x-auth-token": "none" } },
    { method: "GET", path: `${project}/volumes/${volume}` },
    { method: "GET", path: `${project}/volumes/nobody`, headers: own },
    { method: "GET", path: `/v3/${world.stranger.projectId}/volumes`, headers: own },
    { method: "HEAD", path: `${project}/volumes`, headers: own },
    { method: "OPTIONS", path: `${project}/volumes` },
    { method: "GET", path: `${project}//types?is_public=None`, headers: own },
    { method: "GET", path: `${project}/os-services`, headers: own },
    { method: "GET", path: `${project}/messages`, headers: at("3.60") },
    { method: "GET", path: `${project}/nothing?x=%2F%20`, headers: own },
    { method: "POST", path: `${project}/volumes`, headers: own, body: "{" },
    { method: "POST", path: `${project}/volumes`, headers: own, body: '{"volume": {"size": 0}}' },
    { method: "POST", path: `${project}/volumes`, headers: own, body: JSON.stringify({ volume: "x".repeat(200_000) }) },
    { method: "PUT", path: `${project}/volumes/${volume}`, headers: own, body: '{"volume": {"description": "é"}}' },
    {
      method: "POST",
      path: `${project}/volumes/${volume}/metadata`,
      headers: own,
      body: '{"metadata": {"purpose": "web"}}',
    },
    { method: "DELETE", path: `${project}/volumes/${volume}/metadata/none`, headers: own },
    { method: "PUT", path: `${project}/os-quota-sets/${user.projectId}`, headers: own, body: '{"quota_set": {}}' },
  ];
  const took: Record<"direct" | "forwarded", number[]> = { direct: [], forwarded: [] };
  const timed = async (way: keyof typeof took, origin: string, sent: Sent) => {
    const began = performance.now();
    const reply = await send(origin, sent);
    took[way].push(performance.now() - began);
    return reply;
  };
  for (let round = times({ usual: 10, long: 44 }); round > 0; round -= 1) {
    for (const sent of requests) {
      const direct = await timed("direct", cinder.url, sent);
      const forwarded = await timed("forwarded", instance.url, sent);
      expect([sent, forwarded]).toEqual([sent, direct]);
    }
  }
  const median = (all: number[]) => all.sort((a, b) => a - b)[all.length >> 1] ?? 0;
  const figures = { direct: median(took.direct), forwarded: median(took.forwarded) };
  process.stderr.write(`forwarded: ${took.direct.length} pairs of requests, p50 ${JSON.stringify(figures)} ms\n`);
  const through = await ask("POST", "/volumes", { volume: { size: 1, name: "through", backup_id: null } });
  expect([through.status, through.body.volume]).toEqual([202, expect.objectContaining({ name: "through", size: 1 })]);
  await user.volumeIn(through.body.volume.id, "available");
});

it("a volume is made of a backup (3.47), with all that the request says of it", async () => {
  const { user, cinder } = world;
  const wanted = { backup_id: backup, size: 2, name: "new", description: "from a backup", metadata: { a: "b" } };
  const made = await ask("POST", "/volumes", { volume: wanted });
  expect(made.status, made.text).toBe(202);
  expect(made.body.volume).toMatchObject({ status: "creating", size: 2, name: "new", metadata: { a: "b" } });
  const { id } = made.body.volume;
  await user.volumeIn(id, "available");
  await atRest(instance);
  const { volume: shown } = await user.must("GET", `/volumes/${id}`);
  expect(shown).toMatchObject({ name: "new", description: "from a backup", size: 2 });
  expect(shown.metadata).toEqual({ a: "b", purpose: "web", src_backup_id: backup });
  expect(same(cinder.file(volume), cinder.file(id), 2 ** 30)).toBe(true);

  const unknown = "11111111-2222-4333-8444-555555555555";
  const before = (await world.service.volumes()).length;
  for (const [fields, status, message] of [
    [{ backup_id: unknown }, 404, `Backup ${unknown} could not be found.`],
    [{ backup_id: backup, source_volid: volume }, 400, "May specify only one of"],
    [{ backup_id: backup, volume_type: "none" }, 404, "Volume type with name none could not be found"],
    [{ backup_id: backup, availability_zone: "moon" }, 400, "Availability zone 'moon' is invalid"],
  ] as const) {
    const refused = await ask("POST", "/volumes", { volume: fields });
    expect([refused.status, refused.text]).toEqual([status, expect.stringContaining(message)]);
  }
  const { id: large } = await user.createVolume({ size: 2, name: "large" });
  const ofLarge = await accept(ask, { volume_id: large });
  await ended(instance, ask, ofLarge);
  const small = await ask("POST", "/volumes", { volume: { backup_id: ofLarge, size: 1 } });
  expect([small.status, small.text]).toEqual([
    400,
    expect.stringContaining("cannot be smaller than the backup size 2GB"),
  ]);
  await atRest(instance);
  expect((await world.service.volumes()).length).toBe(before + 1);
  expect((await ask("GET", `/backups/${backup}`)).body.backup.status).toBe("available");
});

it("quotas and limits: Cinder's of volumes, ours of backups, and Cinder says who may change them", async () => {
  const { user } = world;
  const asAdmin = asking(instance, admin);
  const path = `/os-quota-sets/${user.projectId}`;
  const used = (await ask("GET", `${path}?usage=True`)).body.quota_set;
  const backups = (await ask("GET", "/backups")).body.backups.length;
  const theirs = (await user.must("GET", `${path}?usage=True`)).quota_set;
  expect(used).toEqual({
    ...theirs,
    backups: { limit: 10, in_use: backups, reserved: 0 },
    backup_gigabytes: { limit: 1000, in_use: expect.any(Number), reserved: 0 },
  });
  expect(used.backup_gigabytes.in_use).toBeGreaterThanOrEqual(backups);
  const refused = await ask("PUT", path, { quota_set: { backups: 50 } });
  expect(refused.status).toBe(403);
  const set = await asAdmin("PUT", path, { quota_set: { backups, volumes: 77 } });
  expect(set.status, set.text).toBe(200);
  expect([set.status, set.body.quota_set.backups, set.body.quota_set.volumes]).toEqual([200, backups, 77]);
  expect((await user.must("GET", path)).quota_set.volumes).toBe(77);
  const over = await ask("POST", "/backups", { backup: { volume_id: volume } });
  expect([over.status, over.text]).toEqual([413, expect.stringContaining("BackupLimitExceeded")]);
  const { absolute } = (await ask("GET", "/limits")).body.limits;
  const own = (await user.must("GET", "/limits")).limits.absolute;
  expect(absolute).toEqual({
    ...own,
    maxTotalBackups: backups,
    totalBackupsUsed: backups,
    maxTotalBackupGigabytes: 1000,
    totalBackupGigabytesUsed: used.backup_gigabytes.in_use,
  });
  expect(absolute.maxTotalVolumes).toBe(77);
  const reset = await asAdmin("DELETE", path);
  expect(reset.status, reset.text).toBe(200);
  expect((await ask("GET", path)).body.quota_set).toMatchObject({ backups: 10, volumes: 200 });
  expect((await ask("GET", `${path}/defaults`)).body.quota_set).toMatchObject({ backups: 10, volumes: 200 });
});

it("a Cinder that does not answer is 503 in Cinder's own form, and its backups are still there", async () => {
  const { cinder, user } = world;
  await using proxy = await startTcpProxy({ port: Number(new URL(cinder.url).port) });
  await using away = await world.start({ backend: { forward: true, url: proxy.through(cinder.url) }, workers: 0 });
  const there = asking(away, user);
  expect((await there("GET", "/volumes")).status).toBe(200);
  proxy.trouble({ kind: "cut" });
  const refused = await there("GET", "/volumes");
  expect([refused.status, refused.body]).toEqual([503, { serviceUnavailable: expect.objectContaining({ code: 503 }) }]);
  expect((await there("GET", "/backups")).status).toBe(200);
  proxy.trouble(null);
  expect((await there("GET", "/volumes")).status).toBe(200);
});

describe("a balancer in front of both", () => {
  it.each([
    ["HAProxy", startHaproxy],
    ["nginx", startNginx],
  ] as const)("%s, as our example configures it", async (_name, start) => {
    const { user, cinder } = world;
    const port = await freePort();
    const program = await start({ instance, cinder, port });
    try {
      const origin = `http://127.0.0.1:${port}`;
      const project = `/v3/${user.projectId}`;
      const headers = { "x-auth-token": user.token, "content-type": "application/json" };
      const answers = async () => {
        if (!program.running()) throw new Error(program.tail());
        return fetch(`${origin}${project}/backups`, { headers }).then(
          (reply) => reply.status === 200,
          () => false,
        );
      };
      await waitFor(answers, { what: "it passes requests on", timeoutMs: 30_000, context: () => program.tail() });
      const list = { method: "GET", path: `${project}/backups/detail`, headers };
      expect((await send(origin, list)).text).toContain(backup);
      expect((await send(cinder.url, list)).text).not.toContain(backup);
      const shown = { method: "GET", path: `${project}/volumes/${volume}`, headers };
      expect((await send(origin, shown)).status).toBe(200);
      const body = JSON.stringify({ volume: { backup_id: backup, name: "balanced" } });
      const made = await send(origin, { method: "POST", path: `${project}/volumes`, headers, body });
      expect(made.status, made.text).toBe(202);
      const { id } = JSON.parse(made.text).volume;
      await user.volumeIn(id, "available");
      await atRest(instance);
      expect(same(cinder.file(volume), cinder.file(id))).toBe(true);
      const limits = await send(origin, { method: "GET", path: `${project}/limits`, headers });
      expect(JSON.parse(limits.text).limits.absolute.totalBackupsUsed).toBeGreaterThan(0);
    } finally {
      await program.stop();
    }
  });
});
