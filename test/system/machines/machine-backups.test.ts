import { randomBytes, randomInt } from "node:crypto";
import { afterAll, beforeAll, expect, it } from "vitest";
import { times } from "../../kit/long.ts";
import { type BackupWorld, download, openBackupWorld } from "../../kit/machine-backups.ts";
import { randomFrom } from "../../kit/random.ts";
import type { RunningMachine } from "../../kit/storage-daemon.ts";

const KiB = 1024;
const MiB = 1024 * KiB;
const stack = new AsyncDisposableStack();
let world: BackupWorld;
beforeAll(async () => {
  world = await openBackupWorld(stack);
}, 600_000);
afterAll(() => stack.disposeAsync());

/** What the guest of a machine has written, as it should be read again. */
class Guest {
  readonly disks = new Map<string, Buffer>();

  /** Writes somewhere on each disk; without a machine that runs, one does for as long as that takes. */
  async write(running: RunningMachine | null = null): Promise<void> {
    await using started = running === null ? await world.start([...this.disks.keys()]) : null;
    const machine = running ?? started;
    for (const [id, bytes] of this.disks) {
      await using guest = (await machine?.guest(id)) ?? null;
      const data = randomBytes(96 * KiB);
      const at = Math.floor(Math.random() * (bytes.length / (64 * KiB) - 2)) * 64 * KiB;
      await guest?.write(data, at);
      await guest?.flush();
      data.copy(bytes, at);
    }
  }

  now(): Map<string, Buffer> {
    return new Map([...this.disks].map(([id, bytes]) => [id, Buffer.from(bytes)]));
  }
}

async function machineWith(name: string, sizes: readonly number[]): Promise<{ id: string; guest: Guest }> {
  const guest = new Guest();
  for (const [at, size] of sizes.entries())
    guest.disks.set(await world.addDisk(`${name}_Disk${at}`, size), Buffer.alloc(size));
  return { id: await world.addMachine(name, [...guest.disks.keys()]), guest };
}

const of = (guest: Guest, more: object = {}) => ({
  ...more,
  disks: { disk: [...guest.disks.keys()].map((id) => ({ id })) },
});

/** A whole backup, as a client makes it. `meanwhile`: once its moment is over. @returns the disks' bytes, and the checkpoint of its moment */
async function backUp(
  machine: string,
  guest: Guest,
  from: { id: string; images: Map<string, Buffer> } | null,
  meanwhile: () => Promise<void> = async () => {},
) {
  const asked = of(guest, from === null ? {} : { from_checkpoint_id: from.id });
  const backup = await world.begin(machine, asked);
  const { to_checkpoint_id: id } = await world.reach(machine, backup, "ready");
  await meanwhile();
  const images = new Map<string, Buffer>();
  for (const [disk, bytes] of guest.disks) {
    const { id: transfer, client } = await world.open(backup, disk);
    images.set(disk, await download(client, from?.images.get(disk) ?? null, bytes.length));
    await world.finish(transfer);
  }
  await world.answered(200, "POST", `/vms/${machine}/backups/${backup}/finalize`, { json: {} });
  await world.reach(machine, backup, "succeeded");
  return { id: id as string, images, backup };
}

const isAsWritten = (disks: Map<string, Buffer>, images: Map<string, Buffer>): void => {
  for (const [id, bytes] of disks) expect(images.get(id)?.equals(bytes), `disk ${id}`).toBe(true);
};

it("a machine that is off: full, incremental and differential backups have every byte", async () => {
  const { id, guest } = await machineWith("off", [4 * MiB, 2 * MiB]);
  await guest.write();
  const full = await backUp(id, guest, null);
  isAsWritten(guest.disks, full.images);
  await world.nothingIsLeft();
  await guest.write();
  const first = await backUp(id, guest, full);
  isAsWritten(guest.disks, first.images);
  await guest.write();
  isAsWritten(guest.disks, (await backUp(id, guest, first)).images);
  const { images } = await backUp(id, guest, full);
  isAsWritten(guest.disks, images);
  const { json } = await world.answered(200, "GET", `/vms/${id}/checkpoints`);
  expect(json.checkpoint).toHaveLength(4);
  await world.nothingIsLeft();
});

