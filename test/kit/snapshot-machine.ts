import { randomUUID } from "node:crypto";
import { open, readFile } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { lock } from "../../packages/engine/src/volume/qemu/folder-lock.ts";
import { temporaryFolder } from "../format/backup-fixture.ts";
import { ImageClient } from "./image-client.ts";
import { type BackupWorld, download } from "./machine-backups.ts";
import { qemu, qemuWrite } from "./qemu-utils.ts";
import type { RunningMachine } from "./storage-daemon.ts";

/** The bytes of disks, by their ids. */
export type Disks = Map<string, Buffer>;

interface KeptSnapshot {
  id: string;
  disks: Disks;
  /** By disk: the id of its layer. */
  layers: Map<string, string>;
}

const copyOf = (disks: Disks): Disks => new Map([...disks].map(([id, bytes]) => [id, Buffer.from(bytes)]));

/** A machine of the service, and beside it what each of its disks, snapshots and checkpoints must hold. */
export class SnapshotMachine {
  readonly world: BackupWorld;
  readonly id: string;
  readonly disks: Disks = new Map();
  readonly formats = new Map<string, "cow" | "raw">();
  /** The oldest first. */
  readonly snapshots: KeptSnapshot[] = [];
  /** By checkpoint: what a backup of its moment has. */
  readonly checkpoints = new Map<string, Disks>();
  /** Its hypervisor, while it runs. */
  running: RunningMachine | null = null;

  private constructor(world: BackupWorld, id: string) {
    this.world = world;
    this.id = id;
  }

  static async create(
    world: BackupWorld,
    name: string,
    disks: readonly { sizeBytes: number; format: "cow" | "raw" }[],
  ): Promise<SnapshotMachine> {
    const ids: string[] = [];
    for (const [at, { sizeBytes, format }] of disks.entries()) {
      const backup = format === "cow" ? "incremental" : "none";
      ids.push(await world.addDisk(`${name}_Disk${at + 1}`, sizeBytes, { format, backup }));
    }
    const machine = new SnapshotMachine(world, await world.addMachine(name, ids));
    for (const [at, { sizeBytes, format }] of disks.entries()) {
      machine.disks.set(ids[at] ?? "", Buffer.alloc(sizeBytes));
      machine.formats.set(ids[at] ?? "", format);
    }
    return machine;
  }

  /** Its hypervisor is started, with all its disks; there are no raw ones. */
  async start(): Promise<void> {
    this.running = await this.world.run(this.id, [...this.disks.keys()]);
  }

  /** `kill`: without a word, so that what its disks recorded is lost. */
  async stop({ kill = false } = {}): Promise<void> {
    const { running } = this;
    this.running = null;
    if (kill && running !== null) {
      // What it has written, but not what its disks recorded, is to be there.
      for (const disk of this.disks.keys()) {
        await using guest = await running.guest(disk);
        await guest.flush();
      }
      running.program.kill("SIGKILL");
      await running.program.exited;
      this.checkpoints.clear();
    }
    await running?.[Symbol.asyncDispose]();
  }

  /** As its guest does. */
  async write(disk: string, bytes: Buffer, offset: number): Promise<void> {
    if (this.running !== null) {
      await using guest = await this.running.guest(disk);
      await guest.write(bytes, offset);
    } else if (this.formats.get(disk) === "cow") {
      await using _alone = await this.#alone();
      await qemuWrite(join(this.world.imagesDir, `volume-${disk}`), bytes, offset);
    } else {
      await using file = await open(join(this.world.filesDir, `volume-${disk}`), "r+");
      await file.write(bytes, 0, bytes.length, offset);
    }
    bytes.copy(this.disks.get(disk) ?? Buffer.alloc(0), offset);
  }

  async snapshot(description: string = randomUUID()): Promise<KeptSnapshot> {
    const { world, id: vm } = this;
    const { json } = await world.answered(202, "POST", `/vms/${vm}/snapshots`, { json: { description } });
    await this.settled(json.id);
    const listed = (await world.answered(200, "GET", `/vms/${vm}/snapshots/${json.id}/disks`)).json.disk;
    const layers = new Map<string, string>(
      listed.map((disk: { id: string; image_id: string }) => [disk.id, disk.image_id]),
    );
    const kept = { id: json.id, disks: copyOf(this.disks), layers };
    this.snapshots.push(kept);
    return kept;
  }

