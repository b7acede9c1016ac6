import { randomBytes, randomUUID } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, rm, unlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  CheckpointInvalidError,
  type Daemon,
  endDaemon,
  GuestNotFrozenError,
  HypervisorRefusedError,
  HypervisorUnavailableError,
  type MachineDisk,
  openMachineDisks,
  type RunContext,
  removeScratchFiles,
  ScratchFullError,
} from "@tephra/engine";
import { afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { QmpClient } from "../../../packages/engine/src/hypervisor/qmp/qmp-client.ts";
import { NbdClient } from "../../../packages/engine/src/volume/nbd/nbd-client.ts";
import { root } from "../../../scripts/bootstrap.mjs";
import { spawnProgram } from "../../../scripts/spawn-program.ts";
import { times } from "../../kit/long.ts";
import { MachineModel, type ModelDisk } from "../../kit/machine-model.ts";
import { startNbdWriter } from "../../kit/qemu.ts";
import { installStorageDaemon, readExport, startMachine } from "../../kit/storage-daemon.ts";
import { waitFor } from "../../kit/wait-for.ts";

const mebibyte = 1024 * 1024;
const free: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
const moment = { freezeLimitMs: 1_000, requireConsistency: false };
const full = { ...moment, since: new Map<string, string>(), checkpointIds: [], checkpointsMax: 32 };

let home: string;
beforeAll(installStorageDaemon, 300_000);
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "tephra-d-"));
});
afterEach(() => rm(home, { recursive: true, force: true }));

/** Every disk since the same checkpoint. */
const since = (model: MachineModel, id: string | undefined) =>
  new Map(model.disks.map((disk) => [disk.id, id as string]));

/** Each disk gets other bytes somewhere. */
async function changeAll(model: MachineModel): Promise<void> {
  for (const disk of model.disks) {
    const at = Math.floor(Math.random() * (disk.bytes.length / 65_536 - 2)) * 65_536;
    await model.write(disk, randomBytes(65_536 + 4096), at);
  }
}

test("checkpoints outlast snapshots, merges and shutdowns: incrementals and differentials restore every moment", async () => {
  await using model = await MachineModel.create(home, ["qcow2", "qcow2"], 4 * mebibyte);
  const ids = Array.from({ length: 6 }, () => randomUUID());
  const change = () => changeAll(model);
  await model.start();
  await change();
  await model.backup(new Map(), ids[0] as string, async () => change());
  await change();
  await model.backup(since(model, ids[0]), ids[1] as string, async () => change());
  await model.snapshot();
  await change();
  await model.backup(since(model, ids[1]), ids[2] as string, change);
  await model.backup(since(model, ids[0]), null, change);
  await model.snapshot();
  await change();
  await model.backup(since(model, ids[2]), ids[3] as string, change);
  await model.check();
  await model.removeSnapshot(2);
  await model.check();
  await change();
  await model.backup(since(model, ids[1]), null);
  await model.removeCheckpoint(ids[1] as string);
  await model.backup(since(model, ids[0]), ids[4] as string, change);
  await model.removeSnapshot(1);
  await model.check();
  await change();
  await model.backup(since(model, ids[2]), null);
  await model.shutDown();
  await model.checkImages();
  await model.check();
  await model.backup(since(model, ids[4]), ids[5] as string);
  await model.snapshot();
  await model.backup(since(model, ids[0]), null);
  await model.close();
  await model.checkImages();
  await model.start();
  await change();
  await model.backup(since(model, ids[5]), null, change);
  await model.removeSnapshot(1);
  await model.backup(since(model, ids[3]), null, change);
  await model.check();
  expect(await readdir(model.scratchFolder)).toEqual([]);
}, 120_000);

test("a raw disk has no checkpoints; layers above it do, as long as they are not written into it", async () => {
  await using model = await MachineModel.create(home, ["raw", "qcow2"], 2 * mebibyte);
  const [first, second, third] = [randomUUID(), randomUUID(), randomUUID()];
  await model.start();
  await changeAll(model);
  await model.backup(new Map(), first);
  await model.check();
  await model.snapshot();
  await changeAll(model);
  await model.backup(new Map(), second);
  await changeAll(model);
  await model.snapshot();
  await changeAll(model);
  // Now the layer that began to record is written into the raw one.
  await model.removeSnapshot(2);
  await changeAll(model);
  await model.check();
  await model.backup(since(model, second), third);
  await model.removeSnapshot(1);
  await model.check();
  await model.backup(new Map([[(model.disks[1] as ModelDisk).id, third]]), null);
  await model.shutDown();
  await model.checkImages();
}, 120_000);