it("a machine that runs: every disk is as of the one moment, whatever the guest writes meanwhile", async () => {
  const { id, guest } = await machineWith("up", [4 * MiB, 4 * MiB]);
  await using running = await world.run(id, [...guest.disks.keys()]);
  await guest.write(running);
  let before = guest.now();
  const full = await backUp(id, guest, null, () => guest.write(running));
  isAsWritten(before, full.images);
  await guest.write(running);
  before = guest.now();
  const next = await backUp(id, guest, full, () => guest.write(running));
  isAsWritten(before, next.images);
  before = guest.now();
  isAsWritten(before, (await backUp(id, guest, next)).images);
  await world.nothingIsLeft();
});

it("an incremental backup tells what has changed, and nothing else; a full one tells nothing", async () => {
  const { id, guest } = await machineWith("told", [8 * MiB]);
  const [disk] = [...guest.disks.keys()] as [string];
  await guest.write();
  const full = await world.begin(id, of(guest));
  const { to_checkpoint_id: checkpoint } = await world.reach(id, full, "ready");
  const whole = await world.open(full, disk);
  const refused = await whole.client.ask("GET", "/extents?context=dirty");
  expect([refused.status, refused.text]).toEqual([404, "Ticket does not support dirty extents\n"]);
  expect((await whole.client.ask("PUT", "", { headers: { "content-range": "bytes 0-0/*" }, body: "x" })).status).toBe(
    403,
  );
  await world.finish(whole.id);
  await world.answered(200, "POST", `/vms/${id}/backups/${full}/finalize`, { json: {} });
  await world.reach(id, full, "succeeded");
  {
    await using machine = await world.start([disk]);
    await using client = await machine.guest(disk);
    await client.write(randomBytes(64 * KiB), MiB);
    await client.write(Buffer.alloc(64 * KiB), 2 * MiB);
    await client.flush();
  }
  const backup = await world.begin(id, of(guest, { from_checkpoint_id: checkpoint }));
  await world.reach(id, backup, "ready");
  const { id: transfer, client } = await world.open(backup, disk);
  const parts = JSON.parse((await client.ask("GET", "/extents?context=dirty")).text);
  expect(parts.filter(({ dirty }: { dirty: boolean }) => dirty)).toEqual([
    { start: MiB, length: 64 * KiB, dirty: true, zero: false },
    { start: 2 * MiB, length: 64 * KiB, dirty: true, zero: true },
  ]);
  const end = parts.reduce((at: number, { start, length }: { start: number; length: number }) => {
    expect(start).toBe(at);
    return at + length;
  }, 0);
  expect(end).toBe(8 * MiB);
  await world.finish(transfer);
  await world.answered(200, "POST", `/vms/${id}/backups/${backup}/finalize`, { json: {} });
  await world.reach(id, backup, "succeeded");
});

it("the machine's process is killed during a backup: it fails, its checkpoints are invalid, and a full one works", async () => {
  const { id, guest } = await machineWith("killed", [4 * MiB]);
  const [disk] = [...guest.disks.keys()] as [string];
  await using running = await world.run(id, [disk]);
  await guest.write(running);
  const full = await backUp(id, guest, null);
  const backup = await world.begin(id, of(guest, { from_checkpoint_id: full.id }));
  await world.reach(id, backup, "ready");
  const { id: transfer } = await world.open(backup, disk);
  running.program.kill("SIGKILL");
  await world.reach(id, backup, "failed");
  await world.settled(transfer, "finished_failure");
  await world.nothingIsLeft();
  const { json: left } = await world.answered(200, "GET", `/vms/${id}/checkpoints`);
  expect(left.checkpoint.map(({ id: one, state }: { id: string; state: string }) => [one, state])).toEqual([
    [full.id, "invalid"],
  ]);
  const { json: told } = await world.answered(200, "GET", "/events");
  const words = told.event.map(({ description }: { description: string }) => description).join("\n");
  expect(words).toContain(`Checkpoint ${full.id} of VM killed was lost`);
  expect(words).toContain(`Failed to finalize backup ${backup} for VM killed (User: admin@internal). Nobody listens`);
  const refused = await world.answered(400, "POST", `/vms/${id}/backups`, {
    json: of(guest, { from_checkpoint_id: full.id }),
  });
  expect(refused.text).toContain(`Checkpoint ID ${full.id} is invalid and should be removed.`);
  await world.instance.sql("UPDATE instances SET power_state = 'SHUTOFF' WHERE id = $1", [id]);
  isAsWritten(guest.disks, (await backUp(id, guest, null)).images);
  await world.answered(200, "DELETE", `/vms/${id}/checkpoints/${full.id}`);
  await world.nothingIsLeft();
});

