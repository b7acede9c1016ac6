import { randomUUID } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openVolumeBackend } from "@tephra/engine";
import { afterAll, beforeAll, expect, it } from "vitest";
import { provideQemuUtils } from "../../../scripts/qemu-utils-package.ts";
import { freePort } from "../../../scripts/spawn-program.ts";
import { randomBytesOf } from "../../kit/bytes.ts";
import { askImage } from "../../kit/image-client.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { ask, ovirtUsers, plain, projects, startEngineWithWorker } from "./engine.ts";

const MiB = 1024 * 1024;
const base = "/ovirt-engine/api";
let engine: Instance;
beforeAll(async () => {
  engine = await startEngineWithWorker({ config: { image_transfers: { port: await freePort() } } });
  await engine.startTransfer();
});
afterAll(() => engine?.[Symbol.asyncDispose]());

async function addDisk(project: string = projects.a): Promise<string> {
  const id = randomUUID();
  await (await openVolumeBackend({ driver: "file", path: engine.volumesDir })).create(id, MiB);
  await engine.sql(
    `INSERT INTO volumes (id, project_id, user_id, name, status, size_gib, size_bytes, backend, availability_zone)
     VALUES ($1, $2, 'u', 'disk', 'available', 1, $3, 'files', 'nova')`,
    [id, project, MiB],
  );
  return id;
}

const act = (id: string, action: string) =>
  ask(engine, "POST", `${base}/imagetransfers/${id}/${action}`, { xml: "<action/>" });

const show = async (id: string) =>
  (
    await ask(engine, "GET", `${base}/imagetransfers/${id}`, {
      json: undefined,
      headers: { accept: "application/json" },
    })
  ).json;

const reach = (id: string, phase: string) =>
  engine.waitFor(
    async () => {
      const seen = await show(id);
      return seen.phase === phase && seen;
    },
    { what: `transfer ${id} is ${phase}`, timeoutMs: 40_000 },
  );

const begun = (phase: string, more: { direction: string; format: string; policy: string }, urls = ""): string =>
  `<image_transfer href="/ovirt-engine/api/imagetransfers/ID" id="ID">
    <active>false</active>
    <direction>${more.direction}</direction>
    <format>${more.format}</format>
    <inactivity_timeout>60</inactivity_timeout>
    <phase>${phase}</phase>
    <shallow>false</shallow>
    <timeout_policy>${more.policy}</timeout_policy>
    <transferred>0</transferred>${urls}
    <host href="/ovirt-engine/api/hosts/ID" id="ID"/>
    <image id="ID"/>
    <disk href="/ovirt-engine/api/disks/ID" id="ID"/>
</image_transfer>`;

const fault = (detail: string, reason = "Operation Failed") => `<action>
    <fault>
        <detail>[${detail}]</detail>
        <reason>${reason}</reason>
    </fault>
    <status>failed</status>
</action>`;

const complete = `<action>
    <job href="/ovirt-engine/api/jobs/ID" id="ID"/>
    <status>complete</status>
</action>`;

it("an upload, paused and resumed, becomes the disk, in the words of oVirt", { timeout: 180_000 }, async () => {
  const disk = await addDisk();
  const asked = `<image_transfer><direction>upload</direction><disk id="${disk}"/></image_transfer>`;
  const made = await ask(engine, "POST", `${base}/imagetransfers`, { xml: asked });
  const upload = { direction: "upload", format: "raw", policy: "legacy" };
  expect([made.status, plain(made.text)]).toEqual([201, begun("initializing", upload)]);
  const id = String(made.headers["location"]).split("/").at(-1) ?? "";
  const { transfer_url: first, proxy_url: proxy, host } = await reach(id, "transferring");
  expect(proxy).toBe(first);
  const hosts = await ask(engine, "GET", `${base}/hosts/${host.id}`);
  expect(hosts.status).toBe(200);
  const again = await ask(engine, "POST", `${base}/imagetransfers`, { xml: asked });
  expect([again.status, plain(again.text)]).toEqual([
    409,
    "<fault>\n    <detail>[Cannot transfer Virtual Disk. Disk disk is being transferred.]</detail>\n    <reason>Operation Failed</reason>\n</fault>",
  ]);
  const paused = await act(id, "pause");
  expect([paused.status, plain(paused.text)]).toEqual([200, complete]);
  const seen = await ask(engine, "GET", `${base}/imagetransfers/${id}`);
  expect(plain(seen.text)).toBe(begun("paused_user", upload));
  expect((await askImage("OPTIONS", first)).status).toBe(403);
  expect((await act(id, "resume")).status).toBe(200);
  const { transfer_url: url } = await reach(id, "transferring");
  const refusal = await act(id, "resume");
  expect([refusal.status, plain(refusal.text)]).toEqual([
    409,
    fault("Cannot resume image transfer as it's not in a paused state."),
  ]);
  const data = randomBytesOf("upload", MiB);
  const half = MiB / 2;
  for (const at of [0, half]) {
    const headers = { "content-range": `bytes ${at}-${at + half - 1}/*` };
    const { status } = await askImage("PUT", `${url}?flush=n`, { headers, body: data.subarray(at, at + half) });
    expect(status).toBe(200);
  }
  expect((await act(id, "finalize")).status).toBe(200);
  const ended = await reach(id, "finished_success");
  expect([ended.transfer_url, ended.transferred]).toEqual([undefined, String(MiB)]);
  expect(readFileSync(join(engine.volumesDir, `volume-${disk}`)).equals(data)).toBe(true);
});

