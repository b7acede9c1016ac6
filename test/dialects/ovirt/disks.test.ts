import { existsSync, statSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Instance } from "../../kit/instance.ts";
import { ask, jsonHeaders, plain, projects, startEngineWithWorker } from "./engine.ts";

const MiB = 1024 ** 2;

let engine: Instance;
beforeAll(async () => {
  engine = await startEngineWithWorker();
});
afterAll(() => engine?.[Symbol.asyncDispose]());

const disks = "/ovirt-engine/api/disks";
const show = async (id: string) => (await ask(engine, "GET", `${disks}/${id}`, { headers: jsonHeaders })).json;

const settled = (id: string) =>
  engine.waitFor(async () => (await show(id)).status === "ok", { what: `disk ${id} is ok`, timeoutMs: 60_000 });

async function make(fields: Record<string, unknown>): Promise<string> {
  const reply = await ask(engine, "POST", disks, { json: { provisioned_size: 16 * MiB, format: "raw", ...fields } });
  expect(reply.status, reply.text).toBe(202);
  await settled(reply.json.id);
  return reply.json.id;
}

const detailOf = (text: string): string => /<detail>([\s\S]*?)<\/detail>/.exec(text)?.[1] ?? "";

describe("a disk", () => {
  it("is made with its exact size, in version 3 as clients ask for it", async () => {
    const reply = await ask(engine, "POST", "/api/disks", {
      xml: `<disk>
 <alias>restored</alias>
 <storage_domains><storage_domain><name>files</name></storage_domain></storage_domains>
 <size>16777216</size>
 <interface>virtio</interface>
 <format>raw</format>
</disk>`,
    });
    expect(reply.status).toBe(202);
    expect(reply.headers["location"]).toMatch(new RegExp(`^${engine.url}/api/disks/[0-9a-f-]{36}$`));
    expect(plain(reply.text)).toBe(`<disk href="/api/disks/ID" id="ID">
    <name>restored</name>
    <description></description>
    <actual_size>16777216</actual_size>
    <alias>restored</alias>
    <backup>none</backup>
    <content_type>data</content_type>
    <format>raw</format>
    <image_id>ID</image_id>
    <initial_size>16777216</initial_size>
    <propagate_errors>false</propagate_errors>
    <provisioned_size>16777216</provisioned_size>
    <shareable>false</shareable>
    <sparse>true</sparse>
    <status>
        <state>locked</state>
    </status>
    <storage_type>image</storage_type>
    <total_size>16777216</total_size>
    <wipe_after_delete>false</wipe_after_delete>
    <storage_domains>
        <storage_domain href="/api/storagedomains/ID" id="ID"/>
    </storage_domains>
    <creation_status>in_progress</creation_status>
    <size>16777216</size>
</disk>`);
    const id = /id="([0-9a-f-]{36})"/.exec(reply.text)?.[1] ?? "";
    await settled(id);
    expect(statSync(join(engine.volumesDir, `volume-${id}`)).size).toBe(16 * MiB);
    const cinder = await engine.sql("SELECT size_gib, size_bytes, project_id FROM volumes WHERE id = $1", [id]);
    expect(cinder).toEqual([{ size_gib: 1, size_bytes: String(16 * MiB), project_id: projects.a }]);
    expect((await ask(engine, "GET", `/api/disks/${id}`)).text).not.toContain("creation_status");
  });

  it("is made in JSON, with the id that was asked for, and answered when it is there to who waits", async () => {
    const id = "6f2a7c1e-1111-4222-8333-444455556666";
    const reply = await ask(engine, "POST", disks, {
      json: { id, name: "j", provisioned_size: "1000", format: "raw" },
      headers: { "x-ovirt-expect": "201-created", expect: "201-created" },
    });
    expect([reply.status, reply.json.id, reply.json.status]).toEqual([201, id, "ok"]);
    expect(reply.json).toMatchObject({ name: "j", alias: "j", provisioned_size: "1024", shareable: "false" });
    expect(statSync(join(engine.volumesDir, `volume-${id}`)).size).toBe(1024);
    const again = await ask(engine, "POST", disks, {
      xml: `<disk id="${id}"><provisioned_size>512</provisioned_size><format>raw</format></disk>`,
    });
    expect([again.status, detailOf(again.text)]).toEqual([
      400,
      "[Cannot add Virtual Disk. The disk ID already exists.]",
    ]);
  });

  it.each([
    ["<disk/>", "Disk [provisioned_size, format] required for add"],
    ["<disk><format>raw</format></disk>", "Disk [provisioned_size] required for add"],
    ["<disk><format>raw</format><provisioned_size>much</provisioned_size></disk>", "provisioned_size: 'much'"],
    ["<disk><format>raw</format><provisioned_size>0</provisioned_size></disk>", "provisioned_size: '0'"],
    ["<disk><format>raw</format><provisioned_size>99999999999999999999</provisioned_size></disk>", "provisioned_size"],
    ["<disk><format>vmdk</format><provisioned_size>512</provisioned_size></disk>", "format: 'vmdk'"],
    ["<disk><format>raw</format><size>512</size><sparse>maybe</sparse></disk>", "sparse: 'maybe' is not a boolean"],
    ["<disk><format>cow</format><size>512</size></disk>", "(COW Sparse) is incompatible"],
    [
      "<disk><format>raw</format><size>512</size><backup>incremental</backup></disk>",
      "[Incremental backup is not supported for RAW format disks.]",
    ],
    [
      "<disk><format>raw</format><size>512</size><storage_domains><storage_domain><name>x</name></storage_domain></storage_domains></disk>",
      "Storage Domain does not exist",
    ],
    [`<disk id="x"><format>raw</format><size>512</size></disk>`, "id: 'x'"],
  ])("is refused with 400: %s", async (xml, detail) => {
    const count = async () => (await engine.sql("SELECT count(*)::int AS n FROM volumes"))[0].n;
    const before = await count();
    const reply = await ask(engine, "POST", disks, { xml });
    expect(reply.status).toBe(400);
    expect(detailOf(reply.text)).toContain(detail);
    expect(await count()).toBe(before);
  });

  it("goes to the first storage domain of its format where the request has an empty one, as Ansible writes it", async () => {
    const xml = `<disk><alias>anywhere</alias><format>raw</format><provisioned_size>512</provisioned_size><sparse>false</sparse>
 <content_type>data</content_type><storage_domains><storage_domain></storage_domain></storage_domains></disk>`;
    const made = await ask(engine, "POST", disks, { xml, headers: { expect: "201-created" } });
    expect(made.status, made.text).toBe(201);
  });

  it("grows to the byte, and never shrinks", async () => {
    const id = await make({ alias: "grows" });
    const smaller = await ask(engine, "PUT", `${disks}/${id}`, { json: { provisioned_size: 512 } });
    expect(smaller.status).toBe(400);
    const grown = await ask(engine, "PUT", `${disks}/${id}`, {
      json: { provisioned_size: 24 * MiB, alias: "grown", description: "longer" },
    });
    expect(grown.json).toMatchObject({ alias: "grown", description: "longer" });
    await settled(id);
    expect((await show(id)).provisioned_size).toBe(String(24 * MiB));
    expect(statSync(join(engine.volumesDir, `volume-${id}`)).size).toBe(24 * MiB);
  });

  it("that is being worked on is locked, and stays", async () => {
    const id = await make({ alias: "busy" });
    await engine.sql("UPDATE volumes SET status = 'backing-up' WHERE id = $1", [id]);
    const reply = await ask(engine, "DELETE", `${disks}/${id}`);
    await engine.sql("UPDATE volumes SET status = 'available' WHERE id = $1", [id]);
    const words = "The following disks are locked: busy. Please try again in a few minutes.";
    expect([reply.status, detailOf(reply.text)]).toEqual([409, `[Cannot remove Virtual Disk: ${words}]`]);
  });

  it("is found as clients look for it", async () => {
    await make({ alias: "found one" });
    const found = async (search: string) => {
      const path = `${disks}?search=${encodeURIComponent(search)}`;
      const { json } = await ask(engine, "GET", path, { headers: jsonHeaders });
      return (json.disk ?? []).map(({ alias }: { alias: string }) => alias);
    };
    expect(await found('alias="found one"')).toEqual(["found one"]);
    expect(await found("name=found* and Storage.name=files")).toEqual(["found one"]);
    expect(await found("alias=FOUND* and status!=ok")).toEqual([]);
    expect(await found("found")).toEqual(["found one"]);
    expect(await found("name=none or alias=found* sortby alias desc page 1")).toEqual(["found one"]);
  });

  it("goes, with a job that can be looked for by the client's own name for it", async () => {
    const id = await make({ alias: "goes" });
    const reply = await ask(engine, "DELETE", `${disks}/${id}`, { headers: { "correlation-id": "going" } });
    expect(reply.status).toBe(200);
    expect(plain(reply.text)).toBe(`<action>
    <job href="/ovirt-engine/api/jobs/ID" id="ID"/>
    <status>complete</status>
</action>`);
    await engine.waitFor(async () => (await ask(engine, "GET", `${disks}/${id}`)).status === 404, {
      what: "the disk is gone",
      timeoutMs: 60_000,
    });
    const jobs = await ask(engine, "GET", "/ovirt-engine/api/jobs?search=correlation_id%3Dgoing", {
      headers: jsonHeaders,
    });
    expect(jobs.json.job).toEqual([expect.objectContaining({ status: "finished", description: "volume-delete" })]);
    expect(existsSync(join(engine.volumesDir, `volume-${id}`))).toBe(false);
  });

  it("is not there for another project, nor may a reader change it", async () => {
    const id = await make({ alias: "private" });
    for (const method of ["GET", "PUT", "DELETE"]) {
      const reply = await ask(engine, method, `${disks}/${id}`, { as: "stranger@internal" });
      expect([reply.status, reply.text], method).toEqual([404, ""]);
    }
    expect((await ask(engine, "GET", disks, { as: "stranger@internal", headers: jsonHeaders })).json).toEqual({});
    const refused = await ask(engine, "DELETE", `${disks}/${id}`, { as: "reader@internal" });
    expect([refused.status, detailOf(refused.text)]).toEqual([403, "[User is not authorized to perform this action.]"]);
    expect((await show(id)).status).toBe("ok");
  });
});

