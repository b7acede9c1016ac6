import { randomUUID } from "node:crypto";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Instance, Reply } from "../../kit/instance.ts";
import { setStatus, startApiOnly } from "../api-only.ts";

const project = "00000000000000000000000000000001";
const base = `/v3/${project}`;

let instance: Instance;
beforeAll(async () => {
  instance = await startApiOnly();
});
afterAll(() => instance[Symbol.asyncDispose]());

const ask = (method: string, path: string, body?: unknown, version = 71): Promise<Reply> =>
  instance.request(method, `${base}${path}`, body, { "openstack-api-version": `volume 3.${version}` });

async function makeVolume(): Promise<string> {
  const { body } = await ask("POST", "/volumes", { volume: { size: 1, name: "v" } });
  await setStatus(instance, "volumes", body.volume.id, "available");
  return body.volume.id;
}

const statusOf = async (volume: string): Promise<string> => (await ask("GET", `/volumes/${volume}`)).body.volume.status;
const connector = { host: "compute-1", initiator: "iqn.1", mountpoint: "/dev/vdb", mode: "rw" };

it("takes a volume from reserved to in use and back, as Nova and CSI ask for it", async () => {
  const volume = await makeVolume();
  const server = randomUUID();
  const created = await ask("POST", "/attachments", { attachment: { volume_uuid: volume, instance_uuid: server } });
  expect(created.status).toBe(200);
  const { attachment } = created.body;
  expect(attachment).toEqual({
    id: attachment.id,
    status: "reserved",
    instance: server,
    volume_id: volume,
    attached_at: "",
    detached_at: "",
    attach_mode: "null",
    connection_info: {},
  });
  expect(await statusOf(volume)).toBe("reserved");
  const path = `/attachments/${attachment.id}`;

  const updated = await ask("PUT", path, { attachment: { connector } });
  expect(updated.status).toBe(200);
  expect(updated.body.attachment).toMatchObject({ status: "attaching", attach_mode: "rw" });
  const info = updated.body.attachment.connection_info;
  expect(info).toMatchObject({ driver_volume_type: "local", access_mode: "rw", attachment_id: attachment.id });
  expect(info.device_path).toMatch(new RegExp(`/volume-${volume}$`));
  expect(await statusOf(volume)).toBe("attaching");
  // What is not attached yet stands in no volume.
  expect((await ask("GET", `/volumes/${volume}`)).body.volume.attachments).toEqual([]);

  expect((await ask("POST", `${path}/action`, { "os-complete": {} })).status).toBe(204);
  const { body } = await ask("GET", `/volumes/${volume}`);
  expect(body.volume.status).toBe("in-use");
  expect(body.volume.attachments).toMatchObject([
    { attachment_id: attachment.id, server_id: server, device: "/dev/vdb", host_name: "compute-1" },
  ]);
  expect((await ask("GET", path)).body.attachment.status).toBe("attached");
  expect((await ask("DELETE", `/volumes/${volume}`)).status).toBe(400);

  const gone = await ask("DELETE", path);
  expect([gone.status, gone.body]).toEqual([200, { attachments: [] }]);
  expect(await statusOf(volume)).toBe("available");
  const missing = await ask("GET", path);
  expect(missing.status).toBe(404);
  expect(missing.body.itemNotFound.message).toBe(
    `Volume attachment could not be found with filter: attachment_id = ${attachment.id}.`,
  );
  expect((await ask("DELETE", path)).status).toBe(404);
});

it("reserves, connects and says the mode in one call, and keeps a read-only volume from being written", async () => {
  const volume = await makeVolume();
  const one = await ask("POST", "/attachments", { attachment: { volume_uuid: volume, connector, mode: "ro" } });
  expect(one.body.attachment).toMatchObject({ status: "attaching", attach_mode: "ro" });
  expect(one.body.attachment.connection_info.access_mode).toBe("ro");
  expect((await ask("DELETE", `/attachments/${one.body.attachment.id}`)).status).toBe(200);
  await ask("POST", `/volumes/${volume}/action`, { "os-update_readonly_flag": { readonly: true } });
  const two = await ask("POST", "/attachments", { attachment: { volume_uuid: volume, connector, mode: "rw" } });
  expect(two.body.attachment.connection_info.access_mode).toBe("ro");
});