it("a download that cannot be paused is finalized; what cannot be begun is refused", { timeout: 180_000 }, async () => {
  const disk = await addDisk();
  const asked = `<image_transfer><direction>download</direction><format>raw</format><timeout_policy>cancel</timeout_policy>
    <disk id="${disk}"/></image_transfer>`;
  const made = await ask(engine, "POST", `${base}/imagetransfers`, { xml: asked });
  expect(plain(made.text)).toBe(begun("initializing", { direction: "download", format: "raw", policy: "cancel" }));
  const id = String(made.headers["location"]).split("/").at(-1) ?? "";
  const { transfer_url: url } = await reach(id, "transferring");
  expect((await askImage("GET", url)).body.equals(Buffer.alloc(MiB))).toBe(true);
  const paused = await act(id, "pause");
  expect([paused.status, plain(paused.text)]).toEqual([
    400,
    fault(
      "Cannot pause image download as it's handled by the client. Note that it can be canceled if you wish to stop it.",
    ),
  ]);
  expect((await act(id, "extend")).status).toBe(200);
  expect((await ask(engine, "GET", `${base}/imagetransfers/${id}`, { as: "stranger@internal" })).status).toBe(404);
  const reader = { as: "reader@internal", xml: "<action/>" };
  expect((await ask(engine, "POST", `${base}/imagetransfers/${id}/cancel`, reader)).status).toBe(403);
  expect((await act(id, "finalize")).status).toBe(200);
  await reach(id, "finished_success");
  const refusedWith = async (body: object) =>
    (await ask(engine, "POST", `${base}/imagetransfers`, { json: body })).status;
  expect(await refusedWith({ disk: { id: randomUUID() } })).toBe(400);
  expect(await refusedWith({ disk: { id: await addDisk(projects.b) } })).toBe(400);
  expect(await refusedWith({ disk: { id: disk }, format: "cow" })).toBe(400);
  expect(await refusedWith({ disk: { id: disk }, direction: "sideways" })).toBe(400);
  expect(await refusedWith({ disk: { id: disk }, inactivity_timeout: "-1" })).toBe(400);
  expect(await refusedWith({})).toBe(400);
  for (const action of ["cancel", "finalize", "pause", "resume", "extend"]) {
    expect((await act(randomUUID(), action)).status).toBe(404);
  }
  const list = await ask(engine, "GET", `${base}/imagetransfers?search=phase%3Dfinished_success`, {
    headers: { accept: "application/json" },
  });
  expect(list.json.image_transfer.map((one: { id: string }) => one.id)).toContain(id);
});

