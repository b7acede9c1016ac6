import { copyFileSync, readdirSync, truncateSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Instance } from "../kit/instance.ts";
import { isLong, times } from "../kit/long.ts";
import { startTcpProxy } from "../kit/tcp-proxy.ts";
import {
  accept,
  asking,
  atRest,
  attachToGuest,
  type BesideWorld,
  backedUp,
  ended,
  restoreManyTimes,
  same,
  snapshotOf,
  startWorld,
  write,
} from "./beside-world.ts";
import { startEditingProxy } from "./editing-proxy.ts";

const MiB = 2 ** 20;
const GiB = 2 ** 30;

let world: BesideWorld;
let instance: Instance;
let ask: ReturnType<typeof asking>;

beforeAll(async () => {
  world = await startWorld();
  const quotas = { backups: -1, backup_gigabytes: -1 };
  instance = await world.start({ config: { reaper: { interval_hours: null, grace_minutes: 0 }, quotas } });
  ask = asking(instance, world.user);
});
afterAll(async () => {
  await instance?.[Symbol.asyncDispose]();
  await world?.[Symbol.asyncDispose]();
});

/** A copy of what a volume holds now. */
function keep(volumeId: string, name: string): string {
  const path = join(instance.dataDir, name);
  copyFileSync(world.cinder.file(volumeId), path);
  return path;
}

const ids = (volumes: { id: string }[]) => volumes.map(({ id }) => id).sort();

it("a volume is backed up without being touched, and what that makes in Cinder is gone afterwards and was never seen by its owner", async () => {
  const { cinder, user, service } = world;
  const { id } = await user.createVolume({ name: "data", metadata: { purpose: "web" } });
  write(cinder.file(id), 5 * MiB, 3 * MiB, "full");
  const before = ids(await service.volumes());
  const full = await accept(ask, { volume_id: id, name: "first" });
  const statuses = new Set<string>();
  const seen = new Set<string>();
  await instance.waitFor(
    async () => {
      const { volume } = await user.must("GET", `/volumes/${id}`);
      statuses.add(volume.status);
      for (const each of (await user.must("GET", "/volumes/detail")).volumes) seen.add(each.name);
      const { body } = await ask("GET", `/backups/${full}`);
      return body.backup.status !== "creating";
    },
    { what: "the backup has ended", timeoutMs: 60_000 },
  );
  const backup = await ended(instance, ask, full);
  expect(backup).toMatchObject({ volume_id: id, size: 1, name: "first", availability_zone: "nova" });
  expect([...statuses]).toEqual(["available"]);
  expect([...seen].filter((name) => name?.startsWith("tephra"))).toEqual([]);
  await atRest(instance);
  expect(ids(await service.volumes())).toEqual(before);
});

it("full, incremental and of a snapshot, also in use, restored to new and existing volumes: the bytes are exact", async () => {
  const { cinder, user } = world;
  const { id } = await user.createVolume({ name: "chain" });
  const file = cinder.file(id);
  write(file, 0, 2 * MiB, "one");
  const first = keep(id, "first");
  const full = await accept(ask, { volume_id: id });
  await ended(instance, ask, full);
  write(file, 700 * MiB, MiB, "two");
  const snapshot = await snapshotOf(user, id);
  const second = keep(id, "second");
  write(file, 100 * MiB, MiB, "three");
  const third = keep(id, "third");
  const ofSnapshot = await accept(ask, { volume_id: id, snapshot_id: snapshot, incremental: true });
  expect(await ended(instance, ask, ofSnapshot)).toMatchObject({ snapshot_id: snapshot, is_incremental: true });
  await attachToGuest(user, id);
  const refused = await ask("POST", "/backups", { backup: { volume_id: id } });
  expect([refused.status, refused.body.badRequest?.message]).toEqual([
    400,
    "Invalid volume: Backing up an in-use volume must use the force flag.",
  ]);
  const inUse = await accept(ask, { volume_id: id, force: true, incremental: true });
  await ended(instance, ask, inUse);
  expect((await user.must("GET", `/volumes/${id}`)).volume.status).toBe("in-use");

  for (const [backupId, expected] of [
    [full, first],
    [ofSnapshot, second],
    [inUse, third],
  ] as const) {
    const restored = await ask("POST", `/backups/${backupId}/restore`, { restore: {} });
    expect(restored.status, restored.text).toBe(202);
    const { volume_id: target, volume_name: name } = restored.body.restore;
    expect(name).toBe(`restore_backup_${backupId}`);
    const volume = await user.volumeIn(target, "available");
    expect(volume).toMatchObject({ size: 1, name: "chain" });
    expect(volume.metadata["src_backup_id"]).toBe(backupId);
    await atRest(instance);
    expect(same(expected, cinder.file(target))).toBe(true);
    expect(Object.keys((await user.must("GET", `/volumes/${target}`)).volume.metadata)).toEqual(["src_backup_id"]);
    expect((await ask("GET", `/backups/${backupId}`)).body.backup.status).toBe("available");
  }
  const { id: larger } = await user.createVolume({ size: 2, name: "existing" });
  write(cinder.file(larger), 0, 4 * MiB, "old");
  write(cinder.file(larger), GiB + MiB, MiB, "tail");
  const kept = keep(larger, "larger");
  const restored = await ask("POST", `/backups/${inUse}/restore`, { restore: { volume_id: larger } });
  expect(restored.status, restored.text).toBe(202);
  await atRest(instance);
  expect(await user.volumeIn(larger, "available")).toMatchObject({ name: "existing" });
  expect(same(third, cinder.file(larger))).toBe(true);
  expect(same(kept, cinder.file(larger), 2 * GiB, GiB)).toBe(true);
});

