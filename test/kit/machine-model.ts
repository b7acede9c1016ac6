import { randomUUID } from "node:crypto";
import { mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  type Daemon,
  endDaemon,
  HypervisorUnavailableError,
  type MachineBackup,
  type MachineDisk,
  type MachineDisks,
  openMachineDisks,
  type RunContext,
  type StartedBackup,
} from "@tephra/engine";
import { qemu } from "./qemu-utils.ts";
import { applyChanges, type RunningMachine, readExport, startMachine } from "./storage-daemon.ts";

const free: RunContext = { signal: new AbortController().signal, fence: () => {}, onProgress: () => {} };
const moment = { freezeLimitMs: 1_000, requireConsistency: false };

interface Layer {
  path: string;
  format: "qcow2" | "raw";
  /** What it shows since it is not the active one any more. */
  shows: Buffer;
}

export interface ModelDisk {
  id: string;
  /** The active one first. */
  layers: Layer[];
  /** What the guest has written. */
  bytes: Buffer;
}

/** A machine on real processes, and beside it what each of its images must hold. */
export class MachineModel implements AsyncDisposable {
  readonly disks: ModelDisk[] = [];
  /** By checkpoint: what a backup of its moment holds, by disk. */
  readonly checkpoints = new Map<string, Map<string, Buffer>>();
  #machine: RunningMachine | null = null;
  #opened: MachineDisks | null = null;
  readonly dir: string;

  private constructor(dir: string) {
    this.dir = dir;
  }

  static async create(dir: string, formats: readonly ("qcow2" | "raw")[], sizeBytes: number): Promise<MachineModel> {
    const model = new MachineModel(dir);
    for (const name of ["v", "s", "r"]) await mkdir(join(dir, name), { recursive: true });
    for (const format of formats) {
      const id = randomUUID();
      const path = join(dir, "v", `disk-${id}`);
      await qemu("qemu-img", "create", "-q", "-f", format, path, String(sizeBytes));
      model.disks.push({ id, layers: [{ path, format, shows: Buffer.alloc(0) }], bytes: Buffer.alloc(sizeBytes) });
    }
    return model;
  }

  get scratchFolder(): string {
    return join(this.dir, "s");
  }

  get isOn(): boolean {
    return this.#machine !== null;
  }

  get machine(): RunningMachine {
    if (this.#machine === null) throw new Error("The machine is off.");
    return this.#machine;
  }

  named = ({ id, layers }: ModelDisk): MachineDisk => {
    const [{ path, format }] = layers as [Layer];
    return { id, path, format };
  };

  get all(): MachineDisk[] {
    return this.disks.map(this.named);
  }

  /** Through the running machine, or a pool. */
  async open(): Promise<MachineDisks> {
    this.#opened ??= await openMachineDisks(
      {
        driver: "qmp",
        powerState: this.isOn ? "ACTIVE" : "SHUTOFF",
        socket: this.#machine?.qmpSocket ?? join(this.dir, "none"),
        socketRoots: [this.dir],
        runFolder: join(this.dir, "r"),
        exportSocket: this.#machine?.nbdSocket ?? null,
      },
      this.all,
    );
    return this.#opened;
  }

  async close(): Promise<void> {
    await this.#opened?.[Symbol.asyncDispose]();
    this.#opened = null;
  }