it("a machine's snapshot is downloaded disk by disk, and not deleted meanwhile", { timeout: 180_000 }, async () => {
  const disk = await addDisk();
  const api = (method: string, path: string, json: object) => ask(engine, method, base + path, { json });
  const machine = { name: "vm1", cluster: { name: "Default" }, template: { name: "Blank" } };
  const { json: vm } = await api("POST", "/vms", machine);
  const attachment = { bootable: true, interface: "virtio", active: true, disk: { id: disk } };
  expect((await api("POST", `/vms/${vm.id}/diskattachments`, attachment)).status).toBe(201);
  const { json: made } = await api("POST", `/vms/${vm.id}/snapshots`, { description: "before" });
  const path = `${base}/vms/${vm.id}/snapshots/${made.id}`;
  const json = { headers: { accept: "application/json" } };
  const isThere = async () => (await ask(engine, "GET", path, json)).json.snapshot_status === "ok";
  await engine.waitFor(isThere, { what: "the snapshot is there", timeoutMs: 40_000 });
  const [{ image_id: imageId }] = (await ask(engine, "GET", `${path}/disks`, json)).json.disk;
  const asked = `<image_transfer><direction>download</direction><snapshot id="${imageId}"/></image_transfer>`;
  const begunOne = await ask(engine, "POST", `${base}/imagetransfers`, { xml: asked });
  const expected = begun("initializing", { direction: "download", format: "raw", policy: "legacy" });
  expect(plain(begunOne.text)).toBe(
    expected.replace("\n</image_transfer>", '\n    <snapshot id="ID"/>\n</image_transfer>'),
  );
  const id = String(begunOne.headers["location"]).split("/").at(-1) ?? "";
  const { transfer_url: url, snapshot } = await reach(id, "transferring");
  expect(snapshot.id).toBe(imageId);
  expect((await askImage("GET", url)).body.equals(Buffer.alloc(MiB))).toBe(true);
  const refusal = await ask(engine, "DELETE", path, {});
  expect([refusal.status, refusal.text]).toEqual([
    409,
    expect.stringContaining(
      "[Cannot remove Snapshot: The following disks are locked: disk. Please try again in a few minutes.]",
    ),
  ]);
  const upload = await api("POST", "/imagetransfers", { direction: "upload", snapshot: { id: imageId } });
  expect([upload.status, upload.json.detail]).toEqual([
    400,
    "[Cannot transfer Virtual Disk. A disk snapshot can only be downloaded.]",
  ]);
  expect((await api("POST", "/imagetransfers", { direction: "download", snapshot: { id: randomUUID() } })).status).toBe(
    400,
  );
  const stranger = { as: "stranger@internal", json: { direction: "download", snapshot: { id: imageId } } };
  expect((await ask(engine, "POST", `${base}/imagetransfers`, stranger)).status).toBe(400);
  expect((await act(id, "finalize")).status).toBe(200);
  await reach(id, "finished_success");
  expect((await ask(engine, "DELETE", path, {})).status).toBe(200);
});

it("a transfer of a cow disk is of the image where it is not said, and of the other format where it is", {
  timeout: 300_000,
}, async () => {
  await using stack = new AsyncDisposableStack();
  const env = await provideQemuUtils(process.env["PATH"] ?? "", (line) => process.stderr.write(`${line}\n`));
  const path = mkdtempSync(join(tmpdir(), "tephra-images-"));
  stack.defer(() => rmSync(path, { recursive: true, force: true }));
  const config = {
    ovirt: { users: ovirtUsers },
    volume_backends: [{ name: "images", driver: "qemu", path }],
    image_transfers: { port: await freePort() },
  };
  const instance = stack.use(await startInstance({ config, env }));
  await instance.startTransfer();
  const wanted = { alias: "data", provisioned_size: String(MiB), format: "cow" };
  const made = await ask(instance, "POST", `${base}/disks`, { json: wanted, headers: { expect: "201-created" } });
  expect([made.status, made.json.format]).toEqual([201, "cow"]);
  const transfer = async (asked: object) => {
    const json = { disk: { id: made.json.id }, ...asked };
    const begun = await ask(instance, "POST", `${base}/imagetransfers`, { json });
    expect(begun.status, begun.text).toBe(201);
    return begun.json;
  };
  const at = async (id: string, phase: string) =>
    instance.waitFor(
      async () => {
        const { json } = await ask(instance, "GET", `${base}/imagetransfers/${id}`, {
          headers: { accept: "application/json" },
        });
        return json.phase === phase && json;
      },
      { what: `transfer ${id} is ${phase}`, timeoutMs: 40_000 },
    );
  const end = async (id: string) => {
    expect((await ask(instance, "POST", `${base}/imagetransfers/${id}/finalize`, { xml: "<action/>" })).status).toBe(
      200,
    );
    await at(id, "finished_success");
  };
  const data = randomBytesOf("guest", MiB);
  const raw = await transfer({ direction: "upload", format: "raw" });
  const { transfer_url: rawUrl } = await at(raw.id, "transferring");
  expect((await askImage("PUT", rawUrl, { body: data })).status).toBe(200);
  await end(raw.id);
  const image = await transfer({ direction: "download" });
  expect(image.format).toBe("cow");
  const { transfer_url: imageUrl } = await at(image.id, "transferring");
  const { body } = await askImage("GET", imageUrl);
  expect(body.toString("latin1", 0, 4)).toBe("QFI\xfb");
  await end(image.id);
  const back = await transfer({ direction: "upload" });
  expect(back.format).toBe("cow");
  const { transfer_url: backUrl } = await at(back.id, "transferring");
  expect((await askImage("PUT", backUrl, { body })).status).toBe(200);
  await end(back.id);
  const seen = await transfer({ direction: "download", format: "raw" });
  const { transfer_url: seenUrl } = await at(seen.id, "transferring");
  expect((await askImage("GET", seenUrl)).body.equals(data)).toBe(true);
  await end(seen.id);
});