test("a disk grows above kept snapshots, and its checkpoints stay valid, also when the snapshots go", async () => {
  await using model = await MachineModel.create(home, ["qcow2"], 2 * mebibyte);
  const [disk] = model.disks as [ModelDisk];
  const [first, second] = [randomUUID(), randomUUID()];
  await model.start();
  await changeAll(model);
  await model.backup(new Map(), first);
  await changeAll(model);
  await model.snapshot();
  await changeAll(model);
  await model.shutDown();
  await model.resize(disk, 3 * mebibyte);
  await model.start();
  await model.write(disk, randomBytes(65_536), 3 * mebibyte - 65_536);
  await model.backup(since(model, first), second);
  await model.snapshot();
  await changeAll(model);
  await model.check();
  await model.backup(since(model, first), null);
  await model.removeSnapshot(2);
  await model.check();
  await model.backup(since(model, first), null);
  await model.removeSnapshot(1);
  await model.backup(since(model, first), null);
  await model.backup(since(model, second), null);
  await model.shutDown();
  await model.checkImages();
}, 120_000);

test("what a killed machine had recorded is invalid: incrementals are refused, a full backup works", async () => {
  await using model = await MachineModel.create(home, ["qcow2"], 2 * mebibyte);
  const [disk] = model.disks as [ModelDisk];
  const [kept, lost] = [randomUUID(), randomUUID()];
  await model.start();
  await changeAll(model);
  await model.backup(new Map(), kept);
  await model.shutDown();
  await model.start();
  const opened = await model.open();
  const broken = model.backupOf(lost);
  await opened.startBackup(broken, full, free);
  await changeAll(model);
  await model.kill();
  expect(await readdir(model.scratchFolder)).toHaveLength(1);
  expect(await (await model.open()).checkpoints(model.named(disk))).toEqual([]);
  await model.close();
  await removeScratchFiles(broken);
  expect(await readdir(model.scratchFolder)).toEqual([]);
  await model.start();
  await expect(model.backup(since(model, kept), null)).rejects.toThrow(CheckpointInvalidError);
  expect(await readdir(model.scratchFolder)).toEqual([]);
  const next = randomUUID();
  await model.backup(new Map(), next);
  await changeAll(model);
  await model.backup(since(model, next), null);
  await model.check();
}, 120_000);

test("a snapshot in another machine takes that machine's writes until it is unplugged, and cannot be merged meanwhile", async () => {
  await using model = await MachineModel.create(home, ["qcow2"], 2 * mebibyte);
  const [disk] = model.disks as [ModelDisk];
  await model.start();
  await changeAll(model);
  await model.snapshot();
  const frozen = Buffer.from(disk.bytes);
  await changeAll(model);
  await using appliance = await startMachine(join(home, "r"), []);
  await using other = await openMachineDisks(
    {
      driver: "qmp",
      powerState: "ACTIVE",
      socket: appliance.qmpSocket,
      socketRoots: [home],
      runFolder: join(home, "r"),
      exportSocket: appliance.nbdSocket,
    },
    [],
  );
  const layer = disk.layers[1] as ModelDisk["layers"][0];
  const plugged = {
    id: randomUUID(),
    image: { id: disk.id, path: layer.path, format: layer.format },
    temporaryPath: join(model.scratchFolder, "attached"),
  };
  const shown = await other.plug(plugged);
  expect((await readExport(shown)).equals(frozen)).toBe(true);
  const guest = await NbdClient.open({ path: shown.socketPath }, shown.name, shown.name);
  await guest.write(randomBytes(65_536), 65_536);
  await guest.write(randomBytes(65_536), 0);
  expect((await readExport(await other.plug(plugged))).equals(frozen)).toBe(false);
  await expect(model.removeSnapshot(1)).rejects.toThrow(HypervisorRefusedError);
  await other.unplug(plugged);
  await expect(guest.read(Buffer.alloc(512), 0)).rejects.toThrow(/closed the connection/);
  expect(existsSync(plugged.temporaryPath)).toBe(false);
  await model.removeSnapshot(1);
  await model.backup(new Map(), null);
  // A disk that a running machine writes is nobody else's.
  const whole = { id: randomUUID(), image: model.named(disk), temporaryPath: null };
  await expect(other.plug(whole)).rejects.toThrow(/in use/);
  await model.shutDown();
  await model.checkImages();
  const written = await other.plug(whole);
  await using owner = await NbdClient.open({ path: written.socketPath }, written.name, written.name);
  await owner.write(Buffer.alloc(4096, 7), 0);
  disk.bytes.fill(7, 0, 4096);
  await other.unplug(whole);
  await model.checkImages();
}, 120_000);