it("a backup that must be of frozen file systems fails without an agent, and is not in the way of a machine that is off", async () => {
  const { id, guest } = await machineWith("frozen", [MiB]);
  const disks = [...guest.disks.keys()];
  const path = `/vms/${id}/backups?require_consistency=true`;
  {
    await using running = await world.run(id, disks);
    await guest.write(running);
    const { json } = await world.answered(201, "POST", path, { json: of(guest) });
    await world.reach(id, json.id, "failed");
    await world.nothingIsLeft();
  }
  const { json } = await world.answered(201, "POST", path, { json: of(guest) });
  await world.reach(id, json.id, "ready");
  await world.answered(200, "POST", `/vms/${id}/backups/${json.id}/finalize`, { json: {} });
  await world.reach(id, json.id, "succeeded");
  await world.nothingIsLeft();
});

it("the process that has the disks of a machine open that is off is killed: as if the machine's own had been", async () => {
  const { id, guest } = await machineWith("cold", [2 * MiB]);
  await guest.write();
  const full = await backUp(id, guest, null);
  const backup = await world.begin(id, of(guest));
  await world.reach(id, backup, "ready");
  const [row] = await world.instance.sql("SELECT daemon_pid FROM machine_backups WHERE id = $1", [backup]);
  process.kill(row.daemon_pid, "SIGKILL");
  await world.reach(id, backup, "failed");
  await world.nothingIsLeft();
  const { json } = await world.answered(200, "GET", `/vms/${id}/checkpoints`);
  expect(json.checkpoint.map(({ state }: { state: string }) => state)).toEqual(["invalid"]);
  expect(json.checkpoint[0].id).toBe(full.id);
  await guest.write();
  isAsWritten(guest.disks, (await backUp(id, guest, null)).images);
});

it("a disk that was replaced has lost its checkpoints, and the backup from one of them says so", async () => {
  const { id, guest } = await machineWith("replaced", [MiB]);
  const [disk] = [...guest.disks.keys()] as [string];
  const full = await backUp(id, guest, null);
  const json = { direction: "upload", format: "raw", disk: { id: disk } };
  const { json: upload } = await world.answered(201, "POST", "/imagetransfers", { json });
  await world.settled(upload.id, "transferring");
  await world.finish(upload.id);
  const backup = await world.begin(id, of(guest, { from_checkpoint_id: full.id }));
  await world.reach(id, backup, "failed");
  const [row] = await world.instance.sql("SELECT fail_reason FROM machine_backups WHERE id = $1", [backup]);
  expect(row.fail_reason).toContain("a full backup is needed");
  const { json: listed } = await world.answered(200, "GET", `/vms/${id}/checkpoints`);
  expect(listed.checkpoint.map(({ state }: { state: string }) => state)).toEqual(["invalid"]);
  isAsWritten(guest.disks, (await backUp(id, guest, null)).images);
  await world.nothingIsLeft();
});

it.each(Array.from({ length: times({ usual: 1, long: 12 }) }, (_, at) => at))(
  "random history %i: whatever is backed up, from whichever checkpoint, has every byte of its moment",
  async (at) => {
    const seed = randomInt(2 ** 31);
    process.stderr.write(`machine backups: seed ${seed}\n`);
    const random = randomFrom(seed);
    const { id, guest } = await machineWith(`random${at}`, [2 * MiB, MiB + 512]);
    const kept: { id: string; images: Map<string, Buffer> }[] = [];
    let running: RunningMachine | null = null;
    try {
      for (let step = 0; step < 14; step += 1) {
        const what = random(10);
        if (what === 0) {
          await running?.[Symbol.asyncDispose]();
          running = running === null ? await world.run(id, [...guest.disks.keys()]) : null;
        } else if (what === 1 && kept.length > 0) {
          const [gone] = kept.splice(random(kept.length), 1);
          await world.answered(200, "DELETE", `/vms/${id}/checkpoints/${gone?.id}`);
        } else if (what < 5) {
          await guest.write(running);
        } else {
          const from = kept[random(kept.length + 1)] ?? null;
          const before = guest.now();
          const meanwhile = running;
          const made = await backUp(id, guest, from, async () => {
            if (meanwhile !== null) await guest.write(meanwhile);
          });
          isAsWritten(before, made.images);
          kept.push(made);
        }
      }
    } finally {
      await running?.[Symbol.asyncDispose]();
    }
    const { json } = await world.answered(200, "GET", `/vms/${id}/checkpoints`);
    const states = (json.checkpoint ?? []).map(({ id: one, state }: { id: string; state: string }) => [one, state]);
    expect(states).toEqual(kept.map((one) => [one.id, "created"]));
    await world.nothingIsLeft();
  },
);
