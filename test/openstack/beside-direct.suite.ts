import { chmodSync, existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { crashAt } from "../kit/crash-at.ts";
import type { Instance } from "../kit/instance.ts";
import { times } from "../kit/long.ts";
import {
  accept,
  asking,
  atRest,
  attachToGuest,
  type BesideWorld,
  backedUp,
  briskConfig,
  detached,
  ended,
  restoredTo,
  snapshotOf,
} from "./beside-world.ts";
import { image, type RbdWorld, startRbdWorld } from "./rbd-world.ts";

const MiB = 2 ** 20;

let ceph: RbdWorld;
let world: BesideWorld;
let instance: Instance;
let ask: ReturnType<typeof asking>;
/** Where this file is, Ceph's list of changes is empty. */
let silence: string;

beforeAll(async () => {
  ceph = await startRbdWorld({ direct_hosts: ["other@*", "stor*@storage"] }, (home) => {
    silence = join(home, "silence");
    mkdirSync(join(home, "bin"));
    const lines = ["#!/bin/sh", `for each; do [ "$each" = diff ] && [ -e ${silence} ] && exit 0; done`];
    lines.push("PATH=$(echo $PATH | cut -d: -f2-)", "export PATH", 'exec rbd "$@"');
    writeFileSync(join(home, "bin/rbd"), `${lines.join("\n")}\n`);
    chmodSync(join(home, "bin/rbd"), 0o755);
    return join(home, "bin");
  });
  world = ceph.world;
  instance = await world.start({
    workers: 0,
    config: {
      ...briskConfig,
      reaper: { interval_hours: null, grace_minutes: 0 },
    },
  });
  ask = asking(instance, world.user);
});
afterAll(async () => {
  await instance?.[Symbol.asyncDispose]();
  await ceph?.[Symbol.asyncDispose]();
});

/** Of a volume's image. */
async function snapshots(id: string): Promise<string[]> {
  const listed = await ceph.pool.ceph.run("rbd", "snap", "ls", "--format", "json", image(id));
  return (JSON.parse(listed) as { name: string }[]).map(({ name }) => name).sort();
}

const ofBackup = (id: string) => expect.stringMatching(new RegExp(`^backup\\.${id}\\.snap\\.[0-9]+\\.[0-9]{2}$`));

/** The snapshot whose changes a backup has believed; undefined where it has read everything. */
async function believed(backup: string): Promise<string | undefined> {
  const [row] = await instance.sql(
    "SELECT plan->'changes'->>'since' AS since FROM operations WHERE backup_id = $1 AND kind = 'backup-create'",
    [backup],
  );
  return row.since ?? undefined;
}

it("images are snapshotted in Ceph and not cloned: full, incremental by what has changed, of a snapshot, in use; the last snapshot is kept", async () => {
  const { user, service } = world;
  const mine = { instance, ask, user };
  const worker = await instance.startWorker();
  const { id } = await user.createVolume({ name: "data" });
  await ceph.write(id, 5 * MiB, 3 * MiB, "one");
  const first = await ceph.keep(id, "first");
  const full = await accept(ask, { volume_id: id });
  const seen = new Set<string>();
  await instance.waitFor(
    async () => {
      for (const volume of await service.volumes()) seen.add(`${volume.name} ${volume.status}`);
      return (await ask("GET", `/backups/${full}`)).body.backup.status !== "creating";
    },
    { what: "the backup has ended", timeoutMs: 60_000 },
  );
  await ended(instance, ask, full);
  await atRest(instance);
  expect([...seen]).toEqual(["data available"]);
  expect(await snapshots(id)).toEqual([ofBackup(full)]);

  await ceph.write(id, 700 * MiB, MiB, "two");
  const snapshot = await snapshotOf(user, id);
  const second = await ceph.keep(id, "second");
  await ceph.write(id, 100 * MiB, MiB, "three");
  const third = await ceph.keep(id, "third");
  const ofSnapshot = await backedUp(instance, ask, id, { snapshot_id: snapshot, incremental: true });
  const attachment = await attachToGuest(user, id);
  const inUse = await backedUp(instance, ask, id, { force: true, incremental: true });
  await detached(user, id, attachment);
  expect([await believed(full), await believed(ofSnapshot), await believed(inUse)]).toEqual([
    undefined,
    full,
    ofSnapshot,
  ]);
  expect(await snapshots(id)).toEqual([ofBackup(inUse), `snapshot-${snapshot}`]);
  for (const [backup, expected] of [
    [full, first],
    [ofSnapshot, second],
    [inUse, third],
  ] as const) {
    expect(await ceph.isSame(await restoredTo(mine, backup, null), expected)).toBe(true);
  }
  await worker.stop({ signal: "SIGKILL" });
});

/** Bytes of the volume that a backup has read, as its tasks have counted. */
async function bytesRead(backup: string): Promise<number> {
  const [{ bytes }] = await instance.sql(
    `SELECT sum((report ->> 'bytesRead')::float8) AS bytes FROM tasks JOIN operations ON operations.id = operation_id
     WHERE backup_id = $1 AND tasks.kind = 'copy'`,
    [backup],
  );
  return bytes;
}

it("an incremental reads what has changed, 64 MiB in 4 GiB in the long form, and 1 % of the rest", async () => {
  const { user } = world;
  const worker = await instance.startWorker();
  const size = times({ usual: 1, long: 4 });
  const { id } = await user.createVolume({ size, name: "data" });
  const places = Array.from({ length: 4 * size }, (_, n) => n * 256 * MiB);
  // Where there was nothing before, Ceph tells of its object from the beginning.
  for (const place of places) await ceph.write(id, place, 8 * MiB, `first ${place}`);
  const full = await backedUp(instance, ask, id);
  for (const place of places) await ceph.write(id, place + MiB, 4 * MiB, `second ${place}`);
  const expected = await ceph.keep(id, "changed");
  const next = await backedUp(instance, ask, id, { incremental: true });
  expect(await believed(next)).toBe(full);
  const changed = places.length * 4 * MiB;
  const read = await bytesRead(next);
  process.stderr.write(`${read / MiB} MiB read of ${size} GiB, ${changed / MiB} MiB of them changed\n`);
  expect(read).toBeGreaterThanOrEqual(changed);
  // Of each object's length of 50 MiB, 1 % is rounded up to a block of 32 KiB.
  expect(read).toBeLessThanOrEqual(changed + size * (0.01 + 1 / 1_600) * 2 ** 30);
  expect(await ceph.isSame(await restoredTo({ instance, ask, user }, next, null), expected)).toBe(true);
  await worker.stop({ signal: "SIGKILL" });
});

it("the kept snapshot does not keep a volume from being deleted, and goes with the backup; what is not ours stays", async () => {
  const { user, service } = world;
  const worker = await instance.startWorker();
  const { id } = await user.createVolume({ name: "data" });
  const decoy = "backup.11111111-2222-4333-8444-555555555555.snap.1700000000.00";
  await ceph.pool.ceph.run("rbd", "snap", "create", "--no-progress", `${image(id)}@${decoy}`);
  const backup = await backedUp(instance, ask, id);
  expect(new Set(await snapshots(id))).toEqual(new Set([decoy, ofBackup(backup)]));
  const reap = async () => {
    const asAdmin = { "x-auth-token": service.token };
    const asked = await instance.request("POST", "/ops/repositories/main/reap", {}, asAdmin);
    expect(asked.status, asked.text).toBe(202);
    await atRest(instance);
  };
  await reap();
  expect((await snapshots(id)).length).toBe(2);
  expect((await ask("DELETE", `/backups/${backup}`)).status).toBe(202);
  await atRest(instance);
  await reap();
  expect(await snapshots(id)).toEqual([decoy]);
  await backedUp(instance, ask, id);
  await user.must("DELETE", `/volumes/${id}`);
  const gone = async () => (await user.call("GET", `/volumes/${id}`)).status === 404;
  await instance.waitFor(gone, { what: "the volume is gone", timeoutMs: 60_000 });
  expect(await ceph.objects()).not.toContain(`volume-${id}`);
  await worker.stop({ signal: "SIGKILL" });
});

it("a list of changes that is not true is noticed: the backup fails, and no later one believes it", async () => {
  const { user } = world;
  const mine = { instance, ask, user };
  const worker = await instance.startWorker();
  const { id } = await user.createVolume({ name: "data" });
  await backedUp(instance, ask, id);
  // Of 1 % of the blocks that are read beside the list, one is surely among these.
  await ceph.write(id, 0, 256 * MiB, "silent");
  const written = await ceph.keep(id, "written");
  writeFileSync(silence, "");
  const misled = await accept(ask, { volume_id: id, incremental: true });
  const { fail_reason: reason } = await ended(instance, ask, misled, "error");
  expect(reason).toMatch(/^The storage does not report all changes/);
  await atRest(instance);
  const next = await backedUp(instance, ask, id, { incremental: true });
  rmSync(silence);
  expect(existsSync(silence)).toBe(false);
  expect(await believed(next)).toBe(undefined);
  expect(await ceph.isSame(await restoredTo(mine, next, null), written)).toBe(true);
  expect(await snapshots(id)).toEqual([ofBackup(next)]);
  await worker.stop({ signal: "SIGKILL" });
});

describe("a worker dies during a backup", () => {
  it.each([
    "cinder.show-volume",
    "cinder.show-volume.answered",
    "plan-backup.reporting",
    "plan-backup.done",
    "tidy.reporting",
  ])("at %s: the backup is made, and one snapshot is left", async (point) => {
    const { id } = await world.user.createVolume({ name: "data" });
    await ceph.write(id, 0, MiB, point);
    const mortal = await instance.startWorker(crashAt(`${point}:1`));
    const backup = await accept(ask, { volume_id: id });
    await instance.waitFor(() => !mortal.running(), { what: `the worker died at ${point}`, timeoutMs: 30_000 });
    const heir = await instance.startWorker();
    await ended(instance, ask, backup);
    await atRest(instance);
    expect(await snapshots(id)).toEqual([ofBackup(backup)]);
    await heir.stop({ signal: "SIGKILL" });
  });
});
