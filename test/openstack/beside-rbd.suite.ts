import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { CephPool } from "../kit/ceph-pool.ts";
import { crashAt } from "../kit/crash-at.ts";
import type { Instance } from "../kit/instance.ts";
import { isLong } from "../kit/long.ts";
import {
  accept,
  asking,
  atRest,
  attachToGuest,
  type BesideWorld,
  backedUp,
  briskConfig,
  childOf,
  ended,
  onHost,
  restoreManyTimes,
  restoreTo,
  same,
  snapshotOf,
} from "./beside-world.ts";
import { startLyingCinder } from "./editing-proxy.ts";
import { type RbdWorld, startRbdWorld } from "./rbd-world.ts";

const MiB = 2 ** 20;
const GiB = 2 ** 30;

let ceph: RbdWorld;
let pool: CephPool;
let world: BesideWorld;
let instance: Instance;
let ask: ReturnType<typeof asking>;

beforeAll(async () => {
  ceph = await startRbdWorld();
  ({ pool, world } = ceph);
  instance = await world.start({
    workers: 0,
    config: briskConfig,
  });
  ask = asking(instance, world.user);
});
afterAll(async () => {
  await instance?.[Symbol.asyncDispose]();
  await ceph?.[Symbol.asyncDispose]();
});

it("images of Cinder's own RBD driver: full, incremental and of a snapshot, in use, restored to new and existing volumes", async () => {
  const { user } = world;
  const worker = await instance.startWorker();
  const { id } = await user.createVolume({ name: "data" });
  const before = await ceph.objects();
  await ceph.write(id, 5 * MiB, 3 * MiB, "one");
  const first = await ceph.keep(id, "first");
  const full = await backedUp(instance, ask, id);
  await ceph.write(id, 700 * MiB, MiB, "two");
  const snapshot = await snapshotOf(user, id);
  const second = await ceph.keep(id, "second");
  await ceph.write(id, 100 * MiB, MiB, "three");
  const third = await ceph.keep(id, "third");
  const ofSnapshot = await backedUp(instance, ask, id, { snapshot_id: snapshot, incremental: true });
  await attachToGuest(user, id);
  const inUse = await backedUp(instance, ask, id, { force: true, incremental: true });
  expect((await user.must("GET", `/volumes/${id}`)).volume.status).toBe("in-use");
  expect(await ceph.objects()).toEqual(before.map((each) => each.replace(`${id} available`, `${id} in-use`)));
  for (const [backup, expected] of [
    [full, first],
    [ofSnapshot, second],
    [inUse, third],
  ] as const) {
    const target = await restoreTo(ask, backup, null);
    await user.volumeIn(target, "available");
    expect(await ceph.isSame(target, expected)).toBe(true);
  }
  const { id: existing } = await user.createVolume({ size: 2, name: "existing" });
  await ceph.write(existing, 0, 4 * MiB, "old");
  await ceph.write(existing, GiB + MiB, MiB, "tail");
  const whole = await ceph.keep(existing, "existing");
  await restoreTo(ask, inUse, existing);
  await user.volumeIn(existing, "available");
  await atRest(instance);
  const now = await ceph.keep(existing, "now");
  expect(same(third, now)).toBe(true);
  expect(same(whole, now, 2 * GiB, GiB)).toBe(true);
  await worker.stop({ signal: "SIGKILL" });
});

it.runIf(isLong)(
  "40 restores of random edits are exact",
  async () => {
    const worker = await instance.startWorker();
    await restoreManyTimes({ instance, ask, user: world.user }, ceph, 40);
    await worker.stop({ signal: "SIGKILL" });
  },
  3_600_000,
);

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
    await ceph.write(id, 3 * MiB, MiB, "lost");
    const expected = await ceph.keep(id, "lost");
    const backup = await backedUp(instance, ask, id);
    await worker.stop({ signal: "SIGKILL" });
    const { id: target } = await user.createVolume({ name: "target" });
    await ceph.write(target, 0, 2 * MiB, "old");
    const mortal = await instance.startWorker(crashAt(point));
    await restoreTo(ask, backup, target);
    await instance.waitFor(() => !mortal.running(), { what: `the worker died at ${point}`, timeoutMs: 30_000 });
    const { metadata } = (await user.must("GET", `/volumes/${target}`)).volume;
    const { writer } = JSON.parse(metadata.tephra_restore);
    expect(await pool.ceph.run("ceph", "osd", "blocklist", "ls")).not.toContain(writer);
    const heir = await instance.startWorker({}, onHost("other"));
    await user.volumeIn(target, "available");
    await atRest(instance);
    expect(await ceph.isSame(target, expected)).toBe(true);
    expect((await pool.ceph.run("ceph", "osd", "blocklist", "ls")).includes(writer)).toBe(isShutOut);
    expect((await user.must("GET", `/volumes/${target}`)).volume.metadata).toEqual({ src_backup_id: backup });
    await heir.stop({ signal: "SIGKILL" });
  });

  it("and is only late: what it still sends is refused, and the volume is its owner's", async () => {
    const { user, service } = world;
    const { id } = await user.createVolume({ name: "data" });
    await ceph.write(id, 0, 8 * MiB, "late");
    const worker = await instance.startWorker();
    const backup = await backedUp(instance, ask, id);
    const limit = "/ops/limits/repositories/repository/main";
    const asAdmin = { "x-auth-token": service.token };
    const set = await instance.request("PUT", limit, { bytes_per_second: 256 * 1024 }, asAdmin);
    expect(set.status, set.text).toBe(200);
    await worker.stop({ signal: "SIGKILL" });
    const late = await instance.startWorker();
    const { id: target } = await user.createVolume({ name: "target" });
    await restoreTo(ask, backup, target);
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
    expect(await ceph.isSame(target, await ceph.keep(id, "late"))).toBe(true);
    await ceph.write(target, 0, 9 * MiB, "owner");
    const owners = await ceph.keep(target, "owner");
    process.kill(server, "SIGCONT");
    late.kill("SIGCONT");
    await instance.waitFor(() => childOf(late.pid, "qemu-nbd") === null, { what: "the late one has given up" });
    expect(await ceph.isSame(target, owners)).toBe(true);
    await late.stop({ signal: "SIGKILL" });
    await heir.stop({ signal: "SIGKILL" });
  });
});

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
    [{ driver_volume_type: "nvmeof" }, /driver_volume_type "nvmeof" is none of local, /],
    [{ driver_volume_type: "local", device_path: "/etc/passwd" }, /is not inside an allowed folder/],
  ];
  const before = await ceph.objects();
  const lies = cases.map(([lie]) => lie);
  await using proxy = await startLyingCinder(cinder.url, lies, other);
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
  expect(await ceph.objects()).toEqual(before);
  const rows = JSON.stringify(
    await hostile.sql("SELECT o, t, b FROM operations o JOIN tasks t ON t.operation_id = o.id, backups b"),
  );
  expect(`${rows}${hostile.logs()}`).not.toContain(canary.slice(0, 10));
});
