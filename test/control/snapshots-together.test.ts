import { randomUUID } from "node:crypto";
import {
  type Config,
  type Database,
  InvalidError,
  instanceGroupType,
  type Principal,
  requestGroupBackup,
  requestGroupSnapshot,
} from "@tephra/control";
import { afterAll, beforeAll, expect, it } from "vitest";
import { openControl } from "../kit/control-database.ts";

const stack = new AsyncDisposableStack();
let database: Database;
let config: Config;
beforeAll(async () => {
  const opened = await openControl(stack);
  database = opened.database;
  await database.groupType.create({ data: { id: plainType, name: "plain" } });
  config = {
    ...opened.config,
    volume_backends: [
      ...opened.config.volume_backends,
      { name: "disks", driver: "device", path: "/srv/records", roots: ["/dev/vg"] },
      { name: "images", driver: "qemu", path: "/srv/images", roots: [] },
      { name: "ceph", driver: "rbd", pool: "volumes" },
    ],
  };
});
afterAll(() => stack.disposeAsync());

const principal: Principal = { userId: "u", projectId: "p", roles: [], isAdmin: true, requestId: "req-test" };
const owner = { projectId: principal.projectId, userId: principal.userId };

const plainType = randomUUID();

/** A group with a raw file and a volume of that backend, of a machine that runs or of none. */
async function addGroup(backend: string, instanceId: string | null) {
  if (instanceId !== null) {
    const machine = { ...owner, id: instanceId, name: "vm", powerState: "ACTIVE", driver: "record" };
    await database.instance.create({ data: machine });
  }
  const groupId = randomUUID();
  const groupTypeId = instanceId === null ? plainType : instanceGroupType;
  const group = { ...owner, id: groupId, groupTypeId, instanceId, availabilityZone: "nova", status: "available" };
  await database.group.create({ data: group });
  const volumeIds: string[] = [];
  for (const each of ["files", backend]) {
    const place = { sizeGib: 1, sizeBytes: 4096n, backend: each, availabilityZone: "nova" };
    const row = { ...owner, ...place, id: randomUUID(), groupId, status: "available" };
    volumeIds.push((await database.volume.create({ data: row })).id);
  }
  return { groupId, volumeId: volumeIds[1] ?? "" };
}

it.each(["disks", "ceph"])(
  "a group with a volume in %s is told at once that no snapshot of it is taken together with others",
  async (backend) => {
    const instanceId = randomUUID();
    const machine = await addGroup(backend, instanceId);
    const named = { name: "night", description: null, incremental: false, metadata: {} };
    const backup = () =>
      requestGroupBackup(database, config, principal, { groupId: machine.groupId, instanceId, ...named });
    const group = await addGroup(backend, null);
    const snapshot = () => requestGroupSnapshot(database, config, principal, { ...named, groupId: group.groupId });
    for (const [asking, { volumeId, groupId }] of [
      [backup, machine],
      [snapshot, group],
    ] as const) {
      const error = await asking().then(
        () => null,
        (cause: unknown) => cause,
      );
      expect(error).toBeInstanceOf(InvalidError);
      expect((error as Error).message).toMatch(
        new RegExp(`Volume ${volumeId} is in backend ${backend} .* no snapshots are taken together .* by itself`),
      );
      expect(await database.groupSnapshot.count({ where: { groupId } })).toBe(0);
      expect(await database.snapshot.count({ where: { volumeId } })).toBe(0);
    }
    expect(await database.operation.count()).toBe(0);
  },
);

it("images with layers are refused together with others only while their machine runs", async () => {
  const instanceId = randomUUID();
  const { groupId, volumeId } = await addGroup("images", instanceId);
  const named = { name: "night", description: null, incremental: false, metadata: {} };
  const backup = () => requestGroupBackup(database, config, principal, { groupId, instanceId, ...named });
  await expect(backup()).rejects.toThrow(`Volume ${volumeId} is in backend images`);
  await database.instance.updateMany({ where: { id: instanceId }, data: { powerState: "SHUTOFF" } });
  expect((await backup()).volumeIds).toContain(volumeId);
});