it("lets nobody else have a volume that is taken, but the same server once more", async () => {
  const volume = await makeVolume();
  const server = randomUUID();
  const mine = { attachment: { volume_uuid: volume, instance_uuid: server } };
  const first = await ask("POST", "/attachments", mine);
  const other = await ask("POST", "/attachments", {
    attachment: { volume_uuid: volume, instance_uuid: randomUUID() },
  });
  expect(other.status).toBe(400);
  expect(other.body.badRequest.message).toBe(
    `Invalid volume: Volume ${volume} status must be available or downloading to reserve, but the current status is reserved.`,
  );
  for (const action of [{ "os-reserve": {} }, { "os-extend": { new_size: 2 } }]) {
    expect((await ask("POST", `/volumes/${volume}/action`, action)).status).toBe(400);
  }
  expect((await ask("POST", "/backups", { backup: { volume_id: volume } })).status).toBe(400);
  expect((await ask("POST", "/os-volume-transfer", { transfer: { volume_id: volume } })).status).toBe(400);

  await ask("PUT", `/attachments/${first.body.attachment.id}`, { attachment: { connector } });
  await ask("POST", `/attachments/${first.body.attachment.id}/action`, { "os-complete": {} });
  const second = await ask("POST", "/attachments", mine);
  expect(second.status).toBe(200);
  const refused = await ask("PUT", `/attachments/${second.body.attachment.id}`, { attachment: { connector } });
  expect(refused.status).toBe(400);
  expect(refused.body.badRequest.message).toBe(
    `Unable to update attachment.(Invalid volume: duplicate connectors detected on volume ${volume}).`,
  );
  const left = await ask("DELETE", `/attachments/${first.body.attachment.id}`);
  expect(left.body.attachments).toMatchObject([{ id: second.body.attachment.id, status: "reserved" }]);
  expect(await statusOf(volume)).toBe("reserved");
  expect((await ask("DELETE", `/attachments/${second.body.attachment.id}`)).body.attachments).toEqual([]);
  expect(await statusOf(volume)).toBe("available");
});

it("keeps both ways of attaching to one truth", async () => {
  const volume = await makeVolume();
  const { body } = await ask("POST", "/attachments", { attachment: { volume_uuid: volume, connector } });
  await ask("POST", `/attachments/${body.attachment.id}/action`, { "os-complete": null });
  expect((await ask("POST", `/volumes/${volume}/action`, { "os-begin_detaching": {} })).status).toBe(202);
  const detach = { "os-detach": { attachment_id: body.attachment.id } };
  expect((await ask("POST", `/volumes/${volume}/action`, detach)).status).toBe(202);
  expect(await statusOf(volume)).toBe("available");
  expect((await ask("GET", `/attachments/${body.attachment.id}`)).status).toBe(404);

  const attach = { "os-attach": { instance_uuid: randomUUID(), mountpoint: "/dev/vdc", mode: "ro" } };
  expect((await ask("POST", `/volumes/${volume}/action`, attach)).status).toBe(202);
  const listed = await ask("GET", `/attachments/detail?volume_id=${volume}`);
  expect(listed.body.attachments).toMatchObject([{ status: "attached", attach_mode: "ro", connection_info: {} }]);
  expect((await ask("DELETE", `/attachments/${listed.body.attachments[0].id}`)).status).toBe(200);
  expect(await statusOf(volume)).toBe("available");
});

