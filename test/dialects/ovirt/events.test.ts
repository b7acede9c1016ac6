import { afterAll, beforeAll, expect, it } from "vitest";
import { freePort } from "../../../scripts/spawn-program.ts";
import type { Instance } from "../../kit/instance.ts";
import { type Asked, ask, basic, declaration, type EngineReply, jsonHeaders, startEngineWithWorker } from "./engine.ts";

const base = "/ovirt-engine/api";

let engine: Instance;
beforeAll(async () => {
  engine = await startEngineWithWorker({ config: { image_transfers: { port: await freePort() } } });
  await engine.startTransfer();
});
afterAll(() => engine?.[Symbol.asyncDispose]());

async function answered(status: number, method: string, path: string, asked: Asked = {}): Promise<EngineReply> {
  const reply = await ask(engine, method, base + path, asked);
  expect(reply.status, `${method} ${path}: ${reply.text}`).toBe(status);
  return reply;
}

const idIn = (reply: EngineReply): string => String(reply.headers["location"]).split("/").at(-1) ?? "";

interface Event {
  id: string;
  code: string;
  description: string;
  correlation_id?: string;
  severity: string;
  vm?: { id: string };
  disk?: { id: string };
  user?: { name: string };
}

async function eventsOf(parameters = "", as = "admin@internal"): Promise<Event[]> {
  const reply = await answered(200, "GET", `/events${parameters}`, { as, headers: { accept: "application/json" } });
  return reply.json.event ?? [];
}

/** Codes of what the search finds, oldest first. */
const codesOf = async (search: string): Promise<number[]> =>
  (await eventsOf(`?search=${encodeURIComponent(search)}`)).map(({ code }) => Number(code)).reverse();

const reaching = (search: string, code: number): Promise<unknown> =>
  engine.waitFor(async () => (await codesOf(search)).includes(code), { what: `event ${code} of ${search}` });

it("what happens to machines, disks, snapshots and transfers is told, with who asked and by which request", {
  timeout: 240_000,
}, async () => {
  const vm = idIn(
    await answered(201, "POST", "/vms", {
      xml: "<vm><name>web</name><cluster><name>Default</name></cluster></vm>",
      headers: { "correlation-id": "of-the-machine" },
    }),
  );
  const disk = idIn(
    await answered(202, "POST", "/disks", {
      xml: "<disk><alias>data</alias><provisioned_size>1048576</provisioned_size><format>raw</format></disk>",
      headers: { "correlation-id": "of-the-disk" },
    }),
  );
  await reaching(`disk.id=${disk}`, 2021);
  await answered(201, "POST", `/vms/${vm}/diskattachments`, {
    xml: `<disk_attachment><disk id="${disk}"/></disk_attachment>`,
  });
  const snapshot = idIn(
    await answered(202, "POST", `/vms/${vm}/snapshots`, {
      xml: "<snapshot><description>before</description></snapshot>",
      headers: { "correlation-id": "of-the-snapshot" },
    }),
  );
  await reaching(`vm.id=${vm}`, 68);
  await answered(200, "DELETE", `/vms/${vm}/snapshots/${snapshot}`);
  await reaching(`vm.id=${vm}`, 356);
  const transfer = idIn(
    await answered(201, "POST", "/imagetransfers", {
      xml: `<image_transfer><direction>download</direction><disk id="${disk}"/></image_transfer>`,
      headers: { "correlation-id": "of-the-transfer" },
    }),
  );
  await answered(200, "POST", `/imagetransfers/${transfer}/cancel`, { xml: "<action/>" });
  await reaching(`disk.id=${disk}`, 1033);
  await answered(200, "POST", `/vms/${vm}/start`, { xml: "<action/>" });
  await answered(200, "POST", `/vms/${vm}/stop`, { xml: "<action/>" });
  const removing = () => ask(engine, "DELETE", `${base}/vms/${vm}?detach_only=true`);
  await engine.waitFor(async () => (await removing()).status === 200, { what: "the machine to be removed" });
  await engine.waitFor(async () => (await ask(engine, "DELETE", `${base}/disks/${disk}`)).status === 200, {
    what: "the disk's removal to be accepted",
  });
  await reaching(`disk.id=${disk}`, 2014);
  expect(await codesOf(`vm.id=${vm}`)).toEqual([34, 2016, 45, 68, 342, 356, 153, 33, 2018, 113]);
  expect(await codesOf(`disk.id=${disk}`)).toEqual([2020, 2021, 2016, 1031, 1033, 2018, 2014]);
  const sentences = (await eventsOf(`?search=${encodeURIComponent("event_vm=web")}`)).map((each) => each.description);
  expect(sentences.reverse().slice(0, 4)).toEqual([
    "VM web was created by admin@internal.",
    "Disk data was successfully attached to VM web by admin@internal.",
    "Snapshot 'before' creation for VM 'web' was initiated by admin@internal.",
    "Snapshot 'before' creation for VM 'web' has been completed.",
  ]);
  // Also what a worker has ended is of the request that asked for it.
  expect(await codesOf("correlation_id=of-the-snapshot")).toEqual([45, 68]);
  expect(await codesOf("correlation_id=of-the-disk")).toEqual([2020, 2021]);
  expect(await codesOf("correlation_id=of-the-transfer")).toEqual([1031, 1033]);
  const [added] = await eventsOf("?search=correlation_id%3Dof-the-machine");
  expect(added).toMatchObject({ vm: { id: vm }, user: { name: "admin@internal" }, severity: "normal" });
  // A bare word is looked for in sentences and ids: clients ask with the id of what they wait for.
  expect(await codesOf(transfer)).toEqual([1031, 1033]);
  expect(await eventsOf("", "stranger@internal")).toEqual([]);
});

