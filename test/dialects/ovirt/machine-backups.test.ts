import { afterAll, beforeAll, expect, it } from "vitest";
import { type BackupWorld, openBackupWorld } from "../../kit/machine-backups.ts";
import { ask, type EngineReply, plain } from "./engine.ts";

const MiB = 1024 * 1024;
const base = "/ovirt-engine/api";
const stack = new AsyncDisposableStack();
let world: BackupWorld;
beforeAll(async () => {
  world = await openBackupWorld(stack);
}, 600_000);
afterAll(() => stack.disposeAsync());

async function answered(status: number, method: string, path: string, xml?: string): Promise<EngineReply> {
  const reply = await ask(world.instance, method, base + path, xml === undefined ? {} : { xml });
  expect(reply.status, `${method} ${path}: ${reply.text}`).toBe(status);
  return reply;
}

const fault = (detail: string): string => `<fault>
    <detail>[${detail}]</detail>
    <reason>Operation Failed</reason>
</fault>`;
const failed = (detail: string): string => `<action>
    <fault>
        <detail>[${detail}]</detail>
        <reason>Operation Failed</reason>
    </fault>
    <status>failed</status>
</action>`;
const complete = `<action>
    <job href="/ovirt-engine/api/jobs/ID" id="ID"/>
    <status>complete</status>
</action>`;
const described = (phase: string, more = ""): string => `<backup href="/ovirt-engine/api/vms/ID/backups/ID" id="ID">
    <description>held full</description>
    <creation_date>TIME</creation_date>
    <modification_date>TIME</modification_date>
    <phase>${phase}</phase>
    <host href="/ovirt-engine/api/hosts/ID" id="ID"/>
    <vm href="/ovirt-engine/api/vms/ID" id="ID"/>${more}
</backup>`;
const toCheckpoint = "\n    <to_checkpoint_id>ID</to_checkpoint_id>";

const diskIn = (more: string): string => `    <disk href="/ovirt-engine/api/disks/ID" id="ID">
        <name>DISK</name>
        <description></description>
        <actual_size>16777216</actual_size>
        <alias>DISK</alias>
        <backup>incremental</backup>
        <content_type>data</content_type>
        <format>cow</format>
        <image_id>ID</image_id>
        <initial_size>16777216</initial_size>
        <propagate_errors>false</propagate_errors>
        <provisioned_size>16777216</provisioned_size>
        <shareable>false</shareable>
        <sparse>true</sparse>
        <status>locked</status>
        <storage_type>image</storage_type>
        <total_size>16777216</total_size>
        <wipe_after_delete>false</wipe_after_delete>
        <storage_domains>
            <storage_domain href="/ovirt-engine/api/storagedomains/ID" id="ID"/>
        </storage_domains>${more}
    </disk>`;

/** What is told of a machine under that code. */
const eventsOf = async (machine: string, code: string): Promise<string[]> => {
  const { json } = await world.answered(200, "GET", `/events?search=${encodeURIComponent(`type=${code}`)}`);
  const events: { description: string; vm?: { id: string } }[] = json.event ?? [];
  return events.filter(({ vm }) => vm?.id === machine).map(({ description }) => description);
};

const finalize = (machine: string, backup: string) =>
  answered(200, "POST", `/vms/${machine}/backups/${backup}/finalize`, "<action/>");

