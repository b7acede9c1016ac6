import { afterAll, beforeAll, expect, it } from "vitest";
import { defaultVolumeType } from "../../../apps/api/src/cinder/volumes/views.ts";
import type { Instance } from "../../kit/instance.ts";
import { finishBackup, setStatus, startApiOnly } from "../api-only.ts";
import { openGolden } from "../golden.ts";

const project = "00000000000000000000000000000001";

interface World {
  volume: string;
  snapshot: string;
  backup: string;
  transfer: string;
  attachment: string;
  service: string;
}

async function makeWorld(instance: Instance): Promise<World> {
  const make = async (path: string, body: unknown, version = 71) => {
    const headers = { "openstack-api-version": `volume 3.${version}` };
    const reply = await instance.request("POST", `/v3/${project}/${path}`, body, headers);
    if (reply.status >= 300) throw new Error(`${path}: ${reply.text}`);
    return Object.values(reply.body as Record<string, { id: string }>)[0]?.id ?? "";
  };
  const available = async (): Promise<string> => {
    const id = await make("volumes", { volume: { size: 1, name: "v" } });
    await setStatus(instance, "volumes", id, "available");
    return id;
  };
  const volume = await available();
  const snapshot = await make("snapshots", { snapshot: { volume_id: volume } });
  await setStatus(instance, "snapshots", snapshot, "available");
  const backup = await make("backups", { backup: { volume_id: volume } });
  await finishBackup(instance, backup);
  const transfer = await make("os-volume-transfer", { transfer: { volume_id: await available(), name: "t" } });
  const attachment = await make("attachments", { attachment: { volume_uuid: await available() } });
  return { volume, snapshot, backup, transfer, attachment, service: "here@files" };
}

let instance: Instance;
let world: World;
beforeAll(async () => {
  instance = await startApiOnly();
  world = await makeWorld(instance);
});
afterAll(() => instance[Symbol.asyncDispose]());

/**
 * What Horizon 23.0.0's panels of volumes, snapshots, backups and their groups ask when they are opened (openstack_dashboard/api/cinder.py
 * and dashboards/{project,admin}), by way of python-cinderclient; the versions are those that it negotiates.
 */
const horizon: readonly [minor: number, path: string][] = [
  [0, "/extensions"],
  [0, "/limits"],
  [55, `/limits?project_id=${project}`],
  [0, "/os-availability-zone"],
  [0, "/os-services"],
  [0, `/os-quota-sets/${project}`],
  [0, `/os-quota-sets/${project}/defaults`],
  [0, `/os-quota-sets/${project}?usage=True`],
  [0, "/os-quota-class-sets/default"],
  [0, "/os-volume-transfer/detail"],
  [0, "/os-volume-transfer/detail?all_tenants=True"],
  [0, "/os-volume-transfer/detail?name=v"],
  [0, "/os-volume-transfer/detail?status=available"],
  [0, "/os-volume-transfer/{transfer}"],
  [58, "/volumes/detail?limit=21&sort=created_at%3Adesc"],
  [58, "/volumes/detail?all_tenants=1&limit=21&sort=created_at%3Adesc"],
  [58, "/volumes/detail"],
  [58, "/volumes/detail?status=available"],
  [58, "/volumes/{volume}"],
  [0, "/volumes/{volume}/encryption"],
  [58, "/snapshots/detail?limit=21&sort=created_at%3Adesc"],
  [58, "/snapshots/detail?all_tenants=1&limit=21&sort=created_at%3Adesc"],
  [0, "/snapshots/detail?volume_id={volume}"],
  [58, "/snapshots/{snapshot}"],
  [45, "/backups/detail?limit=20&offset=0&sort=created_at%3Adesc&with_count=True"],
  [45, "/backups/detail?all_tenants=1&limit=20&offset=0&with_count=True"],
  [18, "/backups/{backup}"],
  [0, "/backups/detail?snapshot_id={snapshot}"],
  [0, "/types"],
  [0, "/types?is_public=None"],
  [0, "/types/default"],
  [0, `/types/${defaultVolumeType.id}`],
  [0, `/types/${defaultVolumeType.id}/extra_specs`],
  [0, `/types/${defaultVolumeType.id}/encryption`],
  [0, "/qos-specs"],
  [58, "/groups/detail"],
  [58, "/group_snapshots/detail"],
  [58, "/group_types"],
  [29, "/messages?resource_type=VOLUME&resource_uuid={volume}"],
  [29, "/messages?resource_type=VOLUME_SNAPSHOT&resource_uuid={snapshot}"],
  [29, "/messages?resource_type=VOLUME_BACKUP&resource_uuid={backup}"],
  [0, "/scheduler-stats/get_pools"],
  [0, "/scheduler-stats/get_pools?detail=True"],
  [0, "/consistencygroups/detail"],
  [0, "/cgsnapshots/detail"],
];