it("what fails is told: a transaction that is rolled back tells nothing", { timeout: 240_000 }, async () => {
  const before = await eventsOf();
  const taken = { name: "twice", cluster: { name: "Default" } };
  await answered(201, "POST", "/vms", { json: taken });
  await answered(409, "POST", "/vms", { json: taken });
  const told = (await eventsOf(`?from=${before[0]?.id ?? 0}`)).map(({ description }) => description);
  expect(told).toEqual(["VM twice was created by admin@internal."]);
  const [row] = await engine.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     VALUES (gen_random_uuid(), $1, 'u', 'lost', 'creating', 1, 512, 'files', 'nova') RETURNING id`,
    ["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"],
  );
  await engine.sql("UPDATE volumes SET status = 'error' WHERE id = $1", [row.id]);
  expect(await eventsOf(`?search=${encodeURIComponent(`disk.id=${row.id} and severity=error`)}`)).toMatchObject([
    { code: "2022", description: "Add-Disk operation of 'lost' failed to complete." },
  ]);
});

it("logins are told, those that fail too", { timeout: 120_000 }, async () => {
  const headers = { "content-type": "application/x-www-form-urlencoded" };
  const form = (password: string) =>
    String(
      new URLSearchParams({ grant_type: "password", scope: "ovirt-app-api", username: "reader@internal", password }),
    );
  const logIn = (password: string) =>
    ask(engine, "POST", "/ovirt-engine/sso/oauth/token", { as: null, xml: form(password), headers });
  expect((await logIn("let me in: it's 8 o'clock")).status).toBe(200);
  expect((await logIn("wrong")).status).toBe(400);
  const found = await eventsOf(`?search=${encodeURIComponent("usrname=reader@internal")}`);
  expect(found.map(({ description }) => description)).toEqual([
    "User reader@internal connecting from '127.0.0.1' failed to log in.",
    "User reader@internal connecting from '127.0.0.1' logged in.",
  ]);
});

it("clients add events of their own, each number once, and page through them", { timeout: 120_000 }, async () => {
  const xml = (id: number, origin = "mybackup"): string =>
    `<event>\n  <custom_id>${id}</custom_id>\n  <description>Backup is starting</description>\n  <origin>${origin}</origin>\n  <severity>normal</severity>\n</event>`;
  const made = await answered(201, "POST", "/events", { xml: xml(4711), headers: { "correlation-id": "mine" } });
  const id = idIn(made);
  expect(
    made.text.replace(/\d{4}-\d\d-\d\dT[\d:.]+\+00:00/, "TIME"),
  ).toBe(`${declaration}<event href="${base}/events/${id}" id="${id}">
    <code>9999</code>
    <correlation_id>mine</correlation_id>
    <custom_id>4711</custom_id>
    <description>Backup is starting</description>
    <origin>mybackup</origin>
    <severity>normal</severity>
    <time>TIME</time>
    <user id="${/<user id="([^"]*)"/.exec(made.text)?.[1]}">
        <name>admin@internal</name>
    </user>
</event>
`);
  const again = await answered(409, "POST", "/events", { xml: xml(4711) });
  expect(again.text).toContain("[Cannot add External Event. Custom Event ID already exists.]");
  await answered(201, "POST", "/events", { xml: xml(4711, "another") });
  await answered(201, "POST", "/events", { xml: xml(4711), as: "stranger@internal" });
  const lacking = await answered(400, "POST", "/events", { xml: "<event/>" });
  expect(lacking.text).toContain("Event [origin, severity, customId, description] required for add");
  await answered(400, "POST", "/events", { xml: xml(5).replace("normal", "dire") });
  const unknown = "11111111-2222-3333-4444-555555555555";
  await answered(400, "POST", "/events", { xml: xml(6).replace("<severity>", `<vm id="${unknown}"/><severity>`) });
  const numbered = (id: number) => ({ origin: "pages", custom_id: id, severity: "warning", description: `page ${id}` });
  for (const each of [1, 2, 3]) await answered(201, "POST", "/events", { json: numbered(each) });
  const all = await eventsOf("?search=origin%3Dpages");
  expect(all.map(({ description }) => description)).toEqual(["page 3", "page 2", "page 1"]);
  expect((await eventsOf(`?from=${all[2]?.id}`)).map(({ description }) => description)).toEqual(["page 3", "page 2"]);
  expect((await eventsOf(";max=1")).map(({ description }) => description)).toEqual(["page 3"]);
  expect((await eventsOf(`;max=1?search=${encodeURIComponent("origin=pages sortby time asc")}`))[0]?.description).toBe(
    "page 1",
  );
  await answered(400, "GET", "/events?from=yesterday");
  await answered(200, "DELETE", `/events/${all[0]?.id}`);
  await answered(404, "GET", `/events/${all[0]?.id}`);
  await answered(404, "GET", `/events/${all[1]?.id}`, { as: "stranger@internal" });
  await answered(404, "GET", "/events/99999999999999999999");
  await answered(403, "DELETE", `/events/${all[1]?.id}`, { as: "reader@internal" });
});

it("events are forgotten after their time", { timeout: 120_000 }, async () => {
  await answered(201, "POST", "/events", {
    headers: { ...jsonHeaders, authorization: basic("admin@internal") },
    json: { origin: "old", custom_id: 1, severity: "alert", description: "long ago" },
  });
  await engine.sql("UPDATE ovirt_events SET at = now() - interval '31 days' WHERE origin = 'old'");
  await engine.setDue("forget-ovirt-events");
  await engine.waitFor(async () => (await eventsOf("?search=origin%3Dold")).length === 0, {
    what: "the event to be forgotten",
  });
  expect((await eventsOf()).length).toBeGreaterThan(0);
});