it("leaves the status of a volume that is being backed up to its backup, whatever becomes of its records", async () => {
  const volume = await makeVolume();
  const server = randomUUID();
  const mine = { attachment: { volume_uuid: volume, instance_uuid: server } };
  const first = (await ask("POST", "/attachments", { attachment: { ...mine.attachment, connector } })).body.attachment;
  await ask("POST", `/attachments/${first.id}/action`, { "os-complete": {} });
  const second = (await ask("POST", "/attachments", mine)).body.attachment;
  const backup = await ask("POST", "/backups", { backup: { volume_id: volume, force: true } });
  expect(backup.status).toBe(202);
  await ask("POST", `/attachments/${second.id}/action`, { "os-complete": {} });
  expect(await statusOf(volume)).toBe("backing-up");
  await ask("DELETE", `/attachments/${first.id}`);
  await ask("DELETE", `/attachments/${second.id}`);
  expect(await statusOf(volume)).toBe("backing-up");
  const [row] = await instance.sql("SELECT previous_status FROM volumes WHERE id = $1", [volume]);
  expect(row.previous_status).toBe("available");
});

it("refuses what does not fit, and what a version does not have", async () => {
  const volume = await makeVolume();
  const nobody = randomUUID();
  const cases: [unknown, number, number][] = [
    [{ attachment: {} }, 27, 400],
    [{ attachment: { volume_uuid: "x" } }, 27, 400],
    [{ attachment: { volume_uuid: volume, instance_uuid: null } }, 27, 400],
    [{ attachment: { volume_uuid: volume, mode: "ro" } }, 53, 400],
    [{ attachment: { volume_uuid: volume, mode: "rx" } }, 54, 400],
    [{ attachment: { volume_uuid: volume, connector: [] } }, 54, 400],
    [{ attachment: { volume_uuid: volume, connector: { host: "a\u0000b" } } }, 54, 400],
    [{ attachment: { volume_uuid: nobody } }, 54, 404],
    [{ attachment: { volume_uuid: volume } }, 26, 404],
  ];
  for (const [body, version, status] of cases) {
    expect((await ask("POST", "/attachments", body, version)).status, JSON.stringify(body)).toBe(status);
  }
  expect(await statusOf(volume)).toBe("available");
  for (const status of ["error", "error_restoring"]) {
    await setStatus(instance, "volumes", volume, status);
    const refused = await ask("POST", "/attachments", { attachment: { volume_uuid: volume } });
    expect(refused.body.badRequest.message).toContain(`The Volume ${volume} currently has a status of: ${status} `);
  }
  await setStatus(instance, "volumes", volume, "available");
  const { attachment } = (await ask("POST", "/attachments", { attachment: { volume_uuid: volume } }, 27)).body;
  expect((await ask("PUT", `/attachments/${attachment.id}`, { attachment: { connector: {} } })).status).toBe(400);
  const early = await ask("POST", `/attachments/${attachment.id}/action`, { "os-complete": {} }, 43);
  expect(early.status).toBe(404);
  expect((await ask("GET", "/attachments?volume_id=nope")).body.attachments).toEqual([]);
  expect((await ask("GET", `/attachments?volume_id=${volume}&attach_status=reserved`)).body.attachments).toEqual([
    { id: attachment.id, status: "reserved", instance: null, volume_id: volume },
  ]);
  expect((await ask("GET", `/attachments?volume_id=${volume}&attach_status=attached`)).body.attachments).toEqual([]);
});

it("lets one of many have a volume that all want at once", async () => {
  const volume = await makeVolume();
  const wanted = Array.from({ length: 12 }, () =>
    ask("POST", "/attachments", { attachment: { volume_uuid: volume, instance_uuid: randomUUID(), connector } }),
  );
  const statuses = (await Promise.all(wanted)).map(({ status }) => status);
  expect(statuses.filter((status) => status === 200)).toHaveLength(1);
  expect(statuses.filter((status) => status === 400)).toHaveLength(11);
});