describe("a disk below a machine", () => {
  const vms = "/ovirt-engine/api/vms";
  const machineWith = async (name: string): Promise<string> => {
    const xml = `<vm><name>${name}</name><cluster><name>Default</name></cluster></vm>`;
    const made = await ask(engine, "POST", vms, { xml });
    expect(made.status, made.text).toBe(201);
    return String(made.headers["location"]).split("/").at(-1) ?? "";
  };
  const disksThere = async (): Promise<number> => (await engine.sql("SELECT count(*)::int AS n FROM volumes"))[0].n;

  it("is made and attached where the request names none, in both versions", async () => {
    const vm = await machineWith("grows disks");
    const four = await ask(engine, "POST", `${vms}/${vm}/diskattachments`, {
      json: { bootable: true, interface: "virtio_scsi", disk: { alias: "new", provisioned_size: MiB, format: "raw" } },
    });
    expect([four.status, four.json.active, four.json.bootable], four.text).toEqual([201, "true", "true"]);
    expect(four.headers["location"]).toBe(`${engine.url}${vms}/${vm}/diskattachments/${four.json.id}`);
    expect(await show(four.json.id)).toMatchObject({ alias: "new", provisioned_size: String(MiB), status: "ok" });
    const three = await ask(engine, "POST", `/api/vms/${vm}/disks`, {
      xml: `<disk><alias>old</alias><size>512</size><interface>virtio</interface><format>raw</format><active>false</active></disk>`,
    });
    expect(three.status, three.text).toBe(201);
    expect(three.text).toContain("<active>false</active>");
    const attached = await ask(engine, "GET", `${vms}/${vm}?follow=disk_attachments.disk`, { headers: jsonHeaders });
    const names = attached.json.disk_attachments.disk_attachment.map(
      (each: { disk: { alias: string } }) => each.disk.alias,
    );
    expect(names).toEqual(["new", "old"]);
  });

  it("that cannot be made or attached is not left behind", async () => {
    const vm = await machineWith("refuses disks");
    const before = await disksThere();
    const to = `${vms}/${vm}/diskattachments`;
    const without = await ask(engine, "POST", to, { xml: "<disk_attachment><disk/></disk_attachment>" });
    expect([without.status, detailOf(without.text)]).toEqual([400, "Disk [provisioned_size, format] required for add"]);
    const nothing = await ask(engine, "POST", to, { xml: "<disk_attachment/>" });
    expect([nothing.status, detailOf(nothing.text)]).toEqual([400, "DiskAttachment [disk] required for add"]);
    const disk = "<disk><provisioned_size>512</provisioned_size><format>raw</format></disk>";
    const xml = `<disk_attachment>${disk}</disk_attachment>`;
    expect(
      (await ask(engine, "POST", `${vms}/${"0".repeat(8)}-1111-4222-8333-444455556666/diskattachments`, { xml }))
        .status,
    ).toBe(404);
    expect(await disksThere()).toBe(before);
    await engine.sql("UPDATE instances SET power_state = 'MIGRATING' WHERE id = $1", [vm]);
    const moving = await ask(engine, "POST", to, { xml });
    await engine.sql("UPDATE instances SET power_state = 'SHUTOFF' WHERE id = $1", [vm]);
    expect(moving.status, moving.text).toBe(409);
    await engine.waitFor(async () => (await disksThere()) === before, { what: "the disk is removed again" });
  });

  it("is renamed and grows through its attachment, or nothing is changed", async () => {
    const vm = await machineWith("changes disks");
    const id = await make({ alias: "through" });
    const at = `${vms}/${vm}/diskattachments`;
    await ask(engine, "POST", at, { json: { disk: { id } } });
    const smaller = { bootable: true, disk: { provisioned_size: 512 } };
    const refused = await ask(engine, "PUT", `${at}/${id}`, { json: smaller });
    expect([refused.status, detailOf(refused.text) || refused.json.detail]).toEqual([
      400,
      "[Cannot edit Virtual Disk. New disk size cannot be smaller than the current one.]",
    ]);
    const same = await ask(engine, "GET", `${at}/${id}`, { headers: jsonHeaders });
    expect(same.json.bootable).toBe("false");
    const larger = { bootable: true, disk: { alias: "larger", provisioned_size: 20 * MiB } };
    const changed = await ask(engine, "PUT", `${at}/${id}`, { json: larger });
    expect([changed.status, changed.json.bootable], changed.text).toEqual([200, "true"]);
    await settled(id);
    expect(await show(id)).toMatchObject({ alias: "larger", provisioned_size: String(20 * MiB) });
    const three = await ask(engine, "PUT", `/api/vms/${vm}/disks/${id}`, { xml: "<disk><alias>again</alias></disk>" });
    expect(three.text).toContain("<alias>again</alias>");
  });

  it("of a snapshot is shown with it where that is asked for; who waits for a snapshot gets it when it is there", async () => {
    const vm = await machineWith("shows disks");
    const id = await make({ alias: "shown" });
    await ask(engine, "POST", `${vms}/${vm}/diskattachments`, { json: { disk: { id } } });
    const taken = await ask(engine, "POST", `${vms}/${vm}/snapshots`, {
      json: { description: "kept" },
      headers: { "x-ovirt-expect": "201-created", expect: "201-created" },
    });
    expect([taken.status, taken.json.snapshot_status], taken.text).toEqual([201, "ok"]);
    const path = `${vms}/${vm}/snapshots?follow=disks`;
    const { json } = await ask(engine, "GET", path, { headers: jsonHeaders });
    const shown = json.snapshot.map((each: { description: string; disks: { disk: { alias: string }[] } }) => [
      each.description,
      each.disks.disk.map(({ alias }) => alias),
    ]);
    expect(shown).toEqual([
      ["Active VM", ["shown"]],
      ["kept", ["shown"]],
    ]);
    const clone = { name: "a clone", cluster: { name: "Default" }, snapshots: { snapshot: [{ id: taken.json.id }] } };
    const cloned = await ask(engine, "POST", vms, { json: clone });
    expect([cloned.status, cloned.json.reason], cloned.text).toEqual([400, "Invalid value"]);
  });
});

