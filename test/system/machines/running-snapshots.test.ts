import { randomBytes, randomInt } from "node:crypto";
import { readdir } from "node:fs/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { type BackupWorld, openBackupWorld } from "../../kit/machine-backups.ts";
import { SnapshotMachine } from "../../kit/snapshot-machine.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const stack = new AsyncDisposableStack();
let world: BackupWorld;
beforeAll(async () => {
  world = await openBackupWorld(stack);
}, 600_000);
afterAll(() => stack.disposeAsync());

const cow = (sizeBytes: number) => ({ sizeBytes, format: "cow" as const });

async function fill(machine: SnapshotMachine): Promise<void> {
  for (const [disk, bytes] of machine.disks) {
    const at = 64 * KiB * randomInt(bytes.length / (64 * KiB) - 2);
    await machine.write(disk, randomBytes(96 * KiB), at);
  }
}

/** Layers, and images of snapshots. */
const kept = async (): Promise<string[]> =>
  (await readdir(world.imagesDir)).filter((name) => /^\.l(?:ayer|ive)-|^snapshot-/.test(name)).sort();

it("a snapshot of a machine that runs keeps its disks as layers, and goes while it runs", async () => {
  const machine = await SnapshotMachine.create(world, "live", [cow(4 * MiB), cow(2 * MiB)]);
  await machine.start();
  await fill(machine);
  await machine.snapshot();
  await fill(machine);
  await machine.check();
  await machine.readSnapshot(0);
  await machine.snapshot();
  await fill(machine);
  await machine.snapshot();
  await fill(machine);
  await machine.check();
  for (const at of [0, 1, 0]) {
    await machine.removeSnapshot(at);
    await fill(machine);
    await machine.check();
  }
  // What the machine writes is merged into the layer below when it is off.
  expect((await kept()).filter((name) => name.startsWith("snapshot-"))).toEqual([]);
  await machine.stop();
  await machine.check();
  await machine.snapshot();
  await machine.removeSnapshot(0);
  await machine.check();
  expect(await kept()).toEqual([]);
});

it("what a machine writes after a snapshot is there when it is started again, however it ended", async () => {
  const machine = await SnapshotMachine.create(world, "again", [cow(2 * MiB)]);
  await machine.start();
  for (const kill of [false, true]) {
    await fill(machine);
    await machine.snapshot();
    await fill(machine);
    await machine.stop({ kill });
    await machine.check();
    await machine.start();
    await fill(machine);
    await machine.check();
  }
  await machine.removeSnapshot(0);
  await machine.check();
  await machine.snapshot();
  await fill(machine);
  await machine.stop();
  await machine.check();
  await machine.goBack(0);
  await machine.check();
});

it("checkpoints outlast snapshots of a machine that runs, and their removal", async () => {
  const machine = await SnapshotMachine.create(world, "recorded live", [cow(4 * MiB), cow(2 * MiB)]);
  await machine.start();
  await fill(machine);
  const full = await machine.backUp(null);
  await fill(machine);
  await machine.snapshot();
  await fill(machine);
  const second = await machine.backUp(full);
  await machine.snapshot();
  await fill(machine);
  await machine.removeSnapshot(0);
  await fill(machine);
  await machine.backUp(full);
  await machine.removeSnapshot(0);
  await fill(machine);
  await machine.snapshot();
  await fill(machine);
  await machine.backUp(second);
  await machine.removeSnapshot(0);
  await machine.backUp(full);
  await machine.checkCheckpoints();
  await machine.stop();
  await machine.backUp(second);
  await machine.checkCheckpoints();
  await world.nothingIsLeft();
});