  async start(options: Parameters<typeof startMachine>[2] = {}): Promise<void> {
    await this.close();
    this.#machine = await startMachine(
      join(this.dir, "r"),
      this.disks.map((disk) => ({ disk: this.named(disk), layers: disk.layers })),
      options,
    );
  }

  async shutDown(): Promise<void> {
    await this.close();
    const { code } = await this.machine.program.stop();
    if (code !== 0) throw new Error(`The machine has ended with ${code}:\n${this.machine.program.tail()}`);
    this.#machine = null;
  }

  /** With kill -9: checkpoints are lost. */
  async kill(): Promise<void> {
    await this.close();
    this.machine.program.kill("SIGKILL");
    await this.machine.program.exited;
    this.#machine = null;
    this.checkpoints.clear();
  }

  async write(disk: ModelDisk, data: Uint8Array, offset: number): Promise<void> {
    await using guest = await this.machine.guest(disk.id);
    await guest.write(data, offset);
    await guest.flush(); // Only then it outlasts a kill.
    disk.bytes.set(data, offset);
  }

  async snapshot(): Promise<void> {
    const opened = await this.open();
    const layers = this.disks.map((disk) => ({
      disk: this.named(disk),
      overlayPath: join(this.dir, "v", `layer-${randomUUID()}`),
    }));
    await opened.takeSnapshot(layers, moment, free);
    for (const [index, { overlayPath }] of layers.entries()) {
      const disk = this.disks[index] as ModelDisk;
      (disk.layers[0] as Layer).shows = Buffer.from(disk.bytes);
      disk.layers.unshift({ path: overlayPath, format: "qcow2", shows: Buffer.alloc(0) });
    }
  }

  /** The snapshot whose layer is the n-th below the active one goes: the layer above it is written into it. */
  async removeSnapshot(below: number): Promise<void> {
    const opened = await this.open();
    for (const disk of this.disks) {
      const [upper, lower] = disk.layers.slice(below - 1) as [Layer, Layer];
      await opened.mergeLayer(this.named(disk), { layerPath: upper.path, intoPath: lower.path }, free);
      disk.layers.splice(below - 1, 1);
      lower.shows = upper.shows;
      // A raw image records nothing.
      if (below === 1 && lower.format === "raw") for (const images of this.checkpoints.values()) images.delete(disk.id);
    }
  }

  /** The pool is killed while it merges, after `ms` at most; then the merge is asked for again. */
  async removeSnapshotKilled(below: number, ms: number): Promise<void> {
    const opened = await this.open();
    const merging = this.removeSnapshot(below).catch((error: unknown) => {
      if (!(error instanceof HypervisorUnavailableError)) throw error;
    });
    await Promise.race([merging, sleep(ms)]);
    await this.killPool(opened);
    await merging;
    for (const disk of this.disks) {
      const [upper, lower] = disk.layers.slice(below - 1) as [Layer, Layer | undefined];
      const isDone = disk.layers.length < Math.max(...this.disks.map(({ layers }) => layers.length));
      if (isDone || lower === undefined) continue;
      await (await this.open()).mergeLayer(this.named(disk), { layerPath: upper.path, intoPath: lower.path }, free);
      disk.layers.splice(below - 1, 1);
      lower.shows = upper.shows;
    }
  }

  /** With kill -9: checkpoints are lost. */
  async killPool(opened: MachineDisks): Promise<void> {
    const daemon = opened.daemon as Daemon;
    process.kill(daemon.pid, "SIGKILL");
    this.checkpoints.clear();
    await this.close();
    await endDaemon(daemon);
  }

  async resize(disk: ModelDisk, sizeBytes: number): Promise<void> {
    await (await this.open()).resize(this.named(disk), sizeBytes);
    disk.bytes = Buffer.concat([disk.bytes, Buffer.alloc(sizeBytes - disk.bytes.length)]);
  }

  backupOf(checkpointId: string | null): MachineBackup {
    return { id: randomUUID(), disks: this.all, checkpointId, scratchFolder: this.scratchFolder, reserveBytes: 1 };
  }

  /**
   * A backup, full where `since` has no checkpoint for a disk. `meanwhile` runs while it can be read.
   *
   * @returns what it holds, by disk
   */
  async backup(
    since: ReadonlyMap<string, string>,
    checkpointId: string | null,
    meanwhile: (started: StartedBackup) => Promise<void> = async () => {},
  ): Promise<Map<string, Buffer>> {
    const opened = await this.open();
    const backup = this.backupOf(checkpointId);
    const options = { ...moment, since, checkpointIds: [...this.checkpoints.keys()], checkpointsMax: 32 };
    const started = await opened.startBackup(backup, options, free);
    const expected = new Map(this.disks.map(({ id, bytes }) => [id, Buffer.from(bytes)]));
    const taken = new Map<string, Buffer>();
    await meanwhile(started);
    for (const part of started.exports) {
      const base = since.get(part.diskId);
      const before = base === undefined ? undefined : this.checkpoints.get(base)?.get(part.diskId);
      taken.set(part.diskId, before === undefined ? await readExport(part) : await applyChanges(before, part));
    }
    await opened.stopBackup(backup, { complete: true });
    if (checkpointId !== null) {
      const recording = this.disks.filter((disk) => this.named(disk).format === "qcow2");
      const images = recording.map(({ id }) => [id, expected.get(id) as Buffer] as const);
      this.checkpoints.set(checkpointId, new Map(images));
    }
    this.requireEqual("a backup", taken, expected);
    return taken;
  }

  requireEqual(what: string, taken: ReadonlyMap<string, Buffer>, expected: ReadonlyMap<string, Buffer>): void {
    for (const [id, bytes] of expected) {
      const own = taken.get(id);
      if (own?.equals(bytes)) continue;
      const at = own === undefined ? -1 : bytes.findIndex((byte, index) => own[index] !== byte);
      throw new Error(`${what} of disk ${id} is wrong from byte ${at} on (${own?.length} of ${bytes.length} bytes)`);
    }
  }

  async removeCheckpoint(id: string): Promise<void> {
    await (await this.open()).removeCheckpoint(this.all, id);
    this.checkpoints.delete(id);
  }

  /** Checkpoints and all layers are what they must be; nothing else is there. */
  async check(): Promise<void> {
    const opened = await this.open();
    for (const disk of this.disks) {
      const known = [...this.checkpoints].filter(([, images]) => images.has(disk.id)).map(([id]) => id);
      const found = await opened.checkpoints(this.named(disk));
      if (found.sort().join() !== known.sort().join()) {
        throw new Error(`disk ${disk.id} has the checkpoints ${found}, and should have ${known}`);
      }
    }
  }

  /** With the machine off and no pool open: what the images hold by qemu-img alone. */
  async checkImages(): Promise<void> {
    for (const { id, layers, bytes } of this.disks) {
      for (const [index, { path, format, shows }] of layers.entries()) {
        const raw = join(this.dir, "r", "image.raw");
        await qemu("qemu-img", "convert", "-f", format, "-O", "raw", path, raw);
        const what = `layer ${index} of ${layers.length}`;
        this.requireEqual(what, new Map([[id, await readFile(raw)]]), new Map([[id, index === 0 ? bytes : shows]]));
      }
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
    await this.#machine?.[Symbol.asyncDispose]();
  }
}