test("a merge into a layer that another image builds on is refused, and may be asked for again when it is done", async () => {
  await using model = await MachineModel.create(home, ["qcow2"], 2 * mebibyte);
  const [disk] = model.disks as [ModelDisk];
  await model.start();
  await changeAll(model);
  await model.snapshot();
  const opened = await model.open();
  const [upper, lower] = disk.layers.map(({ path }) => path) as [string, string];
  const whole = model.named(disk);
  const plugged = {
    id: randomUUID(),
    image: { ...whole, path: lower },
    temporaryPath: join(model.scratchFolder, "attached"),
  };
  await opened.plug({ ...plugged, image: { ...plugged.image, id: randomUUID() } });
  const merge = { layerPath: upper, intoPath: lower };
  await expect(opened.mergeLayer(whole, merge, free)).rejects.toThrow(/builds on/);
  await opened.unplug(plugged);
  await opened.mergeLayer(whole, merge, free);
  await opened.mergeLayer(whole, merge, free);
  await expect(opened.mergeLayer(whole, { layerPath: lower, intoPath: upper }, free)).rejects.toThrow();
  expect(await readdir(join(home, "v"))).toHaveLength(1);
}, 120_000);

test("no more checkpoints are kept than asked for; the oldest go, and are named", async () => {
  await using model = await MachineModel.create(home, ["qcow2"], mebibyte);
  await model.start();
  const opened = await model.open();
  const ids = Array.from({ length: 4 }, () => randomUUID());
  const expired: string[][] = [];
  for (const [index, id] of ids.entries()) {
    const backup = model.backupOf(id);
    const options = { ...full, checkpointIds: ids.slice(0, index), checkpointsMax: 3 };
    expired.push((await opened.startBackup(backup, options, free)).expired);
    await opened.stopBackup(backup, { complete: true });
  }
  expect(expired).toEqual([[], [], [], [ids[0]]]);
  expect((await opened.checkpoints(model.named(model.disks[0] as ModelDisk))).sort()).toEqual(ids.slice(1).sort());
}, 120_000);

test("where a frozen guest is required and there is none, nothing is left of a snapshot or backup", async () => {
  await using model = await MachineModel.create(home, ["qcow2"], mebibyte);
  const [disk] = model.disks as [ModelDisk];
  const [first, second] = [randomUUID(), randomUUID()];
  await model.start();
  await changeAll(model);
  await model.backup(new Map(), first);
  await changeAll(model);
  const opened = await model.open();
  const layer = { disk: model.named(disk), overlayPath: join(home, "v", "overlay") };
  const frozen = { ...full, requireConsistency: true };
  await expect(opened.takeSnapshot([layer], frozen, free)).rejects.toThrow(GuestNotFrozenError);
  await expect(opened.startBackup(model.backupOf(second), frozen, free)).rejects.toThrow(GuestNotFrozenError);
  expect(await readdir(join(home, "v"))).toHaveLength(1);
  expect(await readdir(model.scratchFolder)).toEqual([]);
  await model.check();
  await model.backup(since(model, first), null);
}, 120_000);

const counterOf = (image: Buffer): number => Number(image.readBigUInt64BE());

test("the disks of a backup are of one moment in every round; backed up one by one they are not", async () => {
  await using model = await MachineModel.create(home, ["qcow2", "qcow2"], 8 * mebibyte);
  await model.start();
  const opened = await model.open();
  const writer = await startNbdWriter(
    model.machine.nbdSocket,
    model.all.map(({ id }) => id),
  );
  const counters = async (disks: MachineDisk[]): Promise<number[]> => {
    const backup = { ...model.backupOf(null), disks };
    const { exports } = await opened.startBackup(backup, full, free);
    const read: number[] = [];
    for (const part of exports) read.push(counterOf(await readExport(part)));
    await opened.stopBackup(backup, { complete: true });
    return read;
  };
  const states: number[][] = [];
  for (let round = 0; round < times({ usual: 5, long: 50 }); round++) states.push(await counters(model.all));
  expect(states.filter(([a = 0, b = 0]) => a < b || a - b > 1)).toEqual([]);
  expect(new Set(states.map(([a]) => a)).size).toBe(states.length);
  const [one = 0] = await counters(model.all.slice(0, 1));
  const [two = 0] = await counters(model.all.slice(1));
  expect(two).toBeGreaterThan(one);
  const last = await writer.stop();
  expect(await counters(model.all)).toEqual([last, last]);
}, 300_000);