  async settled(snapshot: string): Promise<void> {
    await this.world.until(
      `/vms/${this.id}/snapshots/${snapshot}`,
      ({ snapshot_status }) => snapshot_status === "ok",
      `snapshot ${snapshot} is there`,
    );
  }

  async removeSnapshot(at: number): Promise<void> {
    const [gone] = this.snapshots.splice(at, 1);
    await this.world.answered(200, "DELETE", `/vms/${this.id}/snapshots/${gone?.id}`);
    await this.free();
    await this.world.answered(404, "GET", `/vms/${this.id}/snapshots/${gone?.id}`);
  }

  /** Goes back: newer snapshots and all checkpoints are gone. */
  async goBack(at: number): Promise<void> {
    const to = this.snapshots[at];
    if (to === undefined) return;
    await this.world.answered(200, "POST", `/vms/${this.id}/snapshots/${to.id}/restore`, { json: {} });
    await this.free();
    this.#become(to.disks);
    this.snapshots.splice(at + 1);
    await this.#onlyKept();
  }

  #become(disks: Disks): void {
    for (const [disk, bytes] of disks) this.disks.set(disk, Buffer.from(bytes));
    this.checkpoints.clear();
  }

  /** Settles when the service has these snapshots, and nothing is left of a preview. */
  async #onlyKept(): Promise<void> {
    const kept = this.snapshots.map(({ id }) => `${id} regular ok`);
    await this.world.until(
      `/vms/${this.id}/snapshots`,
      ({ snapshot }) => {
        const [, ...rest] = snapshot as { id: string; snapshot_type: string; snapshot_status: string }[];
        return rest.map((each) => `${each.id} ${each.snapshot_type} ${each.snapshot_status}`).join() === kept.join();
      },
      "newer snapshots are gone",
    );
    await this.free();
  }

  /** It is shown as it was at a snapshot. @returns what it was before */
  async preview(at: number): Promise<Disks> {
    const to = this.snapshots[at] as KeptSnapshot;
    const before = copyOf(this.disks);
    const path = `/vms/${this.id}/snapshots/${to.id}`;
    await this.world.answered(200, "POST", `/vms/${this.id}/previewsnapshot`, { json: { snapshot: { id: to.id } } });
    await this.world.until(path, ({ snapshot_status: status }) => status === "in_preview", "the snapshot is shown");
    await this.free();
    this.#become(to.disks);
    return before;
  }

  async commitPreview(at: number): Promise<void> {
    await this.world.answered(200, "POST", `/vms/${this.id}/commitsnapshot`, { json: {} });
    this.snapshots.splice(at + 1);
    await this.#onlyKept();
  }

  async undoPreview(before: Disks): Promise<void> {
    await this.world.answered(200, "POST", `/vms/${this.id}/undosnapshot`, { json: {} });
    this.#become(before);
    await this.#onlyKept();
  }

  /** Nothing has the machine or its disks locked. */
  async free(): Promise<void> {
    await this.world.instance.waitFor(
      async () => {
        const [row] = await this.world.instance.sql(
          `SELECT (SELECT count(*) FROM groups WHERE instance_id = $1 AND operation_id IS NOT NULL)::int
             + (SELECT count(*) FROM volumes WHERE id = ANY($2) AND status NOT IN ('available', 'in-use'))::int AS locked`,
          [this.id, [...this.disks.keys()]],
        );
        return row?.locked === 0;
      },
      { what: `machine ${this.id} is free`, timeoutMs: 60_000 },
    );
  }

  /** A backup, whose disks are all as they must be; of those that have the checkpoint `since`, what has changed. */
  async backUp(since: string | null): Promise<string | null> {
    const { world } = this;
    const json = {
      ...(since !== null && { from_checkpoint_id: since }),
      disks: { disk: [...this.disks.keys()].map((id) => ({ id })) },
    };
    const backup = await world.begin(this.id, json);
    const { to_checkpoint_id: checkpoint = null } = await world.reach(this.id, backup, "ready");
    const before = since === null ? undefined : this.checkpoints.get(since);
    for (const [disk, bytes] of this.disks) {
      const { id: transfer, client } = await world.open(backup, disk);
      const base = this.formats.get(disk) === "cow" ? (before?.get(disk) ?? null) : null;
      const read = await download(client, base, bytes.length);
      client[Symbol.dispose]();
      await world.finish(transfer);
      this.requireEqual(`a backup ${since === null ? "in full" : `since ${since}`}`, disk, read, bytes);
    }
    await world.answered(200, "POST", `/vms/${this.id}/backups/${backup}/finalize`, { json: {} });
    await world.reach(this.id, backup, "succeeded");
    if (checkpoint !== null) this.checkpoints.set(checkpoint, copyOf(this.disks));
    return checkpoint;
  }

  async removeCheckpoint(id: string): Promise<void> {
    await this.world.answered(200, "DELETE", `/vms/${this.id}/checkpoints/${id}`);
    this.checkpoints.delete(id);
  }

  /** The service has those checkpoints that it must, and no other is valid. */
  async checkCheckpoints(): Promise<void> {
    const { json } = await this.world.answered(200, "GET", `/vms/${this.id}/checkpoints`);
    const valid = (json.checkpoint ?? []).filter(({ state }: { state: string }) => state === "created");
    expect(valid.map(({ id }: { id: string }) => id).sort()).toEqual([...this.checkpoints.keys()].sort());
  }

  /** What a client reads of a snapshot's disk is what it was. */
  async readSnapshot(at: number): Promise<void> {
    const kept = this.snapshots[at];
    for (const [disk, layer] of kept?.layers ?? []) {
      const bytes = kept?.disks.get(disk) ?? Buffer.alloc(0);
      const json = { direction: "download", format: "raw", snapshot: { id: layer } };
      this.requireEqual(`snapshot ${at}`, disk, await this.download(json, bytes.length), bytes);
    }
  }

  /** Layers of a folder are merged after whatever was done to any machine: until this is disposed, none are. */
  #alone(): Promise<AsyncDisposable> {
    return lock(join(this.world.imagesDir, ".merging"));
  }

  /** All images hold what they must, by other programs. */
  async check(): Promise<void> {
    await using _alone = await this.#alone();
    for (const [disk, bytes] of this.disks) {
      if (this.running === null) await this.#checkImage("the disk", disk, `volume-${disk}`, bytes);
      else this.requireEqual("the disk", disk, await this.#readAsGuest(this.running, disk, bytes.length), bytes);
    }
    for (const [at, { disks, layers }] of this.snapshots.entries()) {
      for (const [disk, layer] of layers) {
        await this.#checkImage(`snapshot ${at}`, disk, `snapshot-${layer}`, disks.get(disk) ?? Buffer.alloc(0));
      }
    }
  }

  async #readAsGuest(running: RunningMachine, disk: string, sizeBytes: number): Promise<Buffer> {
    const bytes = Buffer.alloc(sizeBytes);
    await using guest = await running.guest(disk);
    await guest.read(bytes, 0);
    return bytes;
  }

  async #checkImage(what: string, disk: string, name: string, expected: Buffer): Promise<void> {
    const { imagesDir, filesDir } = this.world;
    if (this.formats.get(disk) === "raw") {
      this.requireEqual(what, disk, await readFile(join(filesDir, name)), expected);
      return;
    }
    await using home = await temporaryFolder();
    const raw = join(home.path, "raw");
    await qemu("qemu-img", "convert", "-f", "qcow2", "-O", "raw", join(imagesDir, name), raw);
    this.requireEqual(what, disk, await readFile(raw), expected);
  }

  requireEqual(what: string, disk: string, read: Buffer, expected: Buffer): void {
    const at = read.equals(expected) ? null : expected.findIndex((byte, index) => read[index] !== byte);
    expect(at, `${what}, ${disk}: the first byte that differs`).toBe(null);
  }

  /** Through an image transfer. */
  async download(json: object, sizeBytes: number): Promise<Buffer> {
    const { world } = this;
    const { id } = (await world.answered(201, "POST", "/imagetransfers", { json })).json;
    const { transfer_url: url } = await world.until(
      `/imagetransfers/${id}`,
      ({ phase }) => phase === "transferring",
      `transfer ${id} can begin`,
    );
    using client = new ImageClient(url);
    const bytes = await client.get(0, sizeBytes);
    await world.finish(id);
    return bytes;
  }
}
