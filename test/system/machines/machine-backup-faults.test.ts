import { randomBytes } from "node:crypto";
import { dirname } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { QmpClient } from "../../../packages/engine/src/hypervisor/qmp/qmp-client.ts";
import { crashAt } from "../../kit/crash-at.ts";
import { firstOf, isLong } from "../../kit/long.ts";
import { type BackupWorld, download, openBackupWorld } from "../../kit/machine-backups.ts";
import type { RunningMachine } from "../../kit/storage-daemon.ts";

const MiB = 1024 * 1024;
const stack = new AsyncDisposableStack();
let world: BackupWorld;
let bytes: Buffer;
beforeAll(async () => {
  world = await openBackupWorld(stack, { workers: 0 });
}, 600_000);
afterAll(() => stack.disposeAsync());

/** A machine with one disk, made while a worker runs that ends afterwards. */
async function machineWith(name: string): Promise<{ id: string; disk: string }> {
  const worker = await world.instance.startWorker();
  const disk = await world.addDisk(name, 2 * MiB);
  const id = await world.addMachine(name, [disk]);
  await using machine = await world.start([disk]);
  await using guest = await machine.guest(disk);
  bytes = randomBytes(2 * MiB);
  await guest.write(bytes, 0);
  await guest.flush();
  worker.kill("SIGTERM");
  await worker.exited;
  return { id, disk };
}

async function backUp(id: string, disk: string): Promise<void> {
  const backup = await world.begin(id, { disks: { disk: [{ id: disk }] } });
  await world.reach(id, backup, "ready");
  const { id: transfer, client } = await world.open(backup, disk);
  expect((await download(client, null, bytes.length)).equals(bytes)).toBe(true);
  await world.finish(transfer);
  await world.answered(200, "POST", `/vms/${id}/backups/${backup}/finalize`, { json: {} });
  await world.reach(id, backup, "succeeded");
}

const points = ["started", "ending", "begun", "opened", "ready", "ended"];

it.each([
  ...firstOf(2, points).map((point) => ({ point, machine: "is off" })),
  // What is left there is seen below; here that it is, wherever the worker dies.
  ...(isLong ? points : []).map((point) => ({ point, machine: "runs" })),
])(
  "a worker that dies at a backup's point $point, of a machine that $machine, leaves nothing locked and nothing behind",
  async ({ point, machine }) => {
    const { id, disk } = await machineWith(`${machine.replace(" ", "-")}-at-${point}`);
    await using running = machine === "runs" ? await world.run(id, [disk]) : null;
    const worker = await world.instance.startWorker(crashAt(`machine-backup.${point}:1`));
    const backup = await world.begin(id, { disks: { disk: [{ id: disk }] } });
    if (point.startsWith("end")) {
      await world.reach(id, backup, "ready");
      const { id: transfer } = await world.open(backup, disk);
      await world.finish(transfer);
      await world.answered(200, "POST", `/vms/${id}/backups/${backup}/finalize`, { json: {} });
    }
    await worker.exited;
    // No worker is alive: the locks go all the same.
    await world.reach(id, backup, "failed");
    const { json } = await world.answered(200, "GET", `/disks/${disk}`);
    expect(json.status).toBe("ok");
    const next = await world.instance.startWorker();
    await world.nothingIsLeft();
    if (running !== null) await nothingIsIn(running);
    await backUp(id, disk);
    await world.nothingIsLeft();
    const { json: left } = await world.answered(200, "GET", `/vms/${id}/checkpoints`);
    expect(left.checkpoint).toHaveLength(1);
    next.kill("SIGTERM");
    await next.exited;
  },
);

/** Nothing of a backup is in the machine's process: only its guest's access to the disk. */
async function nothingIsIn({ qmpSocket }: RunningMachine): Promise<void> {
  using qmp = await QmpClient.connect(qmpSocket, [dirname(qmpSocket)]);
  expect(await qmp?.execute("query-jobs")).toEqual([]);
  expect(await qmp?.execute("query-block-exports")).toHaveLength(1);
}

it("a worker that dies with a machine that runs: another one ends the jobs and exports that it has left there", async () => {
  const { id, disk } = await machineWith("running");
  await using running = await world.run(id, [disk]);
  const worker = await world.instance.startWorker();
  const backup = await world.begin(id, { disks: { disk: [{ id: disk }] } });
  await world.reach(id, backup, "ready");
  const { id: transfer } = await world.open(backup, disk);
  worker.kill("SIGKILL");
  await world.reach(id, backup, "failed");
  await world.settled(transfer, "finished_failure");
  const next = await world.instance.startWorker();
  await world.nothingIsLeft();
  await nothingIsIn(running);
  await backUp(id, disk);
  await world.nothingIsLeft();
  next.kill("SIGTERM");
  await next.exited;
});

it("a worker that is stopped ends its backups first", async () => {
  const { id, disk } = await machineWith("stopped");
  const worker = await world.instance.startWorker();
  const backup = await world.begin(id, { disks: { disk: [{ id: disk }] } });
  await world.reach(id, backup, "ready");
  worker.kill("SIGTERM");
  await worker.exited;
  const [row] = await world.instance.sql("SELECT status, fail_reason, leftovers FROM machine_backups WHERE id = $1", [
    backup,
  ]);
  expect(row).toEqual({ status: "failed", fail_reason: "The worker that held it has ended.", leftovers: false });
  await world.nothingIsLeft();
});

it("a server of images that dies: the client goes on with its ticket at the next one", async () => {
  const { id, disk } = await machineWith("served");
  const worker = await world.instance.startWorker();
  const backup = await world.begin(id, { disks: { disk: [{ id: disk }] } });
  await world.reach(id, backup, "ready");
  const { id: transfer, client } = await world.open(backup, disk);
  expect((await client.get(0, MiB)).equals(bytes.subarray(0, MiB))).toBe(true);
  world.imageServer.kill("SIGKILL");
  await world.imageServer.exited;
  await world.instance.startTransfer();
  expect((await client.get(MiB, MiB)).equals(bytes.subarray(MiB))).toBe(true);
  await world.finish(transfer);
  await world.answered(200, "POST", `/vms/${id}/backups/${backup}/finalize`, { json: {} });
  await world.reach(id, backup, "succeeded");
  await world.nothingIsLeft();
  worker.kill("SIGTERM");
  await worker.exited;
});
