import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import { journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { waitFor } from "../../kit/wait-for.ts";
import { type Asked, ask, type EngineReply, hashOf, password, plain, startEngineWithWorker } from "./engine.ts";

const MiB = 1024 * 1024;
const sizeBytes = 16 * MiB;

let instance: Instance;
const user = (name: string, project_id: string) => ({
  name,
  password_hash: hashOf(password),
  project_id,
  roles: ["member"],
});
beforeAll(async () => {
  const users = [user("admin@internal", project), user("stranger@internal", "b".repeat(32))];
  instance = await startEngineWithWorker({ config: { ovirt: { users } } });
});
afterAll(() => instance?.[Symbol.asyncDispose]());

async function answered(status: number, method: string, path: string, asked: Asked = {}): Promise<EngineReply> {
  const reply = await ask(instance, method, path, asked);
  expect(reply.status, `${method} ${path}: ${reply.text}`).toBe(status);
  return reply;
}

const idIn = (reply: EngineReply): string => /<\w+ href="[^"]*" id="([^"]*)"/.exec(reply.text)?.[1] ?? "";
const unescaped = (text: string): string =>
  text.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&quot;", '"').replaceAll("&amp;", "&");

async function addMachine(name: string): Promise<string> {
  const xml = `<vm><name>${name}</name><cluster><name>Default</name></cluster><template><name>Blank</name></template></vm>`;
  return idIn(await answered(201, "POST", "/ovirt-engine/api/vms", { xml }));
}

async function addDisk(name: string): Promise<string> {
  const user = journeyOn(instance);
  const image = join(instance.dataDir, `${name}.img`);
  await writeIslands(image, sizeBytes, [{ offset: MiB, data: randomBytesOf(name, MiB) }]);
  const id = await user.importVolume(image, name);
  await user.removeFile(image);
  return id;
}

async function settled(machine: string, snapshot: string): Promise<string> {
  const found = async () => {
    const { status, text } = await ask(instance, "GET", `/api/vms/${machine}/snapshots/${snapshot}`);
    return status === 200 && text.includes("<snapshot_status>ok</snapshot_status>") && text;
  };
  return waitFor(found, { what: "the snapshot to be there" });
}

const fault = (detail: string): string => `<fault>
    <detail>[${detail}]</detail>
    <reason>Operation Failed</reason>
</fault>`;

/** In version 3. */
const complete = `<action>
    <job href="/api/jobs/ID" id="ID"/>
    <status>complete</status>
</action>`;

const vmFields = (name: string, status: string): string => `
    <name>${name}</name>
    <description></description>
    <comment></comment>
    <bios>
        <type>q35_sea_bios</type>
    </bios>
    <cpu>
        <architecture>x86_64</architecture>
        <topology>
            <cores>1</cores>
            <sockets>1</sockets>
            <threads>1</threads>
        </topology>
    </cpu>
    <creation_time>TIME</creation_time>
    <delete_protected>false</delete_protected>
    <high_availability>
        <enabled>false</enabled>
        <priority>1</priority>
    </high_availability>
    <memory>1073741824</memory>
    <memory_policy>
        <guaranteed>1073741824</guaranteed>
        <max>4294967296</max>
    </memory_policy>
    <origin>ovirt</origin>
    <os>
        <type>other</type>
    </os>
    <stateless>false</stateless>
    <type>server</type>
    <status>
        <state>${status}</state>
    </status>
    <cluster href="/api/clusters/ID" id="ID"/>
    <template href="/api/templates/ID" id="ID"/>`;

const diskFields = (name: string): string => `
    <name>${name}</name>
    <description></description>
    <actual_size>${sizeBytes}</actual_size>
    <alias>${name}</alias>
    <backup>none</backup>
    <content_type>data</content_type>
    <format>raw</format>
    <image_id>ID</image_id>
    <initial_size>${sizeBytes}</initial_size>
    <propagate_errors>false</propagate_errors>
    <provisioned_size>${sizeBytes}</provisioned_size>
    <shareable>false</shareable>
    <sparse>true</sparse>
    <status>
        <state>ok</state>
    </status>
    <storage_type>image</storage_type>
    <total_size>${sizeBytes}</total_size>
    <wipe_after_delete>false</wipe_after_delete>
    <storage_domains>
        <storage_domain href="/api/storagedomains/ID" id="ID"/>
    </storage_domains>`;

it("version 3: a machine is snapshotted, its configuration and disks are handed to an appliance, and it is made again", {
  timeout: 240_000,
}, async () => {
  const [vm, app] = [await addMachine("vm1"), await addMachine("virtapp")];
  const disk = await addDisk("vm1_Disk1");
  const before = await sha256Of(join(instance.volumesDir, `volume-${disk}`));
  await answered(201, "POST", `/api/vms/${vm}/disks`, { xml: `<disk id="${disk}"><active>true</active></disk>` });

  const description = "Virtual Machine 1 - Snapshot For Backup";
  const xml = `<snapshot>\n  <description>${description}</description>\n</snapshot>`;
  const made = await answered(202, "POST", `/api/vms/${vm}/snapshots`, { xml });
  const snapshot = idIn(made);
  expect(made.headers["location"]).toBe(`${instance.url}/api/vms/${vm}/snapshots/${snapshot}`);
  expect(plain(made.text)).toBe(`<snapshot href="/api/vms/ID/snapshots/ID" id="ID">
    <description>${description}</description>
    <vm href="/api/vms/ID" id="ID"/>
    <date>TIME</date>
    <persist_memorystate>false</persist_memorystate>
    <snapshot_status>locked</snapshot_status>
    <creation_status>in_progress</creation_status>
    <type>regular</type>
</snapshot>`);
  await settled(vm, snapshot);
  expect(plain((await answered(200, "GET", `/api/vms/${vm}`)).text)).toBe(
    `<vm href="/api/vms/ID" id="ID">${vmFields("vm1", "down")}\n</vm>`,
  );

  const whole = await answered(200, "GET", `/api/vms/${vm}/snapshots/${snapshot}`, {
    headers: { "all-content": "true" },
  });
  const ovf = unescaped(/<data>([^<]*)<\/data>/.exec(whole.text)?.[1] ?? "");
  expect(whole.text).toContain("<type>ovf</type>");
  expect(ovf).toContain(`bk:size-bytes="${sizeBytes}"`);
  const disks = await answered(200, "GET", `/api/vms/${vm}/snapshots/${snapshot}/disks`);
  const indented = diskFields("vm1_Disk1").replaceAll("\n    ", "\n        ");
  expect(plain(disks.text)).toBe(`<disks>
    <disk href="/api/vms/ID/snapshots/ID/disks/ID" id="ID">${indented}
        <snapshot id="ID"/>
        <interface>virtio</interface>
        <size>${sizeBytes}</size>
    </disk>
</disks>`);
  const layer = /<image_id>([^<]*)</.exec(disks.text)?.[1] ?? "";
  expect(ovf).toContain(`${disk}/${layer}`);
  const file = (await readdir(instance.volumesDir)).find((name) => name.includes(layer)) ?? "";
  expect(await sha256Of(join(instance.volumesDir, file))).toBe(before);

  const attach = { xml: `<disk id="${disk}">\n  <snapshot id="${snapshot}"/>\n</disk>` };
  const attached = await answered(201, "POST", `/api/vms/${app}/disks`, attach);
  expect(plain(attached.text)).toBe(`<disk href="/api/vms/ID/disks/ID" id="ID">${diskFields("vm1_Disk1")}
    <active>false</active>
    <bootable>false</bootable>
    <interface>virtio</interface>
    <vm href="/api/vms/ID" id="ID"/>
    <snapshot id="ID"/>
    <size>${sizeBytes}</size>
</disk>`);
  expect(plain((await answered(200, "POST", `/api/vms/${app}/disks/${disk}/activate`)).text)).toBe(complete);
  expect(plain((await answered(409, "POST", `/api/vms/${app}/disks/${disk}/activate`)).text)).toBe(`<action>
    <fault>
        <detail>[Disk is already activated.]</detail>
        <reason>Operation Failed</reason>
    </fault>
    <status>failed</status>
</action>`);
  expect(plain((await answered(409, "POST", `/api/vms/${app}/disks`, attach)).text)).toBe(
    fault("Cannot attach Virtual Disk. The disk is already attached to VM."),
  );
  expect(plain((await answered(409, "DELETE", `/api/vms/${vm}/snapshots/${snapshot}`)).text)).toBe(
    fault(
      `Cannot remove Snapshot. The following VM's disks snapshots are plugged to other VMs (Disk Alias/Snapshot Description/VM attached to):\n\n vm1_Disk1/${description}/virtapp \n\nPlease deactivate/detach them from those VMs and try again.`,
    ),
  );
  await answered(200, "POST", `/api/vms/${app}/disks/${disk}/deactivate`);
  await answered(409, "DELETE", `/api/vms/${app}/disks/${disk}`);
  const detach = { xml: "<action>\n <detach>true</detach>\n</action>" };
  expect(plain((await answered(200, "DELETE", `/api/vms/${app}/disks/${disk}`, detach)).text)).toBe(complete);
  expect(plain((await answered(200, "DELETE", `/api/vms/${vm}/snapshots/${snapshot}`)).text)).toBe(complete);
  const isGone = async () => (await ask(instance, "GET", `/api/vms/${vm}/snapshots/${snapshot}`)).status === 404;
  await waitFor(isGone, { what: "the snapshot to go" });

  const restored = await addDisk("restored");
  await answered(201, "POST", `/api/vms/${app}/disks`, { xml: `<disk id="${restored}"></disk>` });
  await answered(200, "DELETE", `/api/vms/${app}/disks/${restored}`, detach);
  const fromOvf = (data: string, more = "") => ({
    xml: `<vm>
 <cluster>
  <name>Default</name>
 </cluster>
 <initialization>
  <configuration>
   <type>ovf</type>
    <data><![CDATA[${data}]]></data>
  </configuration>${more}
 </initialization>
 <name>OVERRIDING_NAME</name>
</vm>`,
  });
  expect(plain((await answered(409, "POST", "/api/vms", fromOvf(ovf))).text)).toBe(
    fault("Import VM failed - VM ID already exists in the system. Please remove the VM (vm1) from the system first"),
  );
  const hostile = `<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>${ovf.replace(/^<\?xml[^>]*>/, "")}`;
  expect(plain((await answered(409, "POST", "/api/vms", fromOvf(hostile))).text)).toBe(
    fault("The OVF configuration could not be parsed."),
  );
  const again = await answered(201, "POST", "/api/vms", fromOvf(ovf, "\n  <regenerate_ids>true</regenerate_ids>"));
  expect(plain(again.text)).toBe(`<vm href="/api/vms/ID" id="ID">${vmFields("OVERRIDING_NAME", "down")}\n</vm>`);
  const xmlOfDisk = `<disk id="${restored}"><active>true</active></disk>`;
  const last = await answered(201, "POST", `/api/vms/${idIn(again)}/disks`, { xml: xmlOfDisk });
  expect(last.text).toContain("<active>true</active>");
});

it("version 4: attachments and snapshots, in XML and JSON; of one project only", { timeout: 240_000 }, async () => {
  const root = "/ovirt-engine/api";
  const [vm, app] = [await addMachine("vm4"), await addMachine("virtapp4")];
  const disk = await addDisk("vm4_Disk1");
  const json = { active: "true", bootable: "true", interface: "virtio", disk: { id: disk } };
  const own = await answered(201, "POST", `${root}/vms/${vm}/diskattachments`, { json });
  expect(own.json).toEqual({
    href: `${root}/vms/${vm}/diskattachments/${disk}`,
    id: disk,
    active: "true",
    bootable: "true",
    interface: "virtio",
    pass_discard: "false",
    read_only: "false",
    uses_scsi_reservation: "false",
    disk: { href: `${root}/disks/${disk}`, id: disk },
    vm: { href: `${root}/vms/${vm}`, id: vm },
  });
  const nic = { name: "nic1", mac: { address: "56:6F:00:00:00:67" } };
  await answered(201, "POST", `${root}/vms/${vm}/nics`, { json: nic });
  const clash = await answered(409, "POST", `${root}/vms/${app}/nics`, { json: nic });
  expect(clash.json.detail).toBe("[Cannot add Network Interface. MAC Address 56:6f:00:00:00:67 is already in use.]");

  const missing = await answered(400, "POST", `${root}/vms/${vm}/snapshots`, { xml: "<snapshot/>" });
  expect(plain(missing.text)).toBe(`<fault>
    <detail>Snapshot [description] required for add</detail>
    <reason>Incomplete parameters</reason>
</fault>`);
  const xml =
    "<snapshot>\n  <description>held</description>\n  <persist_memorystate>false</persist_memorystate>\n</snapshot>";
  const made = await answered(202, "POST", `${root}/vms/${vm}/snapshots`, { xml });
  const snapshot = idIn(made);
  expect(plain(made.text)).toBe(`<snapshot href="/ovirt-engine/api/vms/ID/snapshots/ID" id="ID">
    <description>held</description>
    <vm href="/ovirt-engine/api/vms/ID" id="ID"/>
    <date>TIME</date>
    <persist_memorystate>false</persist_memorystate>
    <snapshot_status>locked</snapshot_status>
    <snapshot_type>regular</snapshot_type>
    <creation_status>in_progress</creation_status>
</snapshot>`);
  await settled(vm, snapshot);
  const asJson = { headers: { accept: "application/json" } };
  const { json: list } = await answered(200, "GET", `${root}/vms/${vm}/snapshots`, asJson);
  expect(list.snapshot).toMatchObject([
    { description: "Active VM", snapshot_status: "ok", snapshot_type: "active" },
    { id: snapshot, description: "held", snapshot_status: "ok", snapshot_type: "regular", vm: { id: vm } },
  ]);
  const follow = `${root}/vms/${vm}?follow=disk_attachments.disk,tags,nics.reporteddevices&all_content=true`;
  const { json: machine } = await answered(200, "GET", follow, asJson);
  expect(machine).toMatchObject({
    status: "down",
    initialization: { configuration: { type: "ovf" } },
    disk_attachments: { disk_attachment: [{ id: disk, disk: { provisioned_size: String(sizeBytes) } }] },
    nics: { nic: [{ name: "nic1", mac: { address: "56:6f:00:00:00:67" } }] },
    tags: {},
    bios: { boot_menu: { enabled: "false" }, type: "q35_sea_bios" },
    io: { threads: "0" },
    os: { boot: { devices: { device: ["hd"] } } },
    sso: { methods: {} },
    usb: { enabled: "false" },
  });
  const [{ href: ownNic }] = machine.nics.nic;
  for (const [action, plugged] of [
    ["deactivate", "false"],
    ["deactivate", "false"],
    ["activate", "true"],
  ]) {
    await answered(200, "POST", `${ownNic}/${action}`, { json: {} });
    expect((await answered(200, "GET", ownNic, asJson)).json.plugged, action).toBe(plugged);
  }

  const attach = `<disk_attachment>
  <active>true</active>
  <bootable>false</bootable>
  <interface>virtio</interface>
  <disk id="${disk}">
    <snapshot id="${snapshot}"/>
  </disk>
</disk_attachment>`;
  const borrowed = await answered(201, "POST", `${root}/vms/${app}/diskattachments`, { xml: attach });
  expect(plain(borrowed.text)).toBe(`<disk_attachment href="/ovirt-engine/api/vms/ID/diskattachments/ID" id="ID">
    <active>true</active>
    <bootable>false</bootable>
    <interface>virtio</interface>
    <pass_discard>false</pass_discard>
    <read_only>false</read_only>
    <uses_scsi_reservation>false</uses_scsi_reservation>
    <disk href="/ovirt-engine/api/disks/ID" id="ID"/>
    <vm href="/ovirt-engine/api/vms/ID" id="ID"/>
</disk_attachment>`);
  const off = { xml: "<disk_attachment>\n  <active>false</active>\n</disk_attachment>" };
  const changed = await answered(200, "PUT", `${root}/vms/${app}/diskattachments/${disk}`, off);
  expect(changed.text).toContain("<active>false</active>");
  await answered(200, "DELETE", `${root}/vms/${app}/diskattachments/${disk}`);

  await answered(200, "POST", `${root}/vms/${vm}/start`, { xml: "<action/>" });
  const revert = { xml: "<action>\n  <restore_memory>false</restore_memory>\n</action>" };
  const running = await answered(409, "POST", `${root}/vms/${vm}/snapshots/${snapshot}/restore`, revert);
  expect(running.text).toContain("<detail>[Cannot revert to Snapshot because the VM is in Up status.]</detail>");
  const kept = await answered(409, "DELETE", `${root}/vms/${vm}`);
  expect(kept.text).toContain("<detail>[Cannot remove VM. VM is running.]</detail>");
  await answered(200, "POST", `${root}/vms/${vm}/shutdown`);

  const as = "stranger@internal";
  for (const [method, path] of [
    ["GET", `/vms/${vm}`],
    ["GET", `/vms/${vm}/snapshots/${snapshot}`],
    ["GET", `/vms/${vm}/nics`],
    ["DELETE", `/vms/${vm}`],
    ["DELETE", `/vms/${vm}/snapshots/${snapshot}`],
    ["POST", `/vms/${vm}/start`],
    ["DELETE", `/vms/${vm}/diskattachments/${disk}`],
  ] as const) {
    expect((await answered(404, method, root + path, { as })).text).toBe("");
  }
  expect((await answered(200, "GET", `${root}/vms`, { as, headers: { accept: "application/json" } })).json).toEqual({});

  const filter = `${root}/vms?search=${encodeURIComponent("name=vm4 and status=down")}`;
  expect((await answered(200, "GET", filter, asJson)).json.vm).toMatchObject([{ id: vm }]);
  await answered(200, "DELETE", `${root}/vms/${vm}`);
  await answered(404, "GET", `${root}/vms/${vm}`);
  const isRemoved = async () => (await instance.sql("SELECT FROM volumes WHERE id = $1", [disk])).length === 0;
  await waitFor(isRemoved, { what: "the disk to go with its machine" });
});

it("a machine is shown as it was at a snapshot, until that is undone or committed", async () => {
  const root = "/ovirt-engine/api";
  const vm = await addMachine("previewed");
  const disk = await addDisk("previewed-disk");
  const attach = { json: { active: true, disk: { id: disk } } };
  await answered(201, "POST", `${root}/vms/${vm}/diskattachments`, attach);
  const path = `${root}/vms/${vm}`;
  const take = async (description: string): Promise<string> => {
    const id = (await answered(202, "POST", `${path}/snapshots`, { json: { description } })).json.id;
    await settled(vm, id);
    return id;
  };
  const first = await take("first");
  await answered(200, "PUT", path, { json: { description: "changed since" } });
  const second = await take("second");
  const action = (snapshot?: string) => ({
    xml: `<action>${snapshot === undefined ? "" : `<snapshot id="${snapshot}"/>`}<restore_memory>false</restore_memory></action>`,
  });
  const refusedBy = async (status: number, method: string, below: string, asked: Asked): Promise<string> =>
    /<detail>([\s\S]*)<\/detail>/.exec((await answered(status, method, path + below, asked)).text)?.[1] ?? "";
  expect(await refusedBy(400, "POST", "/previewsnapshot", action())).toBe(
    "Action [snapshot.id] required for previewSnapshot",
  );
  const unknown = "11111111-2222-4333-8444-555555555555";
  expect(await refusedBy(400, "POST", "/previewsnapshot", action(unknown))).toBe(
    "[Cannot preview Snapshot. VM's Snapshot does not exist.]",
  );
  for (const verb of ["commitsnapshot", "undosnapshot"]) {
    expect(await refusedBy(400, "POST", `/${verb}`, { xml: "<action/>" })).toBe(
      "[Cannot revert to Snapshot. VM's Snapshot does not exist.]",
    );
  }
  await answered(200, "POST", `${path}/start`, { xml: "<action/>" });
  expect(await refusedBy(409, "POST", "/previewsnapshot", action(first))).toBe(
    "[Cannot preview Snapshot because the VM is in Up status.]",
  );
  await answered(200, "POST", `${path}/stop`, { xml: "<action/>" });

  const snapshots = async (): Promise<string[]> => {
    const { json } = await answered(200, "GET", `${path}/snapshots`, { headers: { accept: "application/json" } });
    return json.snapshot.map(
      (each: { description: string; snapshot_type: string; snapshot_status: string }) =>
        `${each.description}: ${each.snapshot_type} ${each.snapshot_status}`,
    );
  };
  const become = (wanted: readonly string[]) =>
    waitFor(async () => (await snapshots()).join() === wanted.join(), { what: wanted.join(", "), timeoutMs: 60_000 });
  const described = async (): Promise<string> =>
    (await answered(200, "GET", path, { headers: { accept: "application/json" } })).json.description;
  await answered(200, "POST", `${path}/previewsnapshot`, action(first));
  const previewing = [
    "Active VM: active ok",
    "first: regular in_preview",
    "second: regular ok",
    "Active VM before the preview: preview ok",
  ];
  await become(previewing);
  expect(await described()).toBe("");
  const { json: kept } = await answered(200, "GET", `${path}/snapshots`, { headers: { accept: "application/json" } });
  const before = kept.snapshot.at(-1).id;
  const isPreviewing = "VM is previewing a Snapshot.]";
  const attached = { xml: `<disk_attachment><disk id="${await addDisk("other")}"/></disk_attachment>` };
  const ofBefore = { xml: `<disk_attachment><disk id="${disk}"><snapshot id="${before}"/></disk></disk_attachment>` };
  for (const [method, below, asked, sentence] of [
    ["POST", "/previewsnapshot", action(second), `[Cannot preview Snapshot. ${isPreviewing}`],
    ["POST", `/snapshots/${second}/restore`, action(), `[Cannot revert to Snapshot. ${isPreviewing}`],
    ["POST", "/snapshots", { xml: "<snapshot><description>x</description></snapshot>" }, "[Cannot create Snapshot. "],
    ["DELETE", `/snapshots/${first}`, {}, `[Cannot remove Snapshot. ${isPreviewing}`],
    ["DELETE", `/snapshots/${before}`, {}, `[Cannot remove Snapshot. ${isPreviewing}`],
    ["POST", "/diskattachments", attached, `[Cannot attach Virtual Disk. ${isPreviewing}`],
    ["DELETE", `/diskattachments/${disk}`, {}, `[Cannot remove Virtual Disk. ${isPreviewing}`],
    ["POST", "/backups", { xml: `<backup><disks><disk id="${disk}"/></disks></backup>` }, "[Cannot backup VM backup. "],
    ["DELETE", "", {}, `[Cannot remove VM. ${isPreviewing}`],
  ] as const) {
    const told = await refusedBy(409, method, below, asked);
    expect([told.startsWith(sentence), told.endsWith(isPreviewing)], `${method} ${below}: ${told}`).toEqual([
      true,
      true,
    ]);
  }
  const app = await addMachine("of the preview");
  const regular = await answered(409, "POST", `${root}/vms/${app}/diskattachments`, ofBefore);
  expect(regular.text).toContain("[Cannot attach Virtual Disk. The operation is only allowed for regular snapshots.]");

  await answered(200, "POST", `${path}/undosnapshot`, { xml: "<action/>" });
  await become(["Active VM: active ok", "first: regular ok", "second: regular ok"]);
  expect(await described()).toBe("changed since");
  await answered(200, "POST", `${path}/previewsnapshot`, action(first));
  await become(previewing);
  const borrowed = { xml: `<disk_attachment><disk id="${disk}"><snapshot id="${second}"/></disk></disk_attachment>` };
  await answered(201, "POST", `${root}/vms/${app}/diskattachments`, borrowed);
  expect(await refusedBy(409, "POST", "/commitsnapshot", { xml: "<action/>" })).toContain(
    "previewed-disk/second/of the preview",
  );
  await answered(200, "DELETE", `${root}/vms/${app}/diskattachments/${disk}`);
  await answered(200, "POST", `${path}/commitsnapshot`, { xml: "<action/>" });
  await become(["Active VM: active ok", "first: regular ok"]);
  expect(await described()).toBe("");
});

it("a disk that was detached since, and is another machine's now, does not go back to a snapshot", async () => {
  const root = "/ovirt-engine/api";
  const [vm, other] = [await addMachine("had it"), await addMachine("has it")];
  const disk = await addDisk("moved");
  const attach = { json: { active: true, disk: { id: disk } } };
  await answered(201, "POST", `${root}/vms/${vm}/diskattachments`, attach);
  const { id } = (await answered(202, "POST", `${root}/vms/${vm}/snapshots`, { json: { description: "then" } })).json;
  await settled(vm, id);
  await answered(200, "DELETE", `${root}/vms/${vm}/diskattachments/${disk}`);
  await answered(201, "POST", `${root}/vms/${other}/diskattachments`, attach);
  const refused = await answered(409, "POST", `${root}/vms/${vm}/snapshots/${id}/restore`, { xml: "<action/>" });
  expect(refused.text).toContain("The disk is not shareable and is already attached to a VM.");
});
