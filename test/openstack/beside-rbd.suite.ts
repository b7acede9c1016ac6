import { execFile } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { randomBytesOf } from "../kit/bytes.ts";
import { type CephPool, startCephPool } from "../kit/ceph-pool.ts";
import { crashAt } from "../kit/crash-at.ts";
import type { Instance } from "../kit/instance.ts";
import { accept, asking, atRest, type BesideWorld, ended, same, startWorld } from "./beside-world.ts";
import { startEditingProxy } from "./editing-proxy.ts";

const MiB = 2 ** 20;
const GiB = 2 ** 30;

let home: string;
let pool: CephPool;
let world: BesideWorld;
let instance: Instance;
let ask: ReturnType<typeof asking>;

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-beside-rbd-"));
  pool = await startCephPool();
  const { ceph, environment, keyring } = pool;
  const conf = await clientConf();
  world = await startWorld({
    section: [
      "volume_driver = cinder.volume.drivers.rbd.RBDDriver",
      "rbd_pool = volumes",
      `rbd_ceph_conf = ${conf}`,
      "rbd_user = cinder",
      "rbd_secret_uuid = 11111111-2222-3333-4444-555555555555",
    ].join("\n"),
    environment,
    backend: { ceph: [{ pools: ["volumes"], conf: ceph.conf, user: "tephra", keyring }] },
  });
  instance = await world.start({
    workers: 0,
    config: {
      worker: { lease_ms: 3_000, heartbeat_ms: 500 },
      tasks: { reconcile_ms: 300, backoff_ms: 100 },
      quotas: { backups: -1, backup_gigabytes: -1 },
    },
  });
  ask = asking(instance, world.user);
});
afterAll(async () => {
  await instance?.[Symbol.asyncDispose]();
  await world?.[Symbol.asyncDispose]();
  await pool?.[Symbol.asyncDispose]();
  await rm(home, { recursive: true, force: true });
});

/** As Cinder's driver has it: its user's key by the configuration. */
async function clientConf(): Promise<string> {
  const keyring = await pool.ceph.user("cinder", "mon", "profile rbd", "osd", "profile rbd pool=volumes");
  const conf = join(home, "cinder.conf");
  writeFileSync(conf, `${readFileSync(pool.ceph.conf, "utf8")}\n[client.cinder]\nkeyring = ${keyring}\n`);
  return conf;
}

const image = (id: string): string => `volumes/volume-${id}`;

/** Writes random bytes of that seed, as a machine would that has the volume. */
async function write(id: string, offset: number, length: number, seed: string): Promise<void> {
  const bytes = join(home, "bytes");
  writeFileSync(bytes, randomBytesOf(seed, length));
  const file = { driver: "rbd", pool: "volumes", image: `volume-${id}`, conf: pool.ceph.conf };
  const args = ["-c", `write -s ${bytes} ${offset} ${length}`, `json:${JSON.stringify({ driver: "raw", file })}`];
  await promisify(execFile)("qemu-io", args, { env: pool.environment, timeout: 60_000 });
}

/** What a volume holds, as Ceph's own tool says. */
async function keep(id: string, name: string): Promise<string> {
  const path = join(home, name);
  await rm(path, { force: true });
  await pool.ceph.run("rbd", "export", "--no-progress", image(id), path);
  return path;
}

const isSame = async (id: string, expected: string): Promise<boolean> => same(expected, await keep(id, "now"));

/** What there is in Ceph, and in Cinder of all projects. */
async function objects(): Promise<string[]> {
  const images = JSON.parse(await pool.ceph.run("rbd", "ls", "--format", "json", "volumes")) as string[];
  const volumes = (await world.service.volumes()).map(({ id, status }) => `${id} ${status}`);
  return [...images, ...volumes].sort();
}

/** In front of a worker's command: it takes itself for a worker on another host. */
const onHost = (name: string): string[] => [
  ...["unshare", ...(process.getuid?.() === 0 ? [] : ["-r"]), "--uts"],
  ...["sh", "-c", 'hostname "$0" && exec "$@"', name],
];

async function backedUp(id: string, more: object = {}): Promise<string> {
  const backup = await accept(ask, { volume_id: id, ...more });
  await ended(instance, ask, backup);
  await atRest(instance);
  return backup;
}

async function restoreTo(backup: string, id: string | null): Promise<string> {
  const reply = await ask("POST", `/backups/${backup}/restore`, { restore: { volume_id: id } });
  expect(reply.status, reply.text).toBe(202);
  return reply.body.restore.volume_id;
}

