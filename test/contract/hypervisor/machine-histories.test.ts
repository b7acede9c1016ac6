import { randomInt, randomUUID } from "node:crypto";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, expect, test } from "vitest";
import { times } from "../../kit/long.ts";
import { MachineModel, type ModelDisk } from "../../kit/machine-model.ts";
import { type Random, randomFrom } from "../../kit/random.ts";
import { installStorageDaemon } from "../../kit/storage-daemon.ts";

const clusterBytes = 65_536;
const clusters = 24;
const layersMax = 4;
const histories = times({ usual: 3, long: 300 });
const steps = times({ usual: 14, long: 30 });
/** One history again: its seed. */
const given = process.env["TEPHRA_TEST_SEED"];

beforeAll(installStorageDaemon, 300_000);

async function write(model: MachineModel, random: Random, most: number): Promise<void> {
  for (let count = 1 + random(most); count > 0; count--) {
    const disk = model.disks[random(model.disks.length)] as ModelDisk;
    const length = 512 * (1 + random(2 * (clusterBytes / 512)));
    const at = 512 * random((disk.bytes.length - length) / 512);
    await model.write(disk, Buffer.alloc(length, random(8) === 0 ? 0 : 1 + random(255)), at);
  }
}

/** Full, incremental to the newest checkpoint, differential to an older one, or mixed. */
async function backup(model: MachineModel, random: Random): Promise<string> {
  const since = new Map<string, string>();
  const chosen = [...model.checkpoints.keys()][random(model.checkpoints.size + 1)];
  for (const { id } of model.disks) {
    if (chosen !== undefined && model.checkpoints.get(chosen)?.has(id) && random(5) > 0) since.set(id, chosen);
  }
  const checkpoint = random(4) > 0 ? randomUUID() : null;
  await model.backup(since, checkpoint, async () => {
    if (model.isOn) await write(model, random, 4);
  });
  return `backup of ${model.disks.length - since.size} in full, ${since.size} by changes`;
}

/** One step. @returns what was done */
async function step(model: MachineModel, random: Random): Promise<string> {
  const depth = (model.disks[0] as ModelDisk).layers.length;
  switch (random(13)) {
    case 0:
    case 1:
      if (depth >= layersMax) return "nothing";
      await model.snapshot();
      return "snapshot";
    case 2:
    case 3: {
      if (depth === 1) return "nothing";
      const below = 1 + random(depth - 1);
      await model.removeSnapshot(below);
      return `removal of snapshot ${below} of ${depth - 1}`;
    }
    case 4:
    case 5:
    case 6:
    case 7:
      return await backup(model, random);
    case 8: {
      const id = [...model.checkpoints.keys()][random(model.checkpoints.size || 1)];
      if (id !== undefined) await model.removeCheckpoint(id);
      return "removal of a checkpoint";
    }
    case 9: {
      if (model.isOn) return "nothing";
      const disk = model.disks[random(model.disks.length)] as ModelDisk;
      await model.resize(disk, disk.bytes.length + clusterBytes * (1 + random(4)));
      return "growth";
    }
    case 10:
      if (random(3) > 0) return "nothing";
      if (model.isOn) await model.kill();
      else if (depth > 1) await model.removeSnapshotKilled(1 + random(depth - 1), random(40));
      else await model.killPool(await model.open());
      return "kill -9";
    default:
      if (!model.isOn) await model.start();
      else {
        await model.shutDown();
        await model.checkImages();
      }
      return model.isOn ? "start" : "shutdown";
  }
}

async function history(seed: number): Promise<void> {
  const random = randomFrom(seed);
  const home = await mkdtemp(join(tmpdir(), "tephra-h-"));
  const done: string[] = [];
  try {
    const formats = [["qcow2", "qcow2"] as const, ["qcow2", "raw"] as const][random(4) === 0 ? 1 : 0];
    await using model = await MachineModel.create(home, formats ?? [], clusters * clusterBytes);
    await model.start();
    for (let count = 0; count < steps; count++) {
      if (model.isOn) await write(model, random, 3);
      done.push(await step(model, random));
      await model.check();
    }
    await model.close();
    if (model.isOn) await model.shutDown();
    await model.checkImages();
    expect(await readdir(model.scratchFolder)).toEqual([]);
    expect((await readdir(join(home, "r"))).filter((name) => name.startsWith("tephra-pool-"))).toEqual([]);
  } catch (error) {
    throw new Error(`seed ${seed}, after ${done.join(", ")}`, { cause: error });
  } finally {
    await rm(home, { recursive: true, force: true });
  }
}

const seeds = given === undefined ? Array.from({ length: histories }, () => randomInt(2 ** 31)) : [Number(given)];

test.each(seeds)("images, backups and checkpoints are right through a random history (seed %i)", history, 300_000);
