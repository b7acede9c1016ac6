import { randomBytes } from "node:crypto";
import { readdir } from "node:fs/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { NbdClient } from "../../../packages/engine/src/volume/nbd/nbd-client.ts";
import { ask } from "../../dialects/ovirt/engine.ts";
import { type BackupWorld, openBackupWorld } from "../../kit/machine-backups.ts";
import { SnapshotMachine } from "../../kit/snapshot-machine.ts";
import type { RunningMachine } from "../../kit/storage-daemon.ts";

const MiB = 1024 * 1024;
const stack = new AsyncDisposableStack();
let world: BackupWorld;
beforeAll(async () => {
  world = await openBackupWorld(stack);
}, 600_000);
afterAll(() => stack.disposeAsync());

/** The seed's requests, at /api, in XML. */
async function xml(status: number, method: string, path: string, body?: string): Promise<string> {
  const reply = await ask(world.instance, method, `/api${path}`, body === undefined ? {} : { xml: body });
  expect(reply.status, `${method} ${path}: ${reply.text}`).toBe(status);
  return reply.text;
}

const idIn = (text: string): string => /^<\?xml.*\?>\s*<\w+ href="[^"]*" id="([^"]+)"/.exec(text)?.[1] ?? "";

async function read(guest: NbdClient): Promise<Buffer> {
  const bytes = Buffer.alloc(guest.sizeBytes);
  await guest.read(bytes, 0);
  return bytes;
}

/** An appliance that runs, with a disk of its own. */
async function appliance(name: string): Promise<{ id: string; running: RunningMachine }> {
  const own = await world.addDisk(`${name}_Disk1`, MiB);
  const id = await world.addMachine(name, [own]);
  return { id, running: stack.use(await world.run(id, [own])) };
}

const layersOfAppliances = async (): Promise<string[]> =>
  (await readdir(world.imagesDir)).filter((name) => name.startsWith(".attached-"));

it("a machine is backed up through an appliance and restored, by the requests of the seed", async () => {
  const machine = await SnapshotMachine.create(world, "vm1", [
    { sizeBytes: 2 * MiB, format: "cow" },
    { sizeBytes: MiB, format: "raw" },
  ]);
  const { id: app, running } = await appliance("virtapp");
  for (const [disk, { length }] of machine.disks) await machine.write(disk, randomBytes(length / 2), length / 4);
  const snapshot = idIn(
    await xml(
      202,
      "POST",
      `/vms/${machine.id}/snapshots`,
      "<snapshot>\n  <description>Virtual Machine 1 - Snapshot For Backup</description>\n</snapshot>",
    ),
  );
  await machine.settled(snapshot);
  const headers = { "All-Content": "true" };
  const described = await ask(world.instance, "GET", `/api/vms/${machine.id}/snapshots/${snapshot}`, { headers });
  const ovf = /<data>([\s\S]*)<\/data>/.exec(described.text)?.[1] ?? "";
  const moment = new Map([...machine.disks].map(([id, bytes]) => [id, Buffer.from(bytes)]));
  for (const [disk] of machine.disks) await machine.write(disk, randomBytes(64 * 1024), 0);

  const copies = new Map<string, Buffer>();
  for (const [disk, bytes] of moment) {
    const attach = `<disk id="${disk}">\n  <snapshot id="${snapshot}"/>\n</disk>`;
    const attached = await xml(201, "POST", `/vms/${app}/disks`, attach);
    expect(attached).toContain("<active>false</active>");
    await expect(running.guest(disk)).rejects.toThrow();
    await xml(200, "POST", `/vms/${app}/disks/${disk}/activate`);
    expect(await xml(409, "POST", `/vms/${app}/disks/${disk}/activate`)).toContain("[Disk is already activated.]");
    const seen = await xml(200, "GET", `/vms/${app}/disks/${disk}`);
    expect(seen).toContain(`<logical_name>/dev/disk/by-id/virtio-${disk.slice(0, 20)}</logical_name>`);
    {
      await using guest = await running.guest(disk);
      copies.set(disk, await read(guest));
      machine.requireEqual("what the appliance reads", disk, copies.get(disk) as Buffer, bytes);
      await guest.write(randomBytes(4096), 0); // As a mount would.
      await guest.flush();
    }
    expect(await xml(409, "DELETE", `/vms/${machine.id}/snapshots/${snapshot}`)).toContain("are plugged to other VMs");
    await xml(200, "POST", `/vms/${app}/disks/${disk}/deactivate`);
    await expect(running.guest(disk)).rejects.toThrow();
    await xml(200, "POST", `/vms/${app}/disks/${disk}/activate`);
    {
      await using guest = await running.guest(disk);
      machine.requireEqual("after its writes were dropped", disk, await read(guest), bytes);
    }
    // Active as it is: it is unplugged first.
    await xml(200, "DELETE", `/vms/${app}/disks/${disk}`, "<action>\n <detach>true</detach>\n</action>");
    await expect(running.guest(disk)).rejects.toThrow();
    expect(await layersOfAppliances()).toEqual([]);
  }
  await xml(200, "DELETE", `/vms/${machine.id}/snapshots/${snapshot}`);
  await machine.free();
  await machine.check();

  const restored = new Map<string, Buffer>();
  for (const bytes of copies.values()) {
    const disk = await world.addDisk("restored", bytes.length);
    await xml(201, "POST", `/vms/${app}/disks`, `<disk id="${disk}"><active>true</active></disk>`);
    {
      await using guest = await running.guest(disk);
      await guest.write(bytes, 0);
      await guest.flush();
    }
    await xml(200, "DELETE", `/vms/${app}/disks/${disk}`, "<action>\n <detach>true</detach>\n</action>");
    restored.set(disk, bytes);
  }
  const wanted = `<vm>
 <cluster>
  <name>Default</name>
 </cluster>
 <initialization>
  <configuration>
   <type>ovf</type>
   <data>${ovf}</data>
  </configuration>
  <regenerate_ids>true</regenerate_ids>
 </initialization>
 <name>OVERRIDING_NAME</name>
</vm>`;
  const again = idIn(await xml(201, "POST", "/vms", wanted));
  for (const [disk, bytes] of restored) {
    expect(await xml(201, "POST", `/vms/${again}/disks`, `<disk id="${disk}"><active>true</active></disk>`)).toContain(
      "<active>true</active>",
    );
    const json = { direction: "download", format: "raw", disk: { id: disk } };
    machine.requireEqual("the restored disk", disk, await machine.download(json, bytes.length), bytes);
  }
});

it("what cannot be plugged in is refused, and nothing of it is left", async () => {
  const machine = await SnapshotMachine.create(world, "vm2", [{ sizeBytes: MiB, format: "cow" }]);
  const [disk] = [...machine.disks.keys()] as [string];
  const { id: snapshot } = await machine.snapshot();
  const { id: app, running } = await appliance("gone");
  const [own] = (await world.answered(200, "GET", `/vms/${app}/diskattachments`)).json.disk_attachment;
  const started = await world.answered(409, "PUT", `/vms/${app}/diskattachments/${own.id}`, {
    json: { active: false },
  });
  expect(started.text).toContain("only its hypervisor can take it away");
  const attached = { active: true, disk: { id: disk, snapshot: { id: snapshot } } };
  await world.answered(201, "POST", `/vms/${app}/diskattachments`, { json: attached });
  expect(await layersOfAppliances()).toHaveLength(1);
  // It ends without a word: what it has left goes with the attachment.
  running.program.kill("SIGKILL");
  await running.program.exited;
  await world.answered(200, "DELETE", `/vms/${app}/diskattachments/${disk}`);
  expect(await layersOfAppliances()).toEqual([]);
  const refused = await world.answered(409, "POST", `/vms/${app}/diskattachments`, { json: attached });
  expect(refused.text).toContain("Nobody listens on the monitor of the machine.");
  const { json } = await world.answered(200, "GET", `/vms/${app}/diskattachments`);
  expect(json.disk_attachment.map(({ id }: { id: string }) => id)).toEqual([own.id]);
  await machine.removeSnapshot(0);
});
