import { randomUUID } from "node:crypto";
import {
  addNic,
  attachDisk,
  attachSnapshotDisk,
  type Config,
  changeDisk,
  createMachine,
  createMachineFromOvf,
  type Database,
  deleteInstance,
  detachDisk,
  getMachine,
  getMachineSnapshot,
  listMachineSnapshots,
  type MachineRow,
  type Principal,
  type RefusalRule,
  removeMachine,
  removeMachineSnapshot,
  requestGroupSnapshotDelete,
  setPower,
  takeMachineSnapshot,
  updateMachine,
} from "@tephra/control";
import { failOperation } from "@tephra/control/work";
import { afterAll, beforeAll, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;
beforeAll(async () => {
  ({ database, config } = await openControl(stack, { connectionsMax: 8 }));
});
afterAll(() => stack.disposeAsync());

const alice: Principal = { userId: "u", projectId: "p", roles: [], isAdmin: false, requestId: "req-test" };
const bob: Principal = { ...alice, projectId: "other" };
const formatOf = () => "raw" as const;
const virtio = { active: false, bootable: false, readOnly: false, interface: "virtio" as const };

const machineOf = (name: string, configuration = {}, principal = alice): Promise<MachineRow> =>
  createMachine(database, config, principal, { id: null, name, configuration });

async function addDisk(name: string, status = "available"): Promise<string> {
  const id = randomUUID();
  const { projectId, userId } = alice;
  const place = { sizeGib: 1, sizeBytes: 4096n, backend: "files", availabilityZone: "nova" };
  await database.volume.create({ data: { ...place, id, projectId, userId, name, status } });
  return id;
}

/** A machine with one disk. */
async function withDisk(name: string): Promise<{ id: string; disk: string }> {
  const { instance } = await machineOf(name);
  const disk = await addDisk(`${name}_Disk1`);
  await attachDisk(database, alice, instance.id, disk, { ...virtio, active: true, bootable: true });
  return { id: instance.id, disk };
}

const snapshotOf = (id: string, disks: string[] | null = null) =>
  takeMachineSnapshot(database, config, alice, id, { description: "held", disks, formatOf });

/** As if a worker had taken it: the operation has ended well. */
async function settle(snapshotId: string): Promise<void> {
  await database.snapshot.updateMany({ where: { groupSnapshotId: snapshotId }, data: { status: "available" } });
  const { groupId } = await database.groupSnapshot.update({ where: { id: snapshotId }, data: { status: "available" } });
  await database.group.update({ where: { id: groupId }, data: { operationId: null } });
  await database.operation.updateMany({ where: { groupSnapshotId: snapshotId }, data: { state: "succeeded" } });
}

const refusedBy = (rule: RefusalRule) => expect.objectContaining({ code: "refused", rule });
const unknown = expect.objectContaining({ code: "not-found" });

it("a machine has what it was given, and nobody else's project sees it", async () => {
  const { instance } = await machineOf("web", { memory: 2 * 1024 ** 3, description: "a web server" });
  const nic = await addNic(database, alice, instance.id, { name: "nic1", network: "ovirtmgmt" });
  expect(nic.mac).toMatch(/^56:6f(:[0-9a-f]{2}){4}$/);
  const machine = await updateMachine(database, alice, instance.id, {
    name: "web-2",
    configuration: { os: "rhel_9x64" },
  });
  expect(machine.instance).toMatchObject({ name: "web-2", powerState: "SHUTOFF" });
  expect(machine.settings).toMatchObject({ memory: 2 * 1024 ** 3, description: "a web server", os: "rhel_9x64" });
  expect(machine.nics).toMatchObject([{ name: "nic1", network: "ovirtmgmt" }]);
  const change = { configuration: { memory: 65 * 1024 ** 4 } };
  await expect(updateMachine(database, alice, instance.id, change)).rejects.toEqual(refusedBy("configuration-invalid"));
  await expect(machineOf("web-2")).rejects.toEqual(refusedBy("machine-name-taken"));
  await machineOf("web-2", {}, bob);
  for (const attempt of [
    () => getMachine(database, bob, instance.id),
    () => updateMachine(database, bob, instance.id, {}),
    () => setPower(database, bob, instance.id, "start"),
    () => removeMachine(database, bob, instance.id, { keepDisks: true }),
    () => listMachineSnapshots(database, bob, instance.id),
  ]) {
    await expect(attempt()).rejects.toEqual(unknown);
  }
});

it("a disk is attached to one machine, by a record of what nobody here can plug", async () => {
  const { id, disk } = await withDisk("attached");
  const other = (await machineOf("other")).instance.id;
  await expect(attachDisk(database, alice, id, randomUUID(), virtio)).rejects.toEqual(refusedBy("disk-unknown"));
  await expect(attachDisk(database, alice, id, disk, virtio)).rejects.toEqual(refusedBy("disk-attached"));
  await expect(attachDisk(database, alice, other, disk, virtio)).rejects.toEqual(refusedBy("disk-attached-elsewhere"));
  const busy = await addDisk("busy", "backing-up");
  await expect(attachDisk(database, alice, other, busy, virtio)).rejects.toEqual(refusedBy("disks-locked"));
  const broken = await addDisk("broken", "error");
  await expect(attachDisk(database, alice, other, broken, virtio)).rejects.toEqual(refusedBy("disk-illegal"));
  await setPower(database, alice, other, "start");
  const second = await addDisk("second");
  const plugged = { ...virtio, active: true };
  await expect(attachDisk(database, alice, other, second, plugged)).rejects.toEqual(refusedBy("machine-unreachable"));
  await attachDisk(database, alice, other, second, virtio);
  const activate = { active: true };
  await expect(changeDisk(database, alice, other, second, activate)).rejects.toEqual(refusedBy("machine-unreachable"));
  await setPower(database, alice, other, "shutdown");
  await changeDisk(database, alice, other, second, activate, { refuseSame: true });
  const again = changeDisk(database, alice, other, second, activate, { refuseSame: true });
  await expect(again).rejects.toEqual(refusedBy("disk-active"));
  await detachDisk(database, alice, other, second);
  expect((await database.volume.findUniqueOrThrow({ where: { id: second } })).status).toBe("available");
  await expect(detachDisk(database, alice, other, second)).rejects.toEqual(unknown);
});

it("a snapshot has the machine to itself until it is there, and the layers that were written", async () => {
  const { id, disk } = await withDisk("moment");
  const { imageId } = await database.volume.findUniqueOrThrow({ where: { id: disk } });
  const snapshot = await snapshotOf(id);
  expect(snapshot).toMatchObject({ status: "creating", snapshots: [{ id: imageId, volumeId: disk }] });
  expect(snapshot.ovf).toContain(`${disk}/${imageId}`);
  expect(snapshot.ovf).toContain(`ovf:vm_snapshot_id="${snapshot.id}"`);
  expect((await database.volume.findUniqueOrThrow({ where: { id: disk } })).imageId).not.toBe(imageId);
  const appliance = (await machineOf("early appliance")).instance.id;
  const held = { diskId: disk, snapshotId: snapshot.id, active: false, interface: "virtio" as const };
  await expect(snapshotOf(id)).rejects.toEqual(refusedBy("during-snapshot"));
  await expect(updateMachine(database, alice, id, { name: "x" })).rejects.toEqual(refusedBy("during-snapshot"));
  await expect(setPower(database, alice, id, "start")).rejects.toEqual(refusedBy("during-snapshot"));
  await expect(removeMachine(database, alice, id, { keepDisks: true })).rejects.toEqual(refusedBy("during-snapshot"));
  await expect(detachDisk(database, alice, id, disk)).rejects.toEqual(refusedBy("during-snapshot"));
  await expect(removeMachineSnapshot(database, config, alice, { machineId: id, id: snapshot.id })).rejects.toEqual(
    refusedBy("during-snapshot"),
  );
  await expect(attachSnapshotDisk(database, alice, appliance, held)).rejects.toEqual(refusedBy("snapshot-locked"));
});

it("a snapshot that cannot be taken is removed, and nothing stays locked", async () => {
  const { id } = await withDisk("failing");
  const snapshot = await snapshotOf(id);
  const { id: operationId } = await database.operation.findFirstOrThrow({ where: { groupSnapshotId: snapshot.id } });
  await failOperation(database, operationId, { reason: "no worker was there" });
  expect((await getMachine(database, alice, id)).heldBy).toBeNull();
  const removal = { groupSnapshotId: snapshot.id, kind: "group-delete", state: "queued" };
  expect(await database.operation.count({ where: removal })).toBe(1);
  expect((await getMachineSnapshot(database, alice, id, snapshot.id)).status).toBe("deleting");
  expect((await snapshotOf(id)).status).toBe("creating");
});

it("one of the configuration alone is there at once", async () => {
  const { id } = await withDisk("configuration");
  const snapshot = await snapshotOf(id, []);
  expect(snapshot).toMatchObject({ status: "available", snapshots: [] });
  expect(snapshot.ovf).toContain("<Name>configuration</Name>");
  expect((await getMachine(database, alice, id)).heldBy).toBeNull();
  await expect(snapshotOf(id, [randomUUID()])).rejects.toEqual(refusedBy("disk-unknown"));
});

it("a snapshot that is attached to a machine cannot be deleted, through any dialect", async () => {
  const { id, disk } = await withDisk("source");
  const appliance = (await machineOf("appliance")).instance.id;
  const snapshot = await snapshotOf(id);
  await settle(snapshot.id);
  const held = { diskId: disk, snapshotId: snapshot.id, active: true, interface: "virtio" as const };
  const attach = (more: object, machine = appliance, principal = alice) =>
    attachSnapshotDisk(database, principal, machine, { ...held, ...more });
  await expect(attach({ snapshotId: randomUUID() })).rejects.toEqual(refusedBy("snapshot-unknown"));
  await expect(attach({ diskId: randomUUID() })).rejects.toEqual(refusedBy("disk-unknown"));
  await expect(attach({ diskId: await addDisk("stranger") })).rejects.toEqual(refusedBy("snapshot-lacks-disk"));
  const active = (await getMachine(database, alice, id)).instance.group?.id ?? "";
  await expect(attach({ snapshotId: active })).rejects.toEqual(refusedBy("snapshot-not-regular"));
  const foreign = (await machineOf("foreign", {}, bob)).instance.id;
  await expect(attach({}, foreign, bob)).rejects.toEqual(refusedBy("disk-unknown"));
  await attach({});
  await expect(attach({})).rejects.toEqual(refusedBy("disk-attached"));
  const deletions = [
    () => removeMachineSnapshot(database, config, alice, { machineId: id, id: snapshot.id }),
    () => requestGroupSnapshotDelete(database, config, alice, snapshot.id),
    () => removeMachine(database, alice, id, { keepDisks: false }),
  ];
  for (const attempt of deletions) {
    const refusal = { rule: "snapshot-attached", details: { attached: "source_Disk1/held/appliance" } };
    await expect(attempt()).rejects.toMatchObject(refusal);
  }
  await expect(detachDisk(database, alice, appliance, disk, { volumesOnly: true })).rejects.toEqual(
    refusedBy("disk-of-snapshot"),
  );
  await detachDisk(database, alice, appliance, disk);
  await attach({});
  await deleteInstance(database, alice, appliance);
  await removeMachineSnapshot(database, config, alice, { machineId: id, id: snapshot.id });
  expect((await getMachineSnapshot(database, alice, id, snapshot.id)).status).toBe("deleting");
});

it("a machine goes with its snapshots, and with its disks unless they are kept", async () => {
  for (const keepDisks of [true, false]) {
    const { id, disk } = await withDisk(`gone ${keepDisks}`);
    const snapshot = await snapshotOf(id);
    await settle(snapshot.id);
    await setPower(database, alice, id, "start");
    await expect(removeMachine(database, alice, id, { keepDisks })).rejects.toEqual(refusedBy("machine-running"));
    await setPower(database, alice, id, "stop");
    await removeMachine(database, alice, id, { keepDisks });
    await expect(getMachine(database, alice, id)).rejects.toEqual(unknown);
    const { status } = await database.volume.findUniqueOrThrow({ where: { id: disk } });
    expect(status).toBe(keepDisks ? "available" : "deleting");
    const left = await database.snapshot.findMany({ where: { volumeId: disk } });
    expect(left).toMatchObject([{ status: "deleting", groupSnapshotId: null }]);
  }
});

it("a machine is made again of its OVF, with what the request says instead", async () => {
  const { id, disk } = await withDisk("original");
  const nic = await addNic(database, alice, id, { name: "nic1", network: "ovirtmgmt" });
  const { ovf } = await snapshotOf(id, []);
  const request = { ovf: ovf ?? "", configuration: {}, regenerateIds: false, reassignBadMacs: false };
  const refused = createMachineFromOvf(database, config, alice, { ...request, name: "copy" });
  await expect(refused).rejects.toMatchObject({ rule: "machine-id-taken", details: { name: "original" } });
  const copied = await createMachineFromOvf(database, config, bob, { ...request, name: "elsewhere" });
  expect(copied.machine).toMatchObject({
    instance: { id, name: "elsewhere" },
    nics: [{ mac: nic.mac, plugged: true }],
  });
  const ovfWithDisk = (await snapshotOf(id)).ovf ?? "";
  const beside = await createMachineFromOvf(database, config, alice, {
    ...request,
    ovf: ovfWithDisk,
    name: "beside",
    configuration: { memory: 3 * 1024 ** 3 },
    regenerateIds: true,
  });
  expect(beside).toMatchObject({ machine: { settings: { memory: 3 * 1024 ** 3 } }, skipped: ["original_Disk1"] });
  expect(beside.machine.nics[0]?.mac).not.toBe(nic.mac);
  expect(beside.machine.disks).toEqual([]);
  expect((await getMachine(database, alice, id)).disks).toMatchObject([{ volumeId: disk }]);
});

it("an address that another machine has is kept, on an interface that is unplugged", async () => {
  const { instance } = await machineOf("first");
  const { mac } = await addNic(database, alice, instance.id, { name: "nic1" });
  const { ovf } = await takeMachineSnapshot(database, config, alice, instance.id, {
    description: "",
    disks: [],
    formatOf,
  });
  const other = { ovf: (ovf ?? "").replaceAll(instance.id, randomUUID()), configuration: {}, regenerateIds: false };
  const clashing = await createMachineFromOvf(database, config, alice, {
    ...other,
    name: "second",
    reassignBadMacs: false,
  });
  expect(clashing.clashes).toEqual([{ nic: "nic1", mac, other: "first" }]);
  expect(clashing.machine.nics).toMatchObject([{ mac, plugged: false, linked: false }]);
  const again = { ...other, ovf: (ovf ?? "").replaceAll(instance.id, randomUUID()) };
  const fresh = await createMachineFromOvf(database, config, alice, { ...again, name: "third", reassignBadMacs: true });
  expect(fresh).toMatchObject({ clashes: [], machine: { nics: [{ plugged: true }] } });
  expect(fresh.machine.nics[0]?.mac).not.toBe(mac);
  await expect(addNic(database, alice, instance.id, { name: "nic2", mac })).rejects.toEqual(refusedBy("mac-taken"));
});
