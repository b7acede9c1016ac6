import { spawnSync } from "node:child_process";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { crashAt } from "../kit/crash-at.ts";
import type { Instance } from "../kit/instance.ts";
import { times } from "../kit/long.ts";
import { patience } from "../kit/wait-for.ts";
import {
  accept,
  asking,
  atRest,
  type BesideWorld,
  briskConfig,
  ended,
  restoredTo,
  restoreTo,
  same,
  startWorld,
  write,
} from "./beside-world.ts";

const MiB = 2 ** 20;

let world: BesideWorld;
let instance: Instance;
let ask: ReturnType<typeof asking>;
let volume: string;
let backup: string;

beforeAll(async () => {
  world = await startWorld();
  instance = await world.start({
    workers: 0,
    backend: { wait: { prepare_seconds: 4 * patience } },
    config: {
      ...briskConfig,
      worker: { lease_ms: 1_500 * patience, heartbeat_ms: 500 },
    },
  });
  ask = asking(instance, world.user);
  volume = (await world.user.createVolume({ name: "data" })).id;
  write(world.cinder.file(volume), 3 * MiB, MiB, "crashes");
  const worker = await instance.startWorker();
  backup = await accept(ask, { volume_id: volume });
  await ended(instance, ask, backup);
  await atRest(instance);
  await worker.stop({ signal: "SIGKILL" });
});
afterAll(async () => {
  await instance?.[Symbol.asyncDispose]();
  await world?.[Symbol.asyncDispose]();
});

/** What there is in Cinder: each volume with its status, and all attachments. */
async function objects(): Promise<string[]> {
  const volumes = await world.service.volumes();
  const { attachments } = await world.service.must("GET", "/attachments?all_tenants=1");
  return [
    ...volumes.map(({ id, status, metadata }) => `${id} ${status} ${JSON.stringify(metadata)}`),
    ...attachments.map(({ id }: { id: string }) => id),
  ].sort();
}

/** Starts a worker that dies at that point, has `work` done, waits for its death, and lets another one go on. */
async function dying(point: string, work: () => Promise<void>): Promise<void> {
  const mortal = await instance.startWorker(crashAt(`${point}:1`));
  await work();
  await instance.waitFor(() => !mortal.running(), { what: `the worker died at ${point}`, timeoutMs: 20_000 });
  const heir = await instance.startWorker();
  await atRest(instance);
  await heir.stop({ signal: "SIGKILL" });
}

describe("a worker dies during a backup", () => {
  it.each([
    "cinder.list-volumes",
    "cinder.create-volume",
    "cinder.create-volume.answered",
    "cinder.list-attachments",
    "cinder.attach",
    "cinder.attach.answered",
    "cinder.complete",
    "cinder.complete.answered",
    "plan-backup.reporting",
    "plan-backup.done",
    "cinder.detach",
    "cinder.detach.answered",
    "cinder.delete-volume",
    "cinder.delete-volume.answered",
    "tidy.reporting",
  ])("at %s: the backup is made, and nothing of it is left in Cinder", async (point) => {
    const before = await objects();
    let id = "";
    await dying(point, async () => {
      id = await accept(ask, { volume_id: volume });
    });
    await ended(instance, ask, id);
    expect(await objects()).toEqual(before);
  });
});

describe("a worker dies during a restore", () => {
  it.each([
    "cinder.set-metadata",
    "cinder.set-metadata.answered",
    "cinder.connect",
    "cinder.connect.answered",
    "cinder.complete.answered",
    "cinder.os-reset-status",
    "cinder.os-reset-status.answered",
    "plan-restore",
    "cinder.detach",
    "cinder.detach.answered",
    "plan-restore.reporting",
    "plan-restore.done",
    "cinder.delete-metadata",
    "tidy.reporting",
  ])("at %s: the volume has the bytes and is available, once", async (point) => {
    const { id: target } = await world.user.createVolume({ name: "target" });
    write(world.cinder.file(target), 0, MiB, "old");
    const before = await objects();
    await dying(point, async () => {
      const reply = await ask("POST", `/backups/${backup}/restore`, { restore: { volume_id: target } });
      expect(reply.status, reply.text).toBe(202);
    });
    const restored = await world.user.volumeIn(target, "available");
    expect(restored.metadata).toEqual({ src_backup_id: backup });
    expect(same(world.cinder.file(volume), world.cinder.file(target))).toBe(true);
    expect((await ask("GET", `/backups/${backup}`)).body.backup.status).toBe("available");
    const others = (all: string[]) => all.filter((each) => !each.startsWith(target));
    expect(others(await objects())).toEqual(others(before));
    await world.user.must("DELETE", `/volumes/${target}`);
    await gone(target);
  });
});