test("a scratch folder that fills up ends the backup before a write of the machine fails", async () => {
  await using model = await MachineModel.create(home, ["qcow2"], 24 * mebibyte);
  const [disk] = model.disks as [ModelDisk];
  await model.start({ small: { folder: model.scratchFolder, bytes: 48 * mebibyte } });
  const scratchFolder = `/proc/${model.machine.program.pid}/root${model.scratchFolder}`;
  await model.write(disk, randomBytes(24 * mebibyte), 0);
  const opened = await model.open();
  const [id, checkpointId] = [randomUUID(), randomUUID()];
  const backup = { id, checkpointId, scratchFolder, disks: model.all, reserveBytes: 12 * mebibyte };
  await writeFile(join(scratchFolder, "other"), Buffer.alloc(20 * mebibyte));
  await expect(opened.startBackup(backup, full, free)).rejects.toThrow(ScratchFullError);
  await unlink(join(scratchFolder, "other"));
  const { exports } = await opened.startBackup(backup, full, free);
  const watching = expect(opened.watchBackup(backup, free.signal)).rejects.toThrow(ScratchFullError);
  // Others take so much of the space that there was that not all of the disk can be kept.
  await writeFile(join(scratchFolder, "other"), Buffer.alloc(30 * mebibyte));
  for (let at = 0; at < 24 * mebibyte; at += mebibyte) await model.write(disk, randomBytes(mebibyte), at);
  await watching;
  expect(await readdir(scratchFolder)).toEqual(["other"]);
  for (const part of exports) await expect(readExport(part)).rejects.toThrow(/no such export/);
  expect(await opened.checkpoints(model.named(disk))).toEqual([]);
  await unlink(join(scratchFolder, "other"));
  const again = await opened.startBackup({ ...backup, id: randomUUID() }, full, free);
  expect((await readExport(again.exports[0] as (typeof again.exports)[0])).equals(disk.bytes)).toBe(true);
}, 120_000);

test("a pool ends with its process, and what that leaves is removed", async () => {
  await using model = await MachineModel.create(home, ["qcow2", "raw"], mebibyte);
  const [disk] = model.disks as [ModelDisk];
  const backup = model.backupOf(randomUUID());
  const worker = await spawnProgram({
    name: "open-pool",
    command: process.execPath,
    args: [join(root, "test/kit/open-pool.ts"), JSON.stringify({ runFolder: join(home, "r"), backup })],
    env: process.env,
  });
  const line = await waitFor(() => /^\{.*\}$/m.exec(worker.tail())?.[0], { what: "the pool", context: worker.tail });
  const daemon = JSON.parse(line) as Daemon;
  // Whoever comes too early is refused.
  await expect(model.open()).rejects.toThrow(/in use/);
  worker.kill("SIGKILL");
  await worker.exited;
  await waitFor(() => !existsSync(`/proc/${daemon.pid}/cwd`), { what: "the daemon has ended", timeoutMs: 30_000 });
  await endDaemon(daemon);
  expect(await readdir(join(home, "r"))).toEqual([]);
  const opened = await model.open();
  await opened.stopBackup(backup, { complete: false });
  expect(await readdir(model.scratchFolder)).toEqual([]);
  expect(await opened.checkpoints(model.named(disk))).toEqual([]);
  // A pool that is there is ended by its pid and start; whatever else has that pid is not.
  const own = opened.daemon as Daemon;
  await endDaemon({ ...own, startTicks: own.startTicks + 1, folder: join(home, "none") });
  expect(await opened.checkpoints(model.named(disk))).toEqual([]);
  await endDaemon(own);
  await expect(opened.checkpoints(model.named(disk))).rejects.toThrow(HypervisorUnavailableError);
  expect(await readdir(join(home, "r"))).toEqual([]);
}, 120_000);

test("a machine that is neither off nor to be reached has no disks to open", async () => {
  const settings = { driver: "qmp", powerState: "ACTIVE", socket: join(home, "none"), socketRoots: [home] } as const;
  await expect(openMachineDisks({ ...settings, runFolder: home }, [])).rejects.toThrow(HypervisorUnavailableError);
});

test("who waits for a change of the hypervisor waits each time, though nothing happens", async () => {
  await using machine = await startMachine(home, []);
  using qmp = (await QmpClient.connect(machine.qmpSocket, [home])) as QmpClient;
  const start = performance.now();
  for (let round = 0; round < 4; round++) await qmp.changed(100);
  expect(performance.now() - start).toBeGreaterThan(290);
});
