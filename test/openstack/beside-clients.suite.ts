import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { freePort } from "../../scripts/spawn-program.ts";
import { type Clients, clientsOf, passwordAccess } from "../clients/clients.ts";
import type { Instance } from "../kit/instance.ts";
import { startHaproxy } from "./balancers.ts";
import { atRest, type BesideWorld, same, startWorld, write } from "./beside-world.ts";

const MiB = 2 ** 20;
const GiB = 2 ** 30;

/** As the world has him. */
const demo = { name: "demo", password: "pw-demo", project: "alpha" };

let world: BesideWorld;
let instance: Instance;
const stack = new AsyncDisposableStack();

/** By shape of the deployment: the region of the catalogue whose endpoint a user takes. */
const regions = {
  "a second region": "north-backup",
  "a balancer": "north-split",
  "Tephra as the endpoint": "north-whole",
};

beforeAll(async () => {
  world = stack.use(await startWorld());
  const { identity, cinder } = world;
  instance = stack.use(await world.start({ backend: { forward: true } }));
  const port = await freePort();
  const balancer = await startHaproxy({ instance, cinder, port });
  stack.defer(async () => void (await balancer.stop()));
  for (const [shape, region] of Object.entries(regions)) {
    const origin = shape === "a balancer" ? `http://127.0.0.1:${port}` : instance.url;
    const url = `${origin}/v3/%(project_id)s`;
    await identity.addService({ type: "block-storage", name: region, url, region });
    // The name by which older clients look for it.
    await identity.addService({ type: "volumev3", name: `${region}-v3`, url, region });
  }
});
afterAll(() => stack.disposeAsync());

describe.each(Object.entries(regions))("unmodified clients, by %s", (_shape, region) => {
  let clients: Clients;
  let id: string;

  beforeAll(async () => {
    clients = clientsOf(passwordAccess({ url: world.identity.url, region }, demo), instance.dataDir);
    ({ id } = await world.user.createVolume({ name: `disk-${region}` }));
    write(world.cinder.file(id), 5 * MiB, 3 * MiB, region);
  });

  const available = (backup: string) =>
    instance.waitFor(
      async () => {
        const [row] = await instance.sql("SELECT status, fail_reason FROM backups WHERE id = $1", [backup]);
        if (row?.status.startsWith("error")) throw new Error(row.fail_reason);
        return row?.status === "available";
      },
      { what: `backup ${backup} is available`, timeoutMs: 60_000 },
    );

  const isRestored = async (target: string): Promise<boolean> => {
    await world.user.volumeIn(target, "available");
    await atRest(instance);
    return same(world.cinder.file(id), world.cinder.file(target), GiB);
  };

  it("openstack volume backup create, list, show, set, restore, delete", async () => {
    const { openstackJson, openstackEnds, openstack } = clients;
    const newest = ["--os-volume-api-version", "3.70"];
    const made = await openstackJson("volume", "backup", "create", "--name", "os-full", `disk-${region}`);
    await available(made.id);
    const more = await openstackJson("volume", "backup", "create", "--incremental", "--name", "os-more", id);
    await available(more.id);
    const listed = await openstackJson("volume", "backup", "list", "--long");
    expect(listed.map((row: Record<string, unknown>) => [row["ID"], row["Status"], row["Volume"]])).toEqual([
      [more.id, "available", expect.stringMatching(new RegExp(`${id}|disk-${region}`))],
      [made.id, "available", expect.stringMatching(new RegExp(`${id}|disk-${region}`))],
    ]);
    await openstack(...newest, "volume", "backup", "set", "os-full", "--name", "os-first", "--property", "a=b");
    expect(await openstackJson(...newest, "volume", "backup", "show", "os-first")).toMatchObject({
      id: made.id,
      volume_id: id,
      metadata: { a: "b" },
      has_dependent_backups: true,
    });
    // This version of the client fails over the answer, once the server has accepted.
    await openstackEnds("volume", "backup", "restore", "os-more", `os-target-${region}`);
    const [{ ID: target }] = await openstackJson("volume", "list", "--name", `os-target-${region}`);
    expect(await isRestored(target)).toBe(true);
    await openstack("volume", "backup", "delete", more.id);
    await atRest(instance);
    await openstack("volume", "backup", "delete", "os-first");
    await atRest(instance);
    expect(await openstackJson("volume", "backup", "list")).toEqual([]);
  });

  it("cinder backup-create, backup-list, backup-show, backup-restore, backup-delete, create --backup-id, absolute-limits", async () => {
    const { cinder, cinderProperties, cinderRows } = clients;
    const made = await cinderProperties("backup-create", "--name", "c-full", `disk-${region}`);
    const backup = made["id"] ?? "";
    await available(backup);
    expect((await cinderRows("backup-list")).map((row) => [row["ID"], row["Status"]])).toEqual([[backup, "available"]]);
    expect(await cinderProperties("backup-show", "c-full")).toMatchObject({ id: backup, volume_id: id, size: "1" });
    const restored = await cinderProperties("backup-restore", backup);
    expect(await isRestored(restored["volume_id"] ?? "")).toBe(true);
    await cinder("backup-restore", "--volume", restored["volume_id"] ?? "", backup);
    expect(await isRestored(restored["volume_id"] ?? "")).toBe(true);
    const create = ["create", "--backup-id", backup, "--name", `c-made-${region}`];
    const of = await cinderProperties("--os-volume-api-version", "3.47", ...create);
    expect(await isRestored(of["id"] ?? "")).toBe(true);
    const limits = await cinderRows("absolute-limits");
    expect(limits).toContainEqual({ Name: "totalBackupsUsed", Value: "1" });
    await cinder("backup-delete", "c-full");
    await atRest(instance);
    expect(await cinderRows("backup-list")).toEqual([]);
  });

  it("openstacksdk: create, find, list, restore, delete", async () => {
    const done = await clients.sdk("sdk.py", id);
    expect(done).toMatchObject({
      full: ["sdk full", "by the SDK", false, {}],
      more: ["sdk more", true, true, true],
      listed: ["sdk full", "sdk more"],
      missing: null,
    });
    expect(await isRestored(done.target)).toBe(true);
  });
});