/** What gophercloud, cinder-csi and Nova ask besides. */
const others: readonly [minor: number, path: string][] = [
  [0, "/scheduler-stats/get_pools?detail=true"],
  [28, "/scheduler-stats/get_pools?name=tephra%40files%23files"],
  [0, "/capabilities/{service}"],
  [0, "/capabilities/tephra@files%23files"],
  [0, "/os-hosts"],
  [0, "/os-hosts/{service}"],
  [27, "/attachments"],
  [27, "/attachments/detail?volume_id={volume}"],
  [27, "/attachments/{attachment}"],
  [55, "/volume-transfers/detail"],
  [59, "/volume-transfers?sort=created_at:desc&limit=1"],
  [33, "/resource_filters?resource=attachment"],
  [12, "/volumes/summary"],
];

it("answers everything that dashboards and drivers ask before they show or do anything", async () => {
  const refused: string[] = [];
  for (const [minor, path] of [...horizon, ...others]) {
    const filled = path.replace(/\{(\w+)\}/g, (_, name: keyof World) => world[name]);
    const headers = { "openstack-api-version": `volume 3.${minor}` };
    const { status, text } = await instance.request("GET", `/v3/${project}${filled}`, undefined, headers);
    if (status !== 200) refused.push(`3.${minor} ${filled}: ${status} ${text.slice(0, 200)}`);
  }
  expect(refused).toEqual([]);
});

it("tells of pools, hosts and capabilities what is so", async () => {
  const { volume } = world;
  await instance.sql(`UPDATE workers SET free_bytes = '{"backend:files": 5368709120}'`);
  const get = async (path: string, minor = 71) =>
    (
      await instance.request("GET", `/v3/${project}${path}`, undefined, {
        "openstack-api-version": `volume 3.${minor}`,
      })
    ).body;
  const { pools } = await get("/scheduler-stats/get_pools?detail=true");
  expect(pools).toHaveLength(1);
  expect(pools[0]).toMatchObject({
    name: "tephra@files#files",
    capabilities: { free_capacity_gb: 5, total_capacity_gb: "unknown", allocated_capacity_gb: 3, backend_state: "up" },
  });
  expect((await get(`/volumes/${volume}`)).volume["os-vol-host-attr:host"]).toBe(pools[0].name);
  expect((await get("/scheduler-stats/get_pools")).pools).toEqual([{ name: pools[0].name }]);
  expect((await get("/scheduler-stats/get_pools?name=another")).pools).toEqual([]);
  expect((await get("/scheduler-stats/get_pools?volume_type=fast")).pools).toEqual([]);
  expect((await get("/os-hosts/here@files")).host[0].resource).toEqual({
    host: "here@files",
    project: "(total)",
    volume_count: "3",
    total_volume_gb: "3",
    snapshot_count: "1",
    total_snapshot_gb: "1",
  });
  expect((await get("/os-hosts/nowhere")).itemNotFound.message).toBe(
    "Service cinder-volume could not be found on host nowhere.",
  );
  expect((await get("/capabilities/nowhere")).itemNotFound.message).toBe("Can't find service: nowhere");
});

