import { randomBytes, randomInt } from "node:crypto";
import { afterAll, beforeAll, it } from "vitest";
import { times } from "../../kit/long.ts";
import { type BackupWorld, openBackupWorld } from "../../kit/machine-backups.ts";
import { type Random, randomFrom } from "../../kit/random.ts";
import { SnapshotMachine } from "../../kit/snapshot-machine.ts";
import { patience } from "../../kit/wait-for.ts";

const KiB = 1024;
const sizeBytes = 512 * KiB;
const histories = times({ usual: 20, long: 300 });
const steps = times({ usual: 4, long: 12 });
/** Several at a time: they share the service, and nothing else. */
const atOnce = 5;
/** One history again: its seed. */
const given = process.env["TEPHRA_TEST_SEED"];

const stack = new AsyncDisposableStack();
let world: BackupWorld;
beforeAll(async () => {
  world = await openBackupWorld(stack, { workers: 2 });
}, 600_000);
afterAll(() => stack.disposeAsync());

async function write(machine: SnapshotMachine, random: Random): Promise<void> {
  for (const disk of machine.disks.keys()) {
    if (random(3) === 0) continue;
    const length = 512 * (1 + random(128));
    const bytes = random(6) === 0 ? Buffer.alloc(length) : randomBytes(length);
    await machine.write(disk, bytes, 512 * random((sizeBytes - length) / 512));
  }
}

const oneOf = <T>(all: readonly T[], random: Random): T | undefined => all[random(all.length || 1)];

/** One step. @returns what was done */
async function step(machine: SnapshotMachine, random: Random): Promise<string> {
  const kept = machine.snapshots.length;
  switch (random(11)) {
    case 0:
    case 1:
    case 2:
      if (kept === 4) return "nothing";
      await machine.snapshot();
      return "snapshot";
    case 3:
    case 4: {
      if (kept === 0) return "nothing";
      const at = random(kept);
      await machine.removeSnapshot(at);
      return `removal of snapshot ${at} of ${kept}`;
    }
    case 5: {
      if (kept === 0) return "nothing";
      const at = random(kept);
      await machine.goBack(at);
      return `back to snapshot ${at} of ${kept}`;
    }
    case 6: {
      if (kept === 0) return "nothing";
      const at = random(kept);
      const before = await machine.preview(at);
      await write(machine, random);
      const keeps = random(2) === 0;
      if (keeps) await machine.commitPreview(at);
      else await machine.undoPreview(before);
      return `preview of snapshot ${at} of ${kept}, ${keeps ? "committed" : "undone"}`;
    }
    case 7: {
      const id = oneOf([...machine.checkpoints.keys()], random);
      if (id !== undefined) await machine.removeCheckpoint(id);
      return "removal of a checkpoint";
    }
    default: {
      const since = random(4) === 0 ? undefined : oneOf([...machine.checkpoints.keys()], random);
      await machine.backUp(since ?? null);
      return since === undefined ? "full backup" : "backup by changes";
    }
  }
}

async function history(seed: number): Promise<void> {
  const random = randomFrom(seed);
  const formats = [["cow"], ["cow", "cow"], ["cow", "raw"]][random(3)] as ("cow" | "raw")[];
  const done: string[] = [];
  try {
    const disks = formats.map((format) => ({ sizeBytes, format }));
    const machine = await SnapshotMachine.create(world, `history-${seed}`, disks);
    for (let count = 0; count < steps; count++) {
      await write(machine, random);
      done.push(await step(machine, random));
    }
    await machine.checkCheckpoints();
    await machine.check();
  } catch (error) {
    throw new Error(`seed ${seed}, after ${done.join(", ")}`, { cause: error });
  }
}

const seeds = given === undefined ? Array.from({ length: histories }, () => randomInt(2 ** 31)) : [Number(given)];

it(
  `disks, snapshots, backups and checkpoints are right through ${seeds.length} random histories`,
  async () => {
    const left = [...seeds];
    const walk = async (): Promise<void> => {
      for (let seed = left.shift(); seed !== undefined; seed = left.shift()) await history(seed);
    };
    const ended = await Promise.allSettled(Array.from({ length: atOnce }, walk));
    for (const each of ended) if (each.status === "rejected") throw each.reason;
    await world.nothingIsLeft();
  },
  times({ usual: 300_000, long: 7_200_000 }) * patience,
);