describe("a hostile body", () => {
  const deep = (levels: number) => `${"<a>".repeat(levels)}${"</a>".repeat(levels)}`;
  it.each([
    ["a document type", '<!DOCTYPE disk [<!ENTITY x SYSTEM "file:///etc/passwd">]><disk><alias>&x;</alias></disk>'],
    ["an entity of HTML", "<disk><alias>&nbsp;</alias></disk>"],
    ["a processing instruction", "<disk><?php x?></disk>"],
    ["an encoding", '<?xml version="1.0" encoding="UTF-16"?><disk/>'],
    ["65 levels", deep(65)],
    ["100,001 elements", `<disk>${"<a/>".repeat(100_001)}</disk>`],
    ["a character that XML cannot hold", "<disk><alias>&#1;</alias></disk>"],
    ["no end", "<disk><alias>"],
    ["two beginnings", "<disk/><disk/>"],
    ["text alone", "disk"],
    ["bytes that are no text", Buffer.from([0x3c, 0xff, 0xfe])],
  ])("with %s is 400", async (_what, xml) => {
    const reply = await ask(engine, "POST", disks, { xml });
    expect(reply.status).toBe(400);
    expect(detailOf(reply.text)).not.toBe("");
  });

  it("of more than 8 MiB is 413, of a type that cannot be read 415, and what is no JSON 400", async () => {
    expect((await ask(engine, "POST", disks, { xml: `<disk>${" ".repeat(8 * MiB)}</disk>` })).status).toBe(413);
    expect((await ask(engine, "POST", disks, { xml: "a=b", headers: { "content-type": "text/plain" } })).status).toBe(
      415,
    );
    for (const text of ["{", "[]", '"x"', `${"[".repeat(90)}${"]".repeat(90)}`, '{"alias": "\\u0000"}']) {
      const reply = await ask(engine, "POST", disks, { xml: text, headers: jsonHeaders });
      expect([reply.status, reply.json?.reason !== undefined], text).toEqual([400, true]);
    }
  });
});