/** Whether a process has a lock on a file; only while nobody is about to take it. */
const isLocked = (file: string): boolean => spawnSync("flock", ["--nonblock", file, "true"]).status === 1;

const lateOnes = times({ usual: 1, long: 50 });

it(`a worker is only late in a restore, ${lateOnes} times: nobody writes beside it, and the volume is not available`, {
  timeout: patience * (60_000 + lateOnes * 120_000),
}, async () => {
  const { user, service } = world;
  const limit = "/ops/limits/repositories/repository/main";
  const asAdmin = { "x-auth-token": service.token };
  for (let round = 0; round < lateOnes; round += 1) {
    const { id: target } = await user.createVolume({ name: "target" });
    const file = world.cinder.file(target);
    const set = await instance.request("PUT", limit, { bytes_per_second: 64 * 1024 }, asAdmin);
    expect(set.status, set.text).toBe(200);
    const late = await instance.startWorker();
    await restoreTo(ask, backup, target);
    const writes = (): boolean => {
      late.kill("SIGSTOP");
      if (isLocked(file)) return true;
      late.kill("SIGCONT");
      return false;
    };
    await instance.waitFor(writes, { what: "it has the volume's file", timeoutMs: 60_000 });
    expect((await instance.request("DELETE", limit, undefined, asAdmin)).status).toBe(204);
    const heir = await instance.startWorker();
    const { attachments } = await user.volumeIn(target, "error_restoring");
    await atRest(instance);
    expect(attachments).toEqual([]);
    const [row] = await instance.sql("SELECT fail_reason FROM operations WHERE volume_id = $1", [target]);
    expect(row.fail_reason, `round ${round}`).toMatch(/^A restore that was given up has not let go of /);
    late.kill("SIGCONT");
    await instance.waitFor(() => !isLocked(file), { what: "the late one has given up", timeoutMs: 60_000 });
    await service.must("POST", `/volumes/${target}/action`, { "os-reset_status": { status: "available" } });
    await restoredTo({ instance, ask, user }, backup, target);
    expect(same(world.cinder.file(volume), file), `round ${round}`).toBe(true);
    for (const each of [late, heir]) await each.stop({ signal: "SIGKILL" });
    expect(same(world.cinder.file(volume), file), `round ${round}`).toBe(true);
    await user.must("DELETE", `/volumes/${target}`);
    await gone(target);
  }
});

const gone = (id: string) =>
  instance.waitFor(async () => (await world.user.call("GET", `/volumes/${id}`)).status === 404, { what: "it is gone" });

describe("the API dies while it accepts a restore", () => {
  it.each([
    ["cinder.create-volume", "new"],
    ["cinder.create-volume.answered", "new"],
    ["cinder.show-volume", "new"],
    ["cinder.attach", "new"],
    ["cinder.attach.answered", "new"],
    ["cinder.show-volume.answered", "existing"],
    ["cinder.attach", "existing"],
    ["cinder.attach.answered", "existing"],
  ])("at %s, to the %s volume: nothing is left of it, and nothing is held", async (point, kind) => {
    const target = kind === "existing" ? (await world.user.createVolume({ name: "target" })).id : null;
    const before = await objects();
    const worker = await instance.startWorker();
    await instance.killApi();
    const mortal = await instance.startApi(crashAt(`${point}:1`));
    await expect(ask("POST", `/backups/${backup}/restore`, { restore: { volume_id: target } })).rejects.toThrow();
    await instance.waitFor(() => !mortal.running(), { what: `the API died at ${point}` });
    await instance.startApi();
    await atRest(instance);
    expect((await ask("GET", `/backups/${backup}`)).body.backup.status).toBe("available");
    expect(await objects()).toEqual(before);
    await worker.stop({ signal: "SIGKILL" });
    if (target !== null) await world.user.must("DELETE", `/volumes/${target}`);
    if (target !== null) await gone(target);
  });
});