it("images of Cinder's own RBD driver: full, incremental and of a snapshot, in use, restored to new and existing volumes", async () => {
  const { user } = world;
  const worker = await instance.startWorker();
  const { id } = await user.createVolume({ name: "data" });
  const before = await objects();
  await write(id, 5 * MiB, 3 * MiB, "one");
  const first = await keep(id, "first");
  const full = await backedUp(id);
  await write(id, 700 * MiB, MiB, "two");
  const { snapshot } = await user.must("POST", "/snapshots", { snapshot: { volume_id: id, name: "s" } });
  const ready = async () => (await user.must("GET", `/snapshots/${snapshot.id}`)).snapshot.status === "available";
  await instance.waitFor(ready, { what: "the snapshot is there" });
  const second = await keep(id, "second");
  await write(id, 100 * MiB, MiB, "three");
  const third = await keep(id, "third");
  const ofSnapshot = await backedUp(id, { snapshot_id: snapshot.id, incremental: true });
  const { attachment } = await user.must("POST", "/attachments", {
    attachment: { volume_uuid: id, connector: { host: "guest" } },
  });
  await user.must("POST", `/attachments/${attachment.id}/action`, { "os-complete": {} });
  const inUse = await backedUp(id, { force: true, incremental: true });
  expect((await user.must("GET", `/volumes/${id}`)).volume.status).toBe("in-use");
  expect(await objects()).toEqual(before.map((each) => each.replace(`${id} available`, `${id} in-use`)));
  for (const [backup, expected] of [
    [full, first],
    [ofSnapshot, second],
    [inUse, third],
  ] as const) {
    const target = await restoreTo(backup, null);
    await user.volumeIn(target, "available");
    expect(await isSame(target, expected)).toBe(true);
  }
  const { id: existing } = await user.createVolume({ size: 2, name: "existing" });
  await write(existing, 0, 4 * MiB, "old");
  await write(existing, GiB + MiB, MiB, "tail");
  const whole = await keep(existing, "existing");
  await restoreTo(inUse, existing);
  await user.volumeIn(existing, "available");
  await atRest(instance);
  const now = await keep(existing, "now");
  expect(same(third, now)).toBe(true);
  expect(same(whole, now, 2 * GiB, GiB)).toBe(true);
  await worker.stop({ signal: "SIGKILL" });
});

describe("a worker is lost during a restore", () => {
  it.each([
    ["cinder.set-metadata.answered:2", true],
    ["cinder.show-attachment.answered:3", true],
    // Nothing was open any more: all was written, and only its release is left to do.
    ["cinder.detach:1", false],
  ])("at %s: one on another host goes on, once the lost one is shut out", async (point, isShutOut) => {
    const { user } = world;
    const worker = await instance.startWorker();
    const { id } = await user.createVolume({ name: "data" });
    await write(id, 3 * MiB, MiB, "lost");
    const expected = await keep(id, "lost");
    const backup = await backedUp(id);
    await worker.stop({ signal: "SIGKILL" });
    const { id: target } = await user.createVolume({ name: "target" });
    await write(target, 0, 2 * MiB, "old");
    const mortal = await instance.startWorker(crashAt(point));
    await restoreTo(backup, target);
    await instance.waitFor(() => !mortal.running(), { what: `the worker died at ${point}`, timeoutMs: 30_000 });
    const { metadata } = (await user.must("GET", `/volumes/${target}`)).volume;
    const { writer } = JSON.parse(metadata.tephra_restore);
    expect(await pool.ceph.run("ceph", "osd", "blocklist", "ls")).not.toContain(writer);
    const heir = await instance.startWorker({}, onHost("other"));
    await user.volumeIn(target, "available");
    await atRest(instance);
    expect(await isSame(target, expected)).toBe(true);
    expect((await pool.ceph.run("ceph", "osd", "blocklist", "ls")).includes(writer)).toBe(isShutOut);
    expect((await user.must("GET", `/volumes/${target}`)).volume.metadata).toEqual({ src_backup_id: backup });
    await heir.stop({ signal: "SIGKILL" });
  });

  it("and is only late: what it still sends is refused, and the volume is its owner's", async () => {
    const { user, service } = world;
    const { id } = await user.createVolume({ name: "data" });
    await write(id, 0, 8 * MiB, "late");
    const worker = await instance.startWorker();
    const backup = await backedUp(id);
    const limit = "/ops/limits/repositories/repository/main";
    const asAdmin = { "x-auth-token": service.token };
    const set = await instance.request("PUT", limit, { bytes_per_second: 256 * 1024 }, asAdmin);
    expect(set.status, set.text).toBe(200);
    await worker.stop({ signal: "SIGKILL" });
    const late = await instance.startWorker();
    const { id: target } = await user.createVolume({ name: "target" });
    await restoreTo(backup, target);
    const server = await instance.waitFor(
      async () => {
        const { metadata } = (await user.must("GET", `/volumes/${target}`)).volume;
        return metadata.tephra_restore?.includes("writer") && childOf(late.pid, "qemu-nbd");
      },
      { what: "it writes", timeoutMs: 30_000 },
    );
    process.kill(server, "SIGSTOP");
    late.kill("SIGSTOP");
    expect((await instance.request("DELETE", limit, undefined, asAdmin)).status).toBe(204);
    const heir = await instance.startWorker({}, onHost("other"));
    await user.volumeIn(target, "available");
    await atRest(instance);
    expect(await isSame(target, await keep(id, "late"))).toBe(true);
    await write(target, 0, 9 * MiB, "owner");
    const owners = await keep(target, "owner");
    process.kill(server, "SIGCONT");
    late.kill("SIGCONT");
    await instance.waitFor(() => childOf(late.pid, "qemu-nbd") === null, { what: "the late one has given up" });
    expect(await isSame(target, owners)).toBe(true);
    await late.stop({ signal: "SIGKILL" });
    await heir.stop({ signal: "SIGKILL" });
  });
});

