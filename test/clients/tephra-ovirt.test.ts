import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { freePort } from "../../scripts/spawn-program.ts";
import { ask, ovirtUsers, password } from "../dialects/ovirt/engine.ts";
import { type Instance, startInstance } from "../kit/instance.ts";
import { type Finished, startTephra } from "../kit/tephra-command.ts";

const MiB = 1024 * 1024;

let instance: Instance;
beforeAll(async () => {
  // The launcher says on stderr when it compiles, which it does at most once.
  await startTephra(["--help"]).finished;
  instance = await startInstance({
    config: { ovirt: { users: ovirtUsers }, image_transfers: { port: await freePort() } },
  });
  await instance.startTransfer();
});
afterAll(() => instance?.[Symbol.asyncDispose]());

const tephraAs = (user: Record<string, string>, ...args: string[]): Promise<Finished> =>
  startTephra(args, { TEPHRA_URL: instance.url, ...user }).finished;

const tephra = (...args: string[]): Promise<Finished> =>
  tephraAs({ TEPHRA_OVIRT_USER: "admin@internal", TEPHRA_OVIRT_PASSWORD: password }, ...args);

async function done(...args: string[]): Promise<Finished> {
  const finished = await tephra(...args);
  expect(finished, finished.stderr).toMatchObject({ status: 0, stderr: "" });
  return finished;
}

async function addMachine(name: string, disk: string): Promise<void> {
  const { json: vm } = await ask(instance, "POST", "/ovirt-engine/api/vms", {
    json: { name, cluster: { name: "Default" }, template: { name: "Blank" } },
  });
  const attachment = { bootable: true, interface: "virtio", active: true, disk: { id: disk } };
  const { status } = await ask(instance, "POST", `/ovirt-engine/api/vms/${vm.id}/diskattachments`, {
    json: attachment,
  });
  expect(status).toBe(201);
}

it("takes a file to a disk and back, byte for byte, with holes where it has them", async () => {
  const bytes = Buffer.concat([randomBytes(MiB), Buffer.alloc(40 * MiB), randomBytes(3 * MiB + 512)]);
  const [from, to] = [join(instance.dataDir, "disk.img"), join(instance.dataDir, "back.img")];
  writeFileSync(from, bytes);
  const size = String(bytes.length);
  const made = await done("disk", "create", "--size", size, "--format", "raw", "--name", "data", "--wait", "--json");
  expect(made.json.disk).toMatchObject({ name: "data", status: "ok", format: "raw", provisioned_size: size });
  const sent = await done("disk", "upload", from, "data", "--json");
  expect(sent.json.disk).toEqual({ id: made.json.disk.id, path: from, bytes: bytes.length });
  await done("disk", "download", "data", to);
  expect(readFileSync(to).equals(bytes)).toBe(true);
  expect(statSync(to).blocks * 512).toBeLessThan(20 * MiB);
  expect((await done("disk", "list")).stdout).toMatch(/ data +ok +raw +46137856$/m);
  const taken = await tephra("disk", "download", "data", to, "--json");
  expect([taken.status, taken.json.error.code]).toEqual([1, "EEXIST"]);
  const gone = await done("disk", "delete", "data", "--wait");
  expect(gone.stdout).toMatch(/status +deleted/);
  expect((await tephra("disk", "show", "data")).stderr).toContain('No disk has the id or name "data"');
});

it("leaves no disk locked, and no file, when a transfer is refused", async () => {
  const file = join(instance.dataDir, "long.img");
  writeFileSync(file, randomBytes(2 * MiB));
  const { json } = await done("disk", "create", "--size", String(MiB), "--format", "raw", "--wait", "--json");
  const { id } = json.disk;
  const tooLong = await tephra("disk", "upload", file, id, "--json");
  expect([tooLong.status, tooLong.json.error.message]).toEqual([1, expect.stringContaining("416")]);
  // Empty, and in no machine: a disk whose upload failed is removed.
  await instance.waitFor(async () => (await tephra("disk", "show", id)).status === 1, { what: "the disk is gone" });
  const to = join(instance.dataDir, "nothing.img");
  expect((await tephra("disk", "download", id, to)).status).toBe(1);
  expect(existsSync(to)).toBe(false);
});

