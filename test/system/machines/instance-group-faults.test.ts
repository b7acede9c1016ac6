import { open, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { crashAt } from "../../kit/crash-at.ts";
import { type Instance, startInstance } from "../../kit/instance.ts";
import { type Journey, journeyOn, project, randomBytesOf, sha256Of, writeIslands } from "../../kit/journey.ts";
import { type Machine, machinesOn } from "../../kit/machines.ts";

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;
const base = `/v3/${project}`;

/** Short leases, so that a takeover is a matter of seconds; many ranges, so that a death falls between them. */
const brisk = {
  config: {
    // A test may make more than ten.
    quotas: { snapshots: -1 },
    range_bytes: 128 * MiB,
    worker: { slots: 2, lease_ms: 4_000, heartbeat_ms: 800, drain_ms: 1_000 },
    tasks: { reconcile_ms: 300, dispatch_timeout_ms: 5_000, backoff_ms: 100 },
  },
  repository: { object_bytes: 4 * MiB },
};

const disks = (seed: string, sizeBytes: number, dataBytes: number) =>
  Array.from({ length: 3 }, (_, at) => ({
    sizeBytes,
    islands: [
      { offset: at * 4096, data: randomBytesOf(`${seed} ${at}`, dataBytes) },
      { offset: sizeBytes - 8192, data: randomBytesOf(`${seed} end ${at}`, 8192) },
    ],
  }));

const hashesOf = (user: Journey, machine: Machine) =>
  Promise.all(machine.volumes.map((volume) => sha256Of(user.volumeFile(volume))));

/** Starts the work with a worker that dies at `point`, and lets another one go on. */
async function withDeathAt(instance: Instance, point: string, start: () => Promise<unknown>): Promise<void> {
  const doomed = await instance.startWorker(crashAt(point));
  await start();
  await instance.waitFor(() => !doomed.running(), { what: `the worker died at ${point}`, timeoutMs: 120_000 });
  await instance.startWorker();
}

describe("a machine of three disks", () => {
  it("of one GiB each comes back exactly, though a worker dies in its backup, its restore and its deletion", {
    timeout: 600_000,
  }, async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const machines = machinesOn(instance, user);
    const machine = await machines.create(disks("gib", GiB, 6 * MiB));
    const before = await hashesOf(user, machine);
    const stopAll = async () => void (await Promise.all(instance.workers.map((worker) => worker.stop())));

    await stopAll();
    await withDeathAt(instance, "copy:3", async () => {
      expect((await machines.backup(machine, "b", { async: true })).status).toBe(201);
    });
    const backup = await machines.settled(machine, "b", "available", 300_000);
    await machines.free(machine);
    for (const volume of machine.volumes) {
      await writeIslands(user.volumeFile(volume), null, [{ offset: 0, data: randomBytesOf("spoilt", 8 * MiB) }]);
    }

    await stopAll();
    await withDeathAt(instance, "restore:3", async () => {
      expect((await machines.restore(machine, backup, { async: true })).status).toBe(201);
      const started = await instance.request("PUT", `/ops/instances/${machine.id}`, {
        instance: { power_state: "ACTIVE" },
      });
      expect(started.body.badRequest.message).toContain("An operation is already in progress");
    });
    await machines.free(machine, 300_000);
    expect(await hashesOf(user, machine)).toEqual(before);
    await machines.settled(machine, "b", "available");

    await stopAll();
    await withDeathAt(instance, "conclude-group:2", async () => {
      expect((await machines.deleteBackup(machine, backup, { async: true })).status).toBe(201);
    });
    await machines.free(machine, 300_000);
    expect(await machines.list(machine)).toEqual([]);
    await user.expectQuiet();
    expect((await readdir(instance.volumesDir)).filter((name) => /snapshot|restore/.test(name))).toEqual([]);
    expect(await hashesOf(user, machine)).toEqual(before);
  });

  it("has all its disks replaced when a worker dies between two of them", { timeout: 300_000 }, async () => {
    await using instance = await startInstance({ workers: 1, ...brisk });
    const user = journeyOn(instance);
    const machines = machinesOn(instance, user);
    const machine = await machines.create(disks("between", 6 * MiB, 2 * MiB));
    const before = await hashesOf(user, machine);
    const { body } = await machines.backup(machine, "b");
    const backup = { id: body.group_snapshot_id as string, name: "b" };
    for (const point of ["snapshot-group.claimed:1", "conclude-group:1", "conclude-group:2", "conclude-group:3"]) {
      for (const volume of machine.volumes) {
        await writeIslands(user.volumeFile(volume), null, [{ offset: 0, data: randomBytesOf(point, MiB) }]);
      }
      await Promise.all(instance.workers.map((worker) => worker.stop()));
      if (point.startsWith("snapshot")) {
        await withDeathAt(instance, point, () => machines.backup(machine, "again", { async: true }));
        await machines.settled(machine, "again", "available");
        await machines.free(machine);
        continue;
      }
      await withDeathAt(instance, point, () => machines.restore(machine, backup, { async: true }));
      await machines.free(machine);
      expect(await hashesOf(user, machine), point).toEqual(before);
      for (const volume of machine.volumes) await user.settled("volumes", volume, "in-use");
    }
    await user.expectQuiet();
  });

  it("keeps all its disks as they are when one of its backups is damaged", { timeout: 300_000 }, async () => {
    await using instance = await startInstance({ workers: 2, ...brisk });
    const user = journeyOn(instance);
    const machines = machinesOn(instance, user);
    const machine = await machines.create(disks("damaged", 6 * MiB, 2 * MiB));
    const { body } = await machines.backup(machine, "b");
    const [, second] = body.backup_id as string[];
    const files = await readdir(instance.repositoryDir, { recursive: true, withFileTypes: true });
    const object = files.find((file) => file.isFile() && `${file.parentPath}/${file.name}`.includes(`${second}-00001`));
    const path = join(object?.parentPath ?? "", object?.name ?? "");
    const bytes = await readFile(path);
    const middle = Math.floor(bytes.length / 2);
    bytes.writeUInt8(255 - bytes.readUInt8(middle), middle);
    await writeFile(path, bytes);
    for (const volume of machine.volumes) {
      await writeIslands(user.volumeFile(volume), null, [{ offset: 0, data: randomBytesOf("newer", MiB) }]);
    }
    const newer = await hashesOf(user, machine);
    const refused = await machines.restore(machine, { id: body.group_snapshot_id, name: "b" });
    expect(refused.status, refused.text).toBe(400);
    expect(refused.body.badRequest.message).toContain(`Restore of volume ${machine.volumes[1]} failed: `);
    await user.expectQuiet();
    expect(await hashesOf(user, machine)).toEqual(newer);
    for (const volume of machine.volumes) await user.settled("volumes", volume, "in-use");
    const [listed] = await machines.list(machine);
    expect(listed.status).toBe("error");
    expect(listed.backups.map((backup: { status: string }) => backup.status)).toEqual([
      "available",
      "error_restoring",
      "available",
    ]);
    expect((await readdir(instance.volumesDir)).filter((name) => name.includes("restore"))).toEqual([]);
    const deleted = await machines.deleteBackup(machine, { id: body.group_snapshot_id, name: "b" });
    expect(deleted.status, deleted.text).toBe(201);
  });
});