/** The id of that program, started by a process; null when there is none. */
function childOf(parent: number, program: string): number | null {
  for (const entry of readdirSync("/proc").filter((name) => /^[0-9]+$/.test(name))) {
    try {
      const [, name, of] = /^[0-9]+ \((.*)\) \S+ ([0-9]+)/.exec(readFileSync(`/proc/${entry}/stat`, "utf8")) ?? [];
      if (name === program && Number(of) === parent) return Number(entry);
    } catch {
      // It has ended meanwhile.
    }
  }
  return null;
}

it("what Cinder says that is not of a configured cluster and pool opens nothing, and no secret of it is shown", async () => {
  const { user, cinder } = world;
  const canary = "AQCanaryCanaryCanary==";
  const other = { keyring: `[client.cinder] key = ${canary}`, auth_password: canary, conf: "/etc/passwd" };
  const cases: [object, RegExp][] = [
    [{ name: `other/${canary.slice(0, 10)}` }, /the pool in name is none of those that are configured/],
    [{ name: "volumes/image@snap" }, /name is not of the form POOL\/IMAGE/],
    [{ name: `volumes/x:conf=/etc/passwd:key=${canary}` }, /name is not of the form POOL\/IMAGE/],
    [{ hosts: ["192.0.2.7"], ports: ["6789"] }, /hosts and ports name no monitor of a cluster that is configured/],
    [{ hosts: canary }, /hosts is missing or not of its form/],
    [{ driver_volume_type: "iscsi" }, /driver_volume_type "iscsi" is none of local, /],
    [{ driver_volume_type: "local", device_path: "/etc/passwd" }, /is not inside an allowed folder/],
  ];
  const before = await objects();
  const given = new Map<string, object>();
  await using proxy = await startEditingProxy(cinder.url, (_request, answer) => {
    const all = answer.attachment ? [answer.attachment] : (answer.attachments ?? []);
    for (const { id, connection_info: info } of all) {
      if (!info?.driver_volume_type) continue;
      given.set(id, given.get(id) ?? cases[given.size]?.[0] ?? {});
      Object.assign(info, other, given.get(id));
    }
  });
  await using hostile = await world.start({ backend: { url: proxy.url } });
  const there = asking(hostile, user);
  const reasons: string[] = [];
  for (const _ of cases) {
    const { id } = await user.createVolume({ name: "data" });
    const backup = await accept(there, { volume_id: id });
    reasons.push((await ended(hostile, there, backup, "error")).fail_reason);
    await atRest(hostile);
    await user.must("DELETE", `/volumes/${id}`);
    await hostile.waitFor(async () => (await user.call("GET", `/volumes/${id}`)).status === 404, {
      what: "it is gone",
    });
  }
  expect(reasons).toEqual(cases.map(([, reason]) => expect.stringMatching(reason)));
  expect(await objects()).toEqual(before);
  const rows = JSON.stringify(
    await hostile.sql("SELECT o, t, b FROM operations o JOIN tasks t ON t.operation_id = o.id, backups b"),
  );
  expect(`${rows}${hostile.logs()}`).not.toContain(canary.slice(0, 10));
});