it("backups and checkpoints are told in the words of oVirt", async () => {
  const disks = [await world.addDisk("vm1_Disk1", 16 * MiB), await world.addDisk("vm1_Disk2", 16 * MiB)];
  const vm = await world.addMachine("vm1", disks);
  expect((await answered(200, "GET", `/vms/${vm}/backups`)).text).toContain("<backups/>");
  expect((await answered(200, "GET", `/vms/${vm}/checkpoints`)).text).toContain("<checkpoints/>");
  const asked = `<backup><description>held full</description>
    <disks>${disks.map((id) => `<disk id="${id}"/>`).join("")}</disks></backup>`;
  const made = await answered(201, "POST", `/vms/${vm}/backups`, asked);
  expect(plain(made.text)).toBe(described("initializing"));
  expect(made.text).toMatch(/<link href="[^"]*\/finalize" rel="finalize"\/>/);
  expect(made.text).toMatch(/<link href="[^"]*\/disks" rel="disks"\/>/);
  const backup = /id="([^"]*)"/.exec(made.text)?.[1] ?? "";
  expect(made.headers["location"]).toMatch(new RegExp(`${base}/vms/${vm}/backups/${backup}$`));
  const busy = `<backup><disks><disk id="${disks[1]}"/></disks></backup>`;
  expect(plain((await answered(409, "POST", `/vms/${vm}/backups`, busy)).text)).toBe(
    fault("Cannot backup VM backup. The VM is during a backup operation."),
  );
  const { to_checkpoint_id: checkpoint } = await world.reach(vm, backup, "ready");
  expect(plain((await answered(200, "GET", `/vms/${vm}/backups/${backup}`)).text)).toBe(
    described("ready", toCheckpoint),
  );
  const listed = plain((await answered(200, "GET", `/vms/${vm}/backups/${backup}/disks`)).text);
  const mode = "\n        <backup_mode>full</backup_mode>";
  expect(listed).toBe(
    `<disks>\n${["vm1_Disk1", "vm1_Disk2"].map((name) => diskIn(mode).replaceAll("DISK", name)).join("\n")}\n</disks>`,
  );
  const transfer = `<image_transfer><direction>download</direction><format>raw</format><timeout_policy>cancel</timeout_policy>
    <backup id="${backup}"/><disk id="${disks[0]}"/></image_transfer>`;
  const begun = await answered(201, "POST", "/imagetransfers", transfer);
  expect(plain(begun.text)).toBe(`<image_transfer href="/ovirt-engine/api/imagetransfers/ID" id="ID">
    <active>false</active>
    <direction>download</direction>
    <format>raw</format>
    <inactivity_timeout>60</inactivity_timeout>
    <phase>initializing</phase>
    <shallow>false</shallow>
    <timeout_policy>cancel</timeout_policy>
    <transferred>0</transferred>
    <host href="/ovirt-engine/api/hosts/ID" id="ID"/>
    <image id="ID"/>
    <disk href="/ovirt-engine/api/disks/ID" id="ID"/>
    <backup id="ID"/>
</image_transfer>`);
  const session = /id="([^"]*)"/.exec(begun.text)?.[1] ?? "";
  expect(plain((await answered(409, "POST", "/imagetransfers", transfer)).text)).toBe(
    fault("Cannot transfer Virtual Disk. Disk vm1_Disk1 is being transferred."),
  );
  const early = await answered(409, "POST", `/vms/${vm}/backups/${backup}/finalize`, "<action/>");
  expect(plain(early.text)).toBe(failed("Cannot stop VM backup. There is an active image transfer for VM backup"));
  await world.settled(session, "transferring");
  await world.finish(session);
  expect(plain((await finalize(vm, backup)).text)).toBe(complete);
  await world.reach(vm, backup, "succeeded");
  expect(plain((await answered(200, "GET", `/vms/${vm}/backups/${backup}`)).text)).toBe(
    described("succeeded", toCheckpoint),
  );
  expect(plain((await finalize(vm, backup)).text)).toBe(complete);
  expect(plain((await answered(200, "GET", `/vms/${vm}/checkpoints`)).text)).toBe(`<checkpoints>
    <checkpoint href="/ovirt-engine/api/vms/ID/checkpoints/ID" id="ID">
        <creation_date>TIME</creation_date>
        <state>created</state>
        <vm href="/ovirt-engine/api/vms/ID" id="ID"/>
        <description>held full</description>
    </checkpoint>
</checkpoints>`);
  const ofCheckpoint = plain((await answered(200, "GET", `/vms/${vm}/checkpoints/${checkpoint}/disks`)).text);
  expect(ofCheckpoint).toBe(
    `<disks>\n${["vm1_Disk1", "vm1_Disk2"]
      .map((name) => diskIn("").replaceAll("DISK", name).replace("locked", "ok"))
      .join("\n")}\n</disks>`,
  );
  expect(await eventsOf(vm, "10790")).toEqual([`Backup ${backup} for VM vm1 started (User: admin@internal).`]);
  expect(await eventsOf(vm, "10792")).toEqual([`Backup ${backup} for VM vm1 finalized (User: admin@internal).`]);
  const below = await answered(200, "GET", `/vms/${vm}/disks/${disks[0]}`);
  expect(below.text).toContain("<backup>incremental</backup>");
});

