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
const raw = (sizeBytes: number) => ({ sizeBytes, format: "raw" as const });

async function fill(machine: SnapshotMachine): Promise<void> {
  for (const [disk, bytes] of machine.disks) {
    const at = 64 * KiB * randomInt(bytes.length / (64 * KiB) - 2);
    await machine.write(disk, randomBytes(96 * KiB), at);
  }
}

it("a snapshot keeps the disks of a machine that is off as layers, and can be read while the machine goes on", async () => {
  const machine = await SnapshotMachine.create(world, "layers", [cow(4 * MiB), cow(2 * MiB), raw(MiB)]);
  await fill(machine);
  const [disk] = [...machine.disks.keys()] as [string];
  const { json: was } = await world.answered(200, "GET", `/disks/${disk}`);
  const { layers } = await machine.snapshot();
  expect(layers.get(disk)).toBe(was.image_id);
  expect((await world.answered(200, "GET", `/disks/${disk}`)).json.image_id).not.toBe(was.image_id);
  await fill(machine);
  await machine.snapshot();
  await fill(machine);
  await machine.readSnapshot(0);
  await machine.check();
  await machine.removeSnapshot(0);
  await machine.check();
  await machine.removeSnapshot(0);
  await machine.check();
  const left = (await readdir(world.imagesDir)).filter((name) => /^\.layer-|^snapshot-/.test(name));
  expect(left).toEqual([]);
});

it("checkpoints outlast snapshots and their removal", async () => {
  const machine = await SnapshotMachine.create(world, "recorded", [cow(4 * MiB), cow(2 * MiB)]);
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
  await machine.removeSnapshot(0);
  await fill(machine);
  await machine.backUp(second);
  await machine.backUp(full);
  const { json } = await world.answered(200, "GET", `/vms/${machine.id}/checkpoints`);
  expect(json.checkpoint.map(({ state }: { state: string }) => state)).toEqual(Array(4).fill("created"));
  await world.nothingIsLeft();
});

it("a machine goes back to a snapshot: newer ones go, checkpoints are invalid, its configuration is as it was", async () => {
  const machine = await SnapshotMachine.create(world, "back", [cow(4 * MiB), raw(MiB)]);
  const { id } = machine;
  await world.answered(201, "POST", `/vms/${id}/nics`, { json: { name: "nic1", network: { name: "ovirtmgmt" } } });
  await fill(machine);
  const full = await machine.backUp(null);
  const before = await machine.snapshot("before");
  await fill(machine);
  await machine.snapshot("after");
  await world.answered(200, "PUT", `/vms/${id}`, { json: { memory: 2 ** 31, description: "changed" } });
  const { json: nics } = await world.answered(200, "GET", `/vms/${id}/nics`);
  await world.answered(200, "DELETE", `/vms/${id}/nics/${nics.nic[0].id}`);
  await machine.goBack(0);
  await machine.check();
  const { json: vm } = await world.answered(200, "GET", `/vms/${id}`);
  expect([vm.memory, vm.description]).toEqual([String(2 ** 30), ""]);
  expect((await world.answered(200, "GET", `/vms/${id}/nics`)).json).toEqual(nics);
  const { json } = await world.answered(200, "GET", `/vms/${id}/checkpoints`);
  expect(json.checkpoint.map(({ id: one, state }: { id: string; state: string }) => [one, state])).toEqual([
    [full, "invalid"],
  ]);
  await fill(machine);
  await machine.goBack(0);
  await machine.check();
  expect(machine.snapshots).toEqual([before]);
});

it("what a snapshot or a way back cannot be had of is refused, and nothing stays locked", async () => {
  const machine = await SnapshotMachine.create(world, "refused", [cow(MiB)]);
  const { id } = machine;
  const [disk] = [...machine.disks.keys()] as [string];
  const kept = await machine.snapshot();
  const detailOf = async (path: string, json: object = {}): Promise<string> =>
    (await world.answered(409, "POST", path, { json })).text;
  await world.answered(200, "POST", `/vms/${id}/start`, { json: {} });
  expect(await detailOf(`/vms/${id}/snapshots/${kept.id}/restore`)).toContain(
    "Cannot revert to Snapshot because the VM is in Up status.",
  );
  await world.answered(200, "POST", `/vms/${id}/stop`, { json: {} });
  const other = await world.addMachine("refused-other", []);
  const attached = { disk: { id: disk, snapshot: { id: kept.id } } };
  await world.answered(201, "POST", `/vms/${other}/diskattachments`, { json: attached });
  expect(await detailOf(`/vms/${id}/snapshots/${kept.id}/restore`)).toContain("are plugged to other VMs");
  await world.answered(200, "DELETE", `/vms/${other}/diskattachments/${disk}`);
  const active = (await world.answered(200, "GET", `/vms/${id}/snapshots`)).json.snapshot[0];
  expect(await detailOf(`/vms/${id}/snapshots/${active.id}/restore`)).toContain(
    "The operation is only allowed for regular snapshots.",
  );
  await world.answered(404, "POST", `/vms/${id}/snapshots/${id}/restore`, { json: {} });
  await machine.free();
  await machine.goBack(0);
});
