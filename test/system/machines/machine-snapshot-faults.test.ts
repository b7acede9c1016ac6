import { randomBytes } from "node:crypto";
import { readdir } from "node:fs/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Program } from "../../../scripts/spawn-program.ts";
import { crashAt } from "../../kit/crash-at.ts";
import { firstOf } from "../../kit/long.ts";
import { type BackupWorld, openBackupWorld } from "../../kit/machine-backups.ts";
import { SnapshotMachine } from "../../kit/snapshot-machine.ts";

const KiB = 1024;
const stack = new AsyncDisposableStack();
let world: BackupWorld;
let machine: SnapshotMachine;
/** It runs. */
let live: SnapshotMachine;
let worker: Program;
beforeAll(async () => {
  world = await openBackupWorld(stack, { workers: 0 });
  worker = await world.instance.startWorker();
  const formats = ["cow", "cow", "raw"] as const;
  const disks = formats.map((format) => ({ sizeBytes: 512 * KiB, format }));
  machine = await SnapshotMachine.create(world, "killed", disks);
  live = await SnapshotMachine.create(world, "killed live", disks.slice(0, 2));
  await live.start();
  stack.defer(() => live.stop());
}, 600_000);
afterAll(() => stack.disposeAsync());

async function write(machine: SnapshotMachine): Promise<void> {
  for (const disk of machine.disks.keys()) await machine.write(disk, randomBytes(64 * KiB), 128 * KiB);
}

/** What was asked for while a worker lived that dies at that point is done by the next one. */
async function dyingAt(point: string, act: () => Promise<void>): Promise<void> {
  worker.kill("SIGTERM");
  await worker.exited;
  const dying = await world.instance.startWorker(crashAt(point));
  const acting = act();
  expect((await dying.exited).signal).toBe("SIGKILL");
  worker = await world.instance.startWorker();
  await acting;
}

/** Nothing anywhere is locked, and every image holds what it must. */
async function isWhole(machine: SnapshotMachine): Promise<void> {
  await machine.free();
  const [left] = await world.instance.sql(
    `SELECT (SELECT count(*) FROM groups WHERE operation_id IS NOT NULL)::int AS machines,
      (SELECT count(*) FROM volumes WHERE status NOT IN ('available', 'in-use'))::int AS disks,
      (SELECT count(*) FROM snapshots WHERE status <> 'available')::int AS snapshots`,
  );
  expect(left).toEqual({ machines: 0, disks: 0, snapshots: 0 });
  await machine.check();
}

const taking = ["snapshot-group:3", "snapshot-group.reporting:1", "snapshot-group.claimed:1", "snapshot-group:1"];

it.each(firstOf(1, [...taking, "snapshot-group:2", "snapshot-group:5", "snapshot-group.done:1"]))(
  "a worker that dies at %s, while a snapshot is taken, leaves nothing locked",
  async (point) => {
    await write(machine);
    await dyingAt(point, async () => void (await machine.snapshot()));
    await isWhole(machine);
    await machine.removeSnapshot(0);
    await isWhole(machine);
  },
);

const removing = ["conclude-group:2", "conclude-group.reporting:1", "conclude-group.claimed:1", "conclude-group:1"];

it.each(firstOf(1, [...removing, "conclude-group:3", "conclude-group.done:1"]))(
  "a worker that dies at %s, while a snapshot is merged, leaves nothing locked and no layer",
  async (point) => {
    await write(machine);
    await machine.snapshot();
    await write(machine);
    await dyingAt(point, () => machine.removeSnapshot(0));
    await isWhole(machine);
    expect((await readdir(world.imagesDir)).filter((name) => name.startsWith("snapshot-"))).toEqual([]);
  },
);

it.each(firstOf(1, removing))(
  "a worker that dies at %s, while a machine goes back to a snapshot, leaves nothing locked",
  async (point) => {
    await write(machine);
    await machine.snapshot();
    await write(machine);
    await dyingAt(point, () => machine.goBack(0));
    await isWhole(machine);
    await machine.removeSnapshot(0);
    await isWhole(machine);
  },
);

const previewing = [...removing, "snapshot-group:3", "snapshot-group.done:1", "snapshot-group.reporting:1"];

it.each(firstOf(2, ["conclude-group:2", "snapshot-group.done:1", ...previewing]))(
  "a worker that dies at %s, while a snapshot is previewed, leaves nothing locked and nothing lost",
  async (point) => {
    await write(machine);
    await machine.snapshot();
    await write(machine);
    let before = new Map<string, Buffer>();
    await dyingAt(point, async () => {
      before = await machine.preview(0);
    });
    await isWhole(machine);
    await write(machine);
    await machine.undoPreview(before);
    await isWhole(machine);
    await machine.removeSnapshot(0);
    await isWhole(machine);
    expect((await readdir(world.imagesDir)).filter((name) => name.startsWith("snapshot-"))).toEqual([]);
  },
);

it.each(firstOf(2, removing))(
  "a worker that dies at %s, while a preview is committed or undone, leaves nothing locked and nothing lost",
  async (point) => {
    await write(machine);
    await machine.snapshot();
    await write(machine);
    await machine.snapshot();
    await write(machine);
    const before = await machine.preview(0);
    await write(machine);
    await dyingAt(point, () => machine.undoPreview(before));
    await isWhole(machine);
    await machine.preview(0);
    await write(machine);
    await dyingAt(point, () => machine.commitPreview(0));
    await isWhole(machine);
    await machine.removeSnapshot(0);
    await isWhole(machine);
  },
);

// Of nine: each disk prepared, all, switching twice, each disk named and its snapshot made.
const takingLive = [6, 7, 5, 8, 4, 9, 3, 2, 1].map((at) => `snapshot-group:${at}`);

it.each(firstOf(2, [...takingLive, "snapshot-group.reporting:1", "snapshot-group.done:1"]))(
  "a worker that dies at %s, while a snapshot of a machine that runs is taken, leaves nothing locked and nothing lost",
  async (point) => {
    await write(live);
    await dyingAt(point, async () => void (await live.snapshot()));
    await isWhole(live);
    await write(live);
    await live.removeSnapshot(0);
    await isWhole(live);
    expect((await readdir(world.imagesDir)).filter((name) => name.startsWith(".live-"))).toEqual([]);
  },
);

it.each(firstOf(1, ["conclude-group:3", "conclude-group:4", "conclude-group.reporting:1", "conclude-group:2"]))(
  "a worker that dies at %s, while a snapshot of a machine that runs is merged, leaves nothing locked and nothing lost",
  async (point) => {
    await write(live);
    await live.snapshot();
    await write(live);
    await live.snapshot();
    await write(live);
    await dyingAt(point, () => live.removeSnapshot(0));
    await isWhole(live);
    await live.removeSnapshot(0);
    await isWhole(live);
  },
);

it("what an API has accepted that dies then is done, and nothing stays locked", async () => {
  await write(machine);
  await machine.snapshot();
  const { id } = machine;
  await world.answered(202, "POST", `/vms/${id}/snapshots`, { json: { description: "orphan" } });
  await world.instance.killApi("SIGKILL");
  await machine.free();
  await world.instance.startApi();
  const { json } = await world.answered(200, "GET", `/vms/${id}/snapshots`);
  expect(json.snapshot.map((each: { snapshot_status: string }) => each.snapshot_status)).toEqual(["ok", "ok", "ok"]);
  await isWhole(machine);
});