it("a machine's second backup, in JSON, is incremental where that can be and is not unwanted", async () => {
  const disks = [
    await world.addDisk("mixed_1", MiB),
    await world.addDisk("mixed_2", MiB),
    await world.addDisk("mixed_raw", MiB, { format: "raw", backup: "none" }),
    await world.addDisk("mixed_none", MiB, { backup: "none" }),
  ];
  const [first = "", second = ""] = disks;
  const vm = await world.addMachine("mixed", disks);
  const all = { disk: disks.map((id) => ({ id })) };
  const full = await world.begin(vm, { disks: all });
  const { to_checkpoint_id: from } = await world.reach(vm, full, "ready");
  await finalize(vm, full);
  await world.reach(vm, full, "succeeded");
  const { json: kept } = await world.answered(200, "GET", `/vms/${vm}/checkpoints/${from}/disks`);
  expect(kept.disk.map(({ id }: { id: string }) => id)).toEqual([first, second]);
  const own = "0f0e0d0c-0b0a-4909-8807-060504030201";
  const chosen = disks.map((id) => ({ id, ...(id === second && { backup_mode: "full" }) }));
  const json = { id: own, from_checkpoint_id: from, disks: { disk: chosen } };
  const made = (await world.answered(201, "POST", `/vms/${vm}/backups`, { json })).json;
  expect(made).toMatchObject({ id: own, phase: "initializing", from_checkpoint_id: from });
  expect(made.to_checkpoint_id).toBeUndefined();
  const ready = await world.reach(vm, own, "ready");
  expect(ready.to_checkpoint_id).toMatch(/^[0-9a-f-]{36}$/);
  const { json: listed } = await world.answered(200, "GET", `/vms/${vm}/backups/${own}/disks`);
  expect(listed.disk.map(({ backup_mode: mode }: { backup_mode: string }) => mode)).toEqual([
    "incremental",
    "full",
    "full",
    "full",
  ]);
  // The examples of oVirt's SDK ask the disk itself, and download all of one that does not say.
  const modes = async () =>
    Promise.all(disks.map(async (id) => (await world.answered(200, "GET", `/disks/${id}`)).json.backup_mode));
  expect(await modes()).toEqual(["incremental", "full", "full", "full"]);
  const one = await world.answered(200, "GET", `/vms/${vm}/backups/${own}/disks/${first}`);
  expect([one.json.id, one.json.backup_mode]).toEqual([first, "incremental"]);
  const whole = await world.answered(200, "GET", `/vms/${vm}/backups/${own}?follow=disks`);
  expect(whole.json.disks).toEqual(listed);
  const checkpoint = await world.answered(200, "GET", `/vms/${vm}/checkpoints/${from}/disks/${first}`);
  expect(checkpoint.json.id).toBe(first);
  await world.answered(404, "GET", `/vms/${vm}/checkpoints/${from}/disks/${own}`);
  await finalize(vm, own);
  await world.reach(vm, own, "succeeded");
  expect(await modes()).toEqual([undefined, undefined, undefined, undefined]);
  const again = await world.answered(400, "POST", `/vms/${vm}/backups`, { json });
  expect(again.text).toContain("already exists");
  const raw = { disks: { disk: [{ id: disks[2] }] } };
  const plainDisk = await world.begin(vm, raw);
  expect((await world.reach(vm, plainDisk, "ready")).to_checkpoint_id).toBeUndefined();
  await finalize(vm, plainDisk);
  await world.reach(vm, plainDisk, "succeeded");
});