it("a backup asks Cinder for at most 12 things, and waits for some of them", async () => {
  const { cinder, user } = world;
  await using proxy = await startEditingProxy(cinder.url, () => {});
  await using through = await world.start({ backend: { url: proxy.url } });
  const there = asking(through, user);
  const { id } = await user.createVolume({ name: "data" });
  write(cinder.file(id), 0, MiB, "calls");
  for (const incremental of [false, true]) {
    const before = proxy.requests.length;
    await backedUp(through, there, id, { incremental });
    // Workers ask now and then whether Cinder is there. What is asked again is waited for.
    const own = proxy.requests.slice(before).filter((request) => !request.endsWith("/volumes?limit=1"));
    const asked = own.filter((request, at) => request !== own[at - 1]);
    process.stderr.write(`${incremental ? "incremental" : "full"}: ${asked.length} calls\n`);
    expect(asked.length, asked.join("\n")).toBeLessThanOrEqual(12);
  }
});

it.runIf(isLong)(
  "40 restores of random edits are exact",
  () =>
    restoreManyTimes(
      { instance, ask, user: world.user },
      {
        write: (id, ...more) => write(world.cinder.file(id), ...more),
        keep,
        isSame: (id, expected) => same(expected, world.cinder.file(id)),
      },
      40,
    ),
  3_600_000,
);

it("Cinder's own refusals reach the caller, and leave nothing behind", async () => {
  const { user, stranger, cinder } = world;
  const { id } = await user.createVolume({ name: "mine" });
  const other = asking(instance, stranger);
  const foreign = await other("POST", "/backups", { backup: { volume_id: id } });
  const own = await stranger.call("GET", `/volumes/${id}`);
  expect([foreign.status, foreign.body]).toEqual([own.status, own.body]);
  expect(own.status).toBe(404);
  const { attachment } = await user.must("POST", "/attachments", { attachment: { volume_uuid: id } });
  const reserved = await ask("POST", "/backups", { backup: { volume_id: id, force: true } });
  const text = 'Volume to be backed up must be available or in-use, but the current status is "reserved".';
  expect([reserved.status, reserved.body.badRequest?.message]).toEqual([400, `Invalid volume: ${text}`]);
  await user.must("DELETE", `/attachments/${attachment.id}`);
  write(cinder.file(id), 0, MiB, "refusals");
  for (const worker of instance.workers) worker.kill("SIGSTOP");
  const backup = await accept(ask, { volume_id: id });
  const twice = await ask("POST", "/backups", { backup: { volume_id: id } });
  for (const worker of instance.workers) worker.kill("SIGCONT");
  expect([twice.status, twice.body.badRequest?.message]).toEqual([
    400,
    `Invalid volume: ${text.replace("reserved", "backing-up")}`,
  ]);
  await ended(instance, ask, backup);
  await atRest(instance);
  const { id: held } = await user.createVolume({ name: "held" });
  await user.must("POST", "/attachments", { attachment: { volume_uuid: held } });
  const busy = await ask("POST", `/backups/${backup}/restore`, { restore: { volume_id: held } });
  expect([busy.status, busy.body.badRequest?.message]).toEqual([
    400,
    "Invalid volume: Volume to be restored to must be available",
  ]);
  const admin = await cinder.as({ name: world.identity.user, password: world.identity.password, project: "admin" });
  await admin.must("PUT", `/os-quota-sets/${user.projectId}`, { quota_set: { volumes: 0 } });
  const quota = await ask("POST", `/backups/${backup}/restore`, { restore: {} });
  const refused = await user.call("POST", "/volumes", { volume: { size: 1 } });
  await admin.must("PUT", `/os-quota-sets/${user.projectId}`, { quota_set: { volumes: 200 } });
  expect([quota.status, refused.status]).toEqual([413, 413]);
  expect(quota.body.overLimit.message).toBe(refused.body.overLimit.message);
  expect((await ask("GET", `/backups/${backup}`)).body.backup.status).toBe("available");
  expect((await user.must("GET", `/volumes/${held}`)).volume.status).toBe("reserved");
  for (const path of ["/volumes", "/snapshots", "/groups", "/limits", "/types"]) {
    expect([path, (await ask("GET", path)).status]).toEqual([path, 404]);
  }
});