it("takes whoever takes a snapshot at his word, but not about one that is being taken here", async () => {
  const { snapshot, volume } = world;
  const say = (id: string, body: object) =>
    instance.request("POST", `/v3/${project}/snapshots/${id}/action`, { "os-update_snapshot_status": body });
  expect((await say(snapshot, { status: "error" })).body.badRequest.message).toBe(
    "Snapshot status available not allowed for update_snapshot_status",
  );
  const made = await instance.request("POST", `/v3/${project}/snapshots`, { snapshot: { volume_id: volume } });
  const { id } = made.body.snapshot;
  for (const status of ["available", "error"]) {
    expect((await say(id, { status })).body.badRequest.message).toBe(
      `Provided snapshot status ${status} not allowed for snapshot with status creating.`,
    );
  }
  expect((await say(id, { status: "creating", progress: "40%" })).status).toBe(202);
  await instance.sql("UPDATE operations SET state = 'failed', finished_at = now() WHERE snapshot_id = $1", [id]);
  expect((await say(id, { status: "error", progress: "180%" })).body.badRequest.message).toBe(
    "Invalid input received: progress must be an integer percentage between 0 and 100",
  );
  expect((await say(id, { status: "error", progress: "80%" })).status).toBe(202);
  const shown = await instance.request("GET", `/v3/${project}/snapshots/${id}`);
  expect(shown.body.snapshot).toMatchObject({
    status: "error",
    "os-extended-snapshot-attributes:progress": "80%",
  });
});

it("answers in whole as it did", async () => {
  const golden = openGolden(instance, "dashboard");
  const base = `/v3/${project}`;
  const ask = (name: string, method: string, path: string, version: number, body?: unknown) =>
    golden.ask(name, method, `${base}${path}`, { version, ...(body !== undefined && { body }) });
  const made = await instance.request("POST", `${base}/volumes`, { volume: { size: 1, name: "golden" } });
  const volume = made.body.volume.id as string;
  await setStatus(instance, "volumes", volume, "available");
  for (const path of ["/os-volume-transfer", "/volume-transfers"]) {
    const body = { transfer: { volume_id: volume, name: "golden" } };
    const { transfer } = (await ask(`offer at ${path}`, "POST", path, 71, body)).body;
    await ask(`list at ${path}`, "GET", `${path}?name=golden`, 0);
    await ask(`list in detail at ${path}`, "GET", `${path}/detail?name=golden`, 71);
    await ask(`show at ${path}`, "GET", `${path}/${transfer.id}`, 56);
    await ask(`withdraw at ${path}`, "DELETE", `${path}/${transfer.id}`, 0);
    const again = (await ask(`offer again at ${path}`, "POST", path, 0, body)).body.transfer;
    const accept = { accept: { auth_key: again.auth_key } };
    await ask(`accept at ${path}`, "POST", `${path}/${again.id}/accept`, 0, accept);
  }
  const reserve = { attachment: { volume_uuid: volume, connector: { host: "h" }, mode: "ro" } };
  const { attachment } = (await ask("attach", "POST", "/attachments", 54, reserve)).body;
  await ask("connect", "PUT", `/attachments/${attachment.id}`, 54, { attachment: { connector: { host: "h" } } });
  await ask("complete", "POST", `/attachments/${attachment.id}/action`, 44, { "os-complete": {} });
  await ask("attachments", "GET", `/attachments?volume_id=${volume}`, 27);
  await ask("attachments in detail", "GET", `/attachments/detail?volume_id=${volume}`, 27);
  await ask("an attachment", "GET", `/attachments/${attachment.id}`, 27);
  await ask("detach", "DELETE", `/attachments/${attachment.id}`, 27);
  const type = `/types/${defaultVolumeType.id}`;
  await ask("an extra spec", "GET", `${type}/extra_specs/key`, 0);
  await ask("encryption of a type", "GET", `${type}/encryption`, 0);
  await ask("access to a type", "GET", `${type}/os-volume-type-access`, 0);
  await ask("encryption of a volume", "GET", `/volumes/${volume}/encryption`, 0);
  const lists = [
    "/qos-specs",
    "/consistencygroups",
    "/consistencygroups/detail",
    "/cgsnapshots",
    "/cgsnapshots/detail",
  ];
  for (const path of lists) await ask(path, "GET", path, 0);
  await ask("pools", "GET", "/scheduler-stats/get_pools", 0);
  await ask("capabilities", "GET", "/capabilities/here@files", 0);
  await ask("hosts", "GET", "/os-hosts?zone=nowhere", 0);
  await ask("no host", "GET", "/os-hosts/nowhere", 0);
  golden.check();
});