it("goes on with what was asked for when the API dies under a waiting request, and says so when it is asked again", {
  timeout: 180_000,
}, async () => {
  await using instance = await startInstance({ workers: 0, ...brisk });
  const doomed = await instance.startWorker();
  const user = journeyOn(instance);
  const machines = machinesOn(instance, user);
  const machine = await machines.create(disks("waiting", 6 * MiB, 2 * MiB));
  await doomed.stop();
  const waiting = machines.backup(machine, "b").then(
    () => "answered",
    () => "cut",
  );
  await instance.waitFor(async () => (await instance.sql("SELECT id FROM group_snapshots")).length === 1, {
    what: "the request was accepted",
    timeoutMs: 60_000,
  });
  await instance.killApi("SIGKILL");
  expect(await waiting).toBe("cut");
  await instance.startApi();
  const meanwhile = await machines.backup(machine, "b");
  expect(meanwhile.body.badRequest.message).toBe(
    `An operation is already in progress on instance group ${machine.group}.`,
  );
  await instance.startWorker();
  await machines.settled(machine, "b", "available");
  await machines.free(machine);
  const again = await machines.backup(machine, "b");
  expect(again.body.badRequest.message).toBe(`A backup named b already exists in instance group ${machine.group}.`);
  await user.expectQuiet();
});