it("what is not ours by name, metadata and project survives backups and the reaper; our own leftovers do not", async () => {
  const { user, service } = world;
  const { id } = await user.createVolume({ name: "data" });
  const [{ id: installation }] = await instance.sql("SELECT id FROM installation");
  const lost = "11111111-2222-4333-8444-555555555555";
  const made = (of: string) => ({ tephra_backup: lost, tephra_installation: of });
  const decoys = [
    await user.createVolume({ name: `tephra-backup-${lost}`, metadata: made(installation) }),
    await service.createVolume({ name: `tephra-backup-${lost}` }),
    await service.createVolume({
      name: `tephra-backup-${lost}`,
      metadata: made("22222222-2222-4333-8444-555555555555"),
    }),
    await service.createVolume({ name: "other", metadata: made(installation) }),
  ];
  const ours = await service.createVolume({ name: `tephra-backup-${lost}`, metadata: made(installation) });
  await service.must("POST", "/attachments", { attachment: { volume_uuid: ours.id, connector: { host: "gone" } } });
  await ended(instance, ask, await accept(ask, { volume_id: id }));
  const reap = await instance.request("POST", "/ops/repositories/main/reap", {}, { "x-auth-token": service.token });
  expect(reap.status, reap.text).toBe(202);
  await atRest(instance);
  const left = await instance.waitFor(
    async () => {
      const all = ids(await service.volumes());
      return !all.includes(ours.id) && all;
    },
    { what: "the leftover is gone" },
  );
  for (const decoy of decoys) expect(left).toContain(decoy.id);
});

it("its owner may take a volume back while it is being restored: the restore fails and writes no more", async () => {
  const { user, cinder } = world;
  const { id } = await user.createVolume({ name: "data" });
  write(cinder.file(id), 0, MiB, "owner");
  const backup = await accept(ask, { volume_id: id });
  await ended(instance, ask, backup);
  await atRest(instance);
  const { id: target } = await user.createVolume({ name: "target" });
  for (const worker of instance.workers) worker.kill("SIGSTOP");
  const accepted = await ask("POST", `/backups/${backup}/restore`, { restore: { volume_id: target } });
  expect(accepted.status, accepted.text).toBe(202);
  const { attachments } = await user.must("GET", `/attachments?volume_id=${target}`);
  for (const each of attachments) await user.must("DELETE", `/attachments/${each.id}`);
  for (const worker of instance.workers) worker.kill("SIGCONT");
  await atRest(instance);
  const [row] = await instance.sql("SELECT state, fail_reason FROM operations WHERE volume_id = $1", [target]);
  expect(row).toEqual({
    state: "failed",
    fail_reason: "The attachment of the volume was removed while it was being restored.",
  });
  expect(await user.volumeIn(target, "available")).toMatchObject({ metadata: {} });
  expect((await ask("GET", `/backups/${backup}`)).body.backup.status).toBe("available");
});

it("a backup that is damaged leaves its target in error_restoring, released", async () => {
  const { user, cinder } = world;
  const { id } = await user.createVolume({ name: "data" });
  write(cinder.file(id), 0, MiB, "damage");
  const backup = await accept(ask, { volume_id: id });
  const { container } = await ended(instance, ask, backup);
  await atRest(instance);
  const folder = join(instance.repositoryDir, container);
  const object = readdirSync(folder, { recursive: true, encoding: "utf8" }).find((name) => /-00001$/.test(name));
  truncateSync(join(folder, object ?? "none"), 10);
  const { id: target } = await user.createVolume({ name: "target" });
  const accepted = await ask("POST", `/backups/${backup}/restore`, { restore: { volume_id: target } });
  expect(accepted.status, accepted.text).toBe(202);
  await atRest(instance);
  expect(await user.volumeIn(target, "error_restoring")).toMatchObject({ attachments: [], metadata: {} });
  expect((await ask("GET", `/backups/${backup}`)).body.backup.status).toBe("error_restoring");
});

it("what Cinder attaches outside the configured folders is not opened, and what it says is stored and logged nowhere", async () => {
  const { user, service } = world;
  const before = ids(await service.volumes());
  await using elsewhere = await world.start({ backend: { local_roots: ["/srv/nowhere"] } });
  const there = asking(elsewhere, user);
  const { id } = await user.createVolume({ name: "data" });
  const backup = await accept(there, { volume_id: id });
  const { fail_reason: reason } = await ended(elsewhere, there, backup, "error");
  expect(reason).toMatch(/is not inside an allowed folder/);
  await atRest(elsewhere);
  expect(ids(await service.volumes()).filter((each) => each !== id)).toEqual(before);
  const dump = JSON.stringify(
    await elsewhere.sql("SELECT o, t FROM operations o JOIN tasks t ON t.operation_id = o.id"),
  );
  expect(`${dump}${elsewhere.logs()}`).not.toMatch(/device_path|connection_info/);
});