it("any checkpoint can be removed: those that follow it follow the one before it", async () => {
  const disk = await world.addDisk("chain", MiB);
  const vm = await world.addMachine("chain", [disk]);
  const ids: string[] = [];
  const backUp = async (more: object) => {
    const backup = await world.begin(vm, { ...more, disks: { disk: [{ id: disk }] } });
    const { to_checkpoint_id: id } = await world.reach(vm, backup, "ready");
    const refused = await answered(409, "DELETE", `/vms/${vm}/checkpoints/${ids[0] ?? id}`);
    expect(plain(refused.text)).toContain("Cannot remove checkpoint. The VM is during a backup operation.");
    await finalize(vm, backup);
    await world.reach(vm, backup, "succeeded");
    ids.push(id);
  };
  for (let times = 0; times < 3; times += 1) await backUp({});
  const parents = async () =>
    (await world.answered(200, "GET", `/vms/${vm}/checkpoints`)).json.checkpoint.map(
      ({ id, parent_id: parent }: { id: string; parent_id?: string }) => [id, parent],
    );
  expect(await parents()).toEqual([
    [ids[0], undefined],
    [ids[1], ids[0]],
    [ids[2], ids[1]],
  ]);
  await answered(200, "DELETE", `/vms/${vm}/checkpoints/${ids[1]}`);
  expect(await parents()).toEqual([
    [ids[0], undefined],
    [ids[2], ids[0]],
  ]);
  await answered(404, "GET", `/vms/${vm}/checkpoints/${ids[1]}`);
  await answered(404, "DELETE", `/vms/${vm}/checkpoints/${ids[1]}`);
  await backUp({ from_checkpoint_id: ids[2] });
  // What the disk recorded for it went when the disk was opened.
  expect(await world.instance.sql("SELECT id FROM machine_checkpoints WHERE status = 'removing'")).toEqual([]);
  await world.nothingIsLeft();
});