/** Writes one number to all files, in order, then the next one, until it is told to stop. It goes on where the last one stopped. */
async function startWriter(paths: readonly string[]): Promise<{ stop(): Promise<void> }> {
  const files = await Promise.all(paths.map((path) => open(path, "r+")));
  const [last = 0] = await countersOf(paths);
  let stopped = false;
  const write = async (): Promise<void> => {
    for (let count = last + 1; !stopped; count += 1) {
      const number = Buffer.alloc(8);
      number.writeBigUInt64BE(BigInt(count));
      for (const file of files) await file.write(number, 0, 8, 0);
    }
    await Promise.all(files.map((file) => file.close()));
  };
  const running = write();
  return {
    async stop() {
      stopped = true;
      await running;
    },
  };
}

const countersOf = (paths: readonly string[]): Promise<number[]> =>
  Promise.all(paths.map(async (path) => Number((await readFile(path)).readBigUInt64BE(0))));

/** One point in time of that writer: each file has at least as much as the next, and none lags by more than one. */
function isOneMoment([a = 0, b = 0, c = 0]: readonly number[]): boolean {
  return a >= b && b >= c && c >= a - 1;
}

it("is of one point in time under a writer, or refused; snapshots that are taken one by one are not", {
  timeout: 300_000,
}, async () => {
  await using instance = await startInstance({ workers: 1, ...brisk });
  const user = journeyOn(instance);
  const machines = machinesOn(instance, user);
  const machine = await machines.create(disks("written", 4 * MiB, MiB), { power_state: "ACTIVE" });
  const paths = machine.volumes.map((volume) => user.volumeFile(volume));
  for (const path of paths) await writeIslands(path, null, [{ offset: 0, data: Buffer.alloc(8) }]);
  const snapshotPaths = (ids: readonly string[]) => ids.map((id) => join(instance.volumesDir, `snapshot-${id}`));

  const writer = await startWriter(paths);
  const busy = await machines.backup(machine, "busy");
  await writer.stop();
  if (busy.status === 201) {
    expect(isOneMoment(await countersOf(snapshotPaths(busy.body.volume_snapshot_id)))).toBe(true);
  } else {
    expect(busy.status, busy.text).toBe(400);
    expect(busy.body.badRequest.message).toContain("changed");
    const failed = await machines.settled(machine, "busy", "error");
    const gone = await machines.deleteBackup(machine, failed);
    expect(gone.status, gone.text).toBe(201);
  }
  await user.expectQuiet();
  for (const name of ["first", "second"]) {
    const { body, status, text } = await machines.backup(machine, name);
    expect(status, text).toBe(201);
    const counters = await countersOf(snapshotPaths(body.volume_snapshot_id));
    expect(counters).toEqual(await countersOf(paths));
    expect(isOneMoment(counters), String(counters)).toBe(true);
    const more = await startWriter(paths);
    await instance.waitFor(async () => ((await countersOf(paths))[2] ?? 0) > (counters[2] ?? 0), {
      what: "the writer wrote",
    });
    await more.stop();
  }

  const separate: string[] = [];
  for (const volume_id of machine.volumes) {
    const wanted = { snapshot: { volume_id, force: true } };
    const { snapshot } = await user.accepted("POST", `${base}/snapshots`, wanted);
    await user.settled("snapshots", snapshot.id, "available");
    separate.push(snapshot.id);
    const [before = 0] = await countersOf(paths);
    const between = await startWriter(paths);
    await instance.waitFor(async () => ((await countersOf(paths))[0] ?? 0) > before + 5, {
      what: "the writer wrote more",
    });
    await between.stop();
  }
  const torn = await countersOf(snapshotPaths(separate));
  expect(isOneMoment(torn), `separate snapshots happened to agree: ${torn}`).toBe(false);
});