it("clones that take long hold no slot of a worker, and cost no attempt", async () => {
  const { user, stranger, cinder, service } = world;
  const many = times({ usual: 3, long: 100 });
  const volumes: { id: string }[] = [];
  for (let n = 0; n < many; n += 1) volumes.push(await user.createVolume({ name: `slow-${n}` }));
  const { id: other } = await stranger.createVolume({ name: "other" });
  const quotas = { backups: -1, backup_gigabytes: -1 };
  await using narrow = await world.start({ config: { worker: { slots: times({ usual: 1, long: 4 }) }, quotas } });
  const there = asking(narrow, user);
  cinder.cloneFor(600);
  const backups: string[] = [];
  for (const { id } of volumes) backups.push(await accept(there, { volume_id: id }));
  await narrow.waitFor(
    async () => {
      const clones = (await service.volumes()).filter(({ name }) =>
        backups.some((id) => name === `tephra-backup-${id}`),
      );
      return clones.filter(({ status }) => status === "creating").length === many;
    },
    { what: "few slots have all clones made at once", timeoutMs: times({ usual: 30_000, long: 200_000 }) },
  );
  const begun = performance.now();
  backups.push(await accept(asking(narrow, stranger), { volume_id: other }));
  const isMade = async () => (await service.volumes()).some(({ name }) => name === `tephra-backup-${backups.at(-1)}`);
  await narrow.waitFor(isMade, { what: "the clone of another project's backup is begun", timeoutMs: 30_000 });
  process.stderr.write(`another project's was begun in ${Math.round(performance.now() - begun)} ms\n`);
  cinder.cloneFor(0);
  await narrow.waitFor(
    async () => {
      const [{ left }] = await narrow.sql("SELECT count(*) AS left FROM backups WHERE status = 'creating'");
      return Number(left) === 0;
    },
    { what: "all backups have ended", timeoutMs: times({ usual: 60_000, long: 400_000 }) },
  );
  for (const id of backups.slice(0, many)) await ended(narrow, there, id);
  await atRest(narrow);
  process.stderr.write(`${many} clones held no slot\n`);
  const rows = await narrow.sql(
    "SELECT max(waits) AS waits, max(attempts) AS attempts FROM tasks WHERE kind = 'plan-backup'",
  );
  expect(rows[0].attempts).toBe(1);
  expect(rows[0].waits).toBeGreaterThan(0);
}, 1_800_000);

it("a Cinder that does not answer: 503 at the request, and a worker waits for it without an attempt", async () => {
  const { user, cinder, service } = world;
  await using proxy = await startTcpProxy({ port: Number(new URL(cinder.url).port) });
  const before = ids(await service.volumes());
  await using away = await world.start({
    backend: { url: proxy.through(cinder.url) },
    workers: 0,
    config: { tasks: { unplaced_timeout_ms: 500, reconcile_ms: 300 }, worker: { heartbeat_ms: 500 } },
  });
  const worker = await away.startWorker();
  const there = asking(away, user);
  const { id } = await user.createVolume({ name: "data" });
  worker.kill("SIGSTOP");
  const backup = await accept(there, { volume_id: id });
  proxy.trouble({ kind: "cut" });
  const refused = await there("POST", "/backups", { backup: { volume_id: id } });
  expect([refused.status, refused.body.serviceUnavailable?.message]).toEqual([
    503,
    "The Block Storage service is temporarily unavailable. Please try again later.",
  ]);
  worker.kill("SIGCONT");
  const noticed = async () => (await away.sql("SELECT 1 FROM workers WHERE unreachable ? 'backend:cinder'")).length > 0;
  await away.waitFor(noticed, { what: "the worker says that Cinder is away", timeoutMs: 30_000 });
  const [{ waits }] = await away.sql("SELECT max(waits) AS waits FROM tasks");
  await away.waitFor(async () => (await away.sql("SELECT 1 FROM tasks WHERE waits >= $1", [waits + 2])).length > 0, {
    what: "the worker waits",
    timeoutMs: 30_000,
  });
  if (isLong) await sleep(300_000);
  proxy.trouble(null);
  await ended(away, there, backup);
  await atRest(away);
  const [row] = await away.sql("SELECT max(attempts) AS attempts FROM tasks");
  expect(row.attempts).toBe(1);
  expect(ids(await service.volumes()).filter((each) => each !== id)).toEqual(before);
}, 900_000);