it("what cannot be backed up, or transferred, is refused in oVirt's words, and nothing is locked", async () => {
  const disk = await world.addDisk("lone", MiB);
  const other = await world.addDisk("other", MiB);
  const vm = await world.addMachine("refusals", [disk]);
  const nobody = "11111111-2222-4333-8444-555555555555";
  const post = async (status: number, xml: string, detail: string) =>
    expect(plain((await answered(status, "POST", `/vms/${vm}/backups`, xml)).text)).toBe(
      fault(`Cannot backup VM backup. ${detail.replaceAll(nobody, "ID")}`),
    );
  const of = (id: string, more = "") => `<backup>${more}<disks><disk id="${id}"/></disks></backup>`;
  await post(400, of(nobody), `The following disk(s) ID(s) does not exist: ${nobody}.`);
  await post(400, of("x"), "The following disk(s) ID(s) does not exist: x.");
  await post(409, of(other), "The following disks are not attached to VM refusals: other.");
  const from = `<from_checkpoint_id>${nobody}</from_checkpoint_id>`;
  await post(400, of(disk, from), `Checkpoint ID ${nobody} doesn't exist.`);
  const long = `<description>${"x".repeat(1_025)}</description>`;
  await post(400, of(disk, long), "The description is longer than 1024 characters.");
  const none = await answered(400, "POST", `/vms/${vm}/backups`, "<backup/>");
  expect(none.text).toContain("<detail>Backup [disks] required for add</detail>");
  const many = `<backup><disks>${`<disk id="${disk}"/>`.repeat(1_001)}</disks></backup>`;
  expect((await answered(400, "POST", `/vms/${vm}/backups`, many)).text).toContain("disks: more than 1000");
  await answered(404, "POST", `/vms/${nobody}/backups`, of(disk));
  await answered(404, "GET", `/vms/${vm}/backups/${nobody}`);
  await answered(404, "POST", `/vms/${vm}/backups/${nobody}/finalize`, "<action/>");
  const stranger = await ask(world.instance, "GET", `${base}/vms/${vm}/backups`, { as: "stranger@internal" });
  expect(stranger.status).toBe(404);
  const reader = await ask(world.instance, "POST", `${base}/vms/${vm}/backups`, {
    as: "reader@internal",
    xml: of(disk),
  });
  expect(reader.status).toBe(403);
  await world.answered(200, "PUT", `/vms/${vm}/diskattachments/${disk}`, { json: { active: false } });
  await post(409, of(disk), "The following disks are not active on VM refusals: lone.");
  await world.answered(200, "PUT", `/vms/${vm}/diskattachments/${disk}`, { json: { active: true } });
  await answered(200, "POST", `/vms/${vm}/start`, "<action/>");
  await post(409, of(disk), "VM is not reachable.");
  await answered(200, "POST", `/vms/${vm}/stop`, "<action/>");
  const backup = await world.begin(vm, { disks: { disk: [{ id: disk }] } });
  await world.reach(vm, backup, "ready");
  const during = (await answered(409, "POST", `/vms/${vm}/start`, "<action/>")).text;
  expect(during).toContain("The VM is during a backup operation.");
  await answered(409, "DELETE", `/vms/${vm}`);
  await answered(409, "DELETE", `/vms/${vm}/diskattachments/${disk}`);
  await answered(409, "POST", `/vms/${vm}/snapshots`, "<snapshot><description>s</description></snapshot>");
  const transfer = async (status: number, parts: string, detail: string) =>
    expect(
      plain((await answered(status, "POST", "/imagetransfers", `<image_transfer>${parts}</image_transfer>`)).text),
    ).toBe(fault(`Cannot transfer Virtual Disk. ${detail}`));
  const download = "<direction>download</direction>";
  const ofBackup = `<backup id="${backup}"/><disk id="${disk}"/>`;
  await transfer(
    400,
    `${download}<backup id="${nobody}"/><disk id="${disk}"/>`,
    "The specified VM backup does not exist.",
  );
  await transfer(
    400,
    `${download}<format>cow</format>${ofBackup}`,
    "The specified format is not applicable for VM backup.",
  );
  await transfer(400, ofBackup, "Disks of a VM backup can only be downloaded.");
  await transfer(
    400,
    `${download}<backup id="${backup}"/><disk id="${other}"/>`,
    "The specified disk is not part of the specified VM backup.",
  );
  const foreign = await ask(world.instance, "POST", `${base}/imagetransfers`, {
    as: "stranger@internal",
    xml: `<image_transfer>${download}${ofBackup}</image_transfer>`,
  });
  expect(foreign.text).toContain("The specified VM backup does not exist.");
  await finalize(vm, backup);
  await world.reach(vm, backup, "succeeded");
  await transfer(409, `${download}${ofBackup}`, "The VM backup is not in READY phase, backup phase is SUCCEEDED.");
  await world.nothingIsLeft();
});

it("a backup that is ended before it is ready is given up, and unlocks everything", async () => {
  const disk = await world.addDisk("early", MiB);
  const vm = await world.addMachine("early", [disk]);
  // It stands still, so that it cannot be quicker than the end is asked for.
  const [worker] = world.instance.workers;
  worker?.kill("SIGSTOP");
  const backup = await world.begin(vm, { disks: { disk: [{ id: disk }] } });
  await finalize(vm, backup).finally(() => worker?.kill("SIGCONT"));
  await world.reach(vm, backup, "failed");
  expect(await eventsOf(vm, "10791")).toEqual([
    `Failed to start backup ${backup} for VM early (User: admin@internal). It was given up before it could be read.`,
  ]);
  await world.nothingIsLeft();
  await world.answered(200, "DELETE", `/vms/${vm}`);
});