it("snapshots a machine, shows it, and writes down its configuration", async () => {
  const { json } = await done("disk", "create", "--size", String(MiB), "--format", "raw", "--wait", "--json");
  await addMachine("vm1", json.disk.id);
  expect((await done("vm", "list")).stdout).toMatch(/ vm1 +down +\d+$/m);
  expect((await done("vm", "show", "vm1")).stdout).toContain(`${json.disk.id} (bootable)`);
  const taken = await done("vm", "snapshot", "create", "vm1", "--description", "before", "--wait", "--json");
  expect(taken.json.snapshot).toMatchObject({ description: "before", snapshot_status: "ok" });
  expect((await done("vm", "snapshot", "list", "vm1")).stdout).toMatch(/ before +regular +ok +\d{4}-/);
  const shown = await done("vm", "snapshot", "show", "vm1", "before", "--json");
  expect(shown.json.snapshot.disks).toMatchObject([{ id: json.disk.id, provisioned_size: String(MiB) }]);
  const copy = join(instance.dataDir, "snapshot.img");
  await done("vm", "snapshot", "download", "vm1", "before", json.disk.id, copy);
  expect(readFileSync(copy).equals(Buffer.alloc(MiB))).toBe(true);
  const path = join(instance.dataDir, "vm1.ovf");
  await done("vm", "ovf", "vm1", path);
  expect(readFileSync(path, "utf8")).toContain(json.disk.id);
  const back = await done("vm", "snapshot", "restore", "vm1", "before", "--wait", "--json");
  expect(back.json.snapshot).toMatchObject({ id: taken.json.snapshot.id, status: "restored" });
  const preview = await done("vm", "snapshot", "preview", "vm1", "before", "--wait", "--json");
  expect(preview.json.snapshot).toMatchObject({ id: taken.json.snapshot.id, status: "in_preview" });
  expect((await done("vm", "snapshot", "list", "vm1")).stdout).toMatch(/ Active VM before the preview +preview +ok /);
  const undone = await done("vm", "snapshot", "undo", "vm1", "--wait", "--json");
  expect(undone.json.vm.status).toBe("undone");
  await done("vm", "snapshot", "preview", "vm1", "before", "--wait");
  await done("vm", "snapshot", "commit", "vm1", "--wait");
  expect((await done("vm", "snapshot", "list", "vm1")).stdout).toMatch(/ before +regular +ok /);
  expect((await tephra("vm", "snapshot", "undo", "vm1")).stderr).toContain("VM's Snapshot does not exist.");
  expect((await tephra("vm", "freeze", "vm1")).stderr).toContain("Cannot freeze VM filesystems. VM is not running.");
  await done("vm", "snapshot", "delete", "vm1", "before", "--wait");
  expect((await done("vm", "snapshot", "list", "vm1")).stdout).not.toContain("before");
  const none = await tephra("vm", "snapshot", "delete", "vm1", "before", "--json");
  expect([none.status, none.json.error.code]).toEqual([1, "not_found"]);
});

it("says what is wrong with its user, and nothing of other projects", async () => {
  expect((await tephraAs({}, "vm", "list")).stderr).toContain("TEPHRA_OVIRT_USER");
  const wrong = { TEPHRA_OVIRT_USER: "admin@internal", TEPHRA_OVIRT_PASSWORD: "wrong" };
  const refused = await tephraAs(wrong, "vm", "list", "--json");
  expect([refused.status, refused.json.error]).toEqual([
    1,
    expect.objectContaining({ code: "unauthorized", status: 401 }),
  ]);
  const reader = { TEPHRA_OVIRT_USER: "reader@internal", TEPHRA_OVIRT_PASSWORD: password };
  const may = await tephraAs(reader, "disk", "create", "--size", "512", "--format", "raw");
  expect(may.stderr).toContain("User is not authorized to perform this action.");
  const stranger = { TEPHRA_OVIRT_USER: "stranger@internal", TEPHRA_OVIRT_PASSWORD: password };
  expect((await tephraAs(stranger, "vm", "list", "--json")).json).toEqual({ vms: [] });
});
