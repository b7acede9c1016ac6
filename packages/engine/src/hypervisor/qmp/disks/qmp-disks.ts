import { realpath } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { errnoOf, HypervisorUnavailableError, PathNotAllowedError, SourceMissingError } from "../../../errors.ts";
import type { RunContext } from "../../../run/run-context.ts";
import { validIds } from "../../../volume/qemu/checkpoint-bitmaps.ts";
import type {
  BackupOptions,
  Daemon,
  DiskExport,
  DiskToLayer,
  MachineBackup,
  MachineDisk,
  MachineDisks,
  MergeOptions,
  Moment,
  MomentOptions,
  PluggedDisk,
  StartedBackup,
} from "../../machine-disks.ts";
import { GuestAgent } from "../guest-agent.ts";
import { type Pool, startPool } from "../pool.ts";
import { QmpClient } from "../qmp-client.ts";
import { removeCheckpoint, startBackup, stopBackup, watchBackup } from "./backup.ts";
import { findChain, nodeAt, openChain } from "./chain.ts";
import { isUsed, mergeLayer, resizeDisk, takeSnapshot } from "./layers.ts";
import { plug, unplug } from "./plug.ts";

export interface DiskProcess {
  /** Monitor socket: an absolute path. */
  monitorPath: string;
  /** The socket of the guest agent, if there is one. */
  agentSocket: string | null;
  /** The file systems to freeze, by their mount points in the guest; null for all of them. */
  freezeMountpoints: readonly string[] | null;
  /** Folders in which sockets may lie. */
  socketRoots: readonly string[];
  /** Folders, besides an image's own, in which its backing files may be. */
  imageRoots: readonly string[];
  /** Where its NBD server listens, or will once something is exported. */
  exportSocket: string;
}

/**
 * The disks of a machine in a QEMU or qemu-storage-daemon. The monitor serves one client: each call connects for as long as it takes, and
 * what goes on without it, such as a backup, is found again by names that follow from ids.
 */
export class QmpMachineDisks implements MachineDisks {
  readonly daemon: Daemon | null;
  readonly #process: DiskProcess;
  readonly #pool: Pool | null;

  private constructor(process: DiskProcess, pool: Pool | null) {
    this.#process = process;
    this.#pool = pool;
    this.daemon = pool?.daemon ?? null;
  }

  /** Null when nobody listens on the machine's monitor. */
  static async running(process: DiskProcess): Promise<QmpMachineDisks | null> {
    using qmp = await QmpClient.connect(process.monitorPath, process.socketRoots);
    return qmp === null ? null : new QmpMachineDisks(process, null);
  }

  /** Opens the disks in a process of its own. ImageInUseError when another one writes them. */
  static async inPool(
    disks: readonly MachineDisk[],
    { runFolder, imageRoots }: { runFolder: string; imageRoots: readonly string[] },
  ): Promise<QmpMachineDisks> {
    await using stack = new AsyncDisposableStack();
    const pool = stack.use(await startPool(runFolder));
    const opened = new QmpMachineDisks(
      {
        monitorPath: pool.monitorPath,
        agentSocket: null,
        freezeMountpoints: null,
        socketRoots: [pool.daemon.folder],
        imageRoots,
        exportSocket: join(pool.daemon.folder, "nbd"),
      },
      pool,
    );
    await opened.#do(async (qmp) => {
      for (const disk of disks) await openChain(qmp, await real(disk), { roots: imageRoots, writable: true });
    });
    stack.move();
    return opened;
  }

  async takeSnapshot(disks: readonly DiskToLayer[], options: MomentOptions, run: RunContext): Promise<Moment> {
    run.signal.throwIfAborted();
    const layers = await Promise.all(
      disks.map(async ({ disk, overlayPath, keptPath }) => ({
        disk: await real(disk),
        overlayPath: await realPath(overlayPath),
        ...(keptPath !== undefined && { keptPath: await realPath(keptPath) }),
      })),
    );
    return await this.#do(async (qmp) => {
      using agent = await this.#connectAgent();
      const { freezeMountpoints } = this.#process;
      return await takeSnapshot(qmp, { agent, freezeMountpoints }, layers, { ...options, ...this.#places }, run);
    });
  }

  async writes(path: string): Promise<boolean> {
    return await this.#do(async (qmp) => isUsed(await nodeAt(qmp, await realPath(path))));
  }

  async mergeLayer(
    disk: MachineDisk,
    { layerPath, intoPath, keepName = false }: MergeOptions,
    run: RunContext,
  ): Promise<void> {
    run.signal.throwIfAborted();
    const merge = {
      disk: await real(disk),
      layerPath: await realPath(layerPath),
      intoPath: await realPath(intoPath),
      keepName,
    };
    await this.#do((qmp) => mergeLayer(qmp, merge, this.#places, run));
  }

  async resize(disk: MachineDisk, sizeBytes: number): Promise<void> {
    await this.#do(async (qmp) => resizeDisk(qmp, await real(disk), sizeBytes, this.#places));
  }

  async checkpoints(disk: MachineDisk): Promise<string[]> {
    return await this.#do(async (qmp) => validIds(await findChain(qmp, await real(disk), this.#places)));
  }

  async removeCheckpoint(disks: readonly MachineDisk[], id: string): Promise<void> {
    await this.#do(async (qmp) => removeCheckpoint(qmp, await Promise.all(disks.map(real)), id, this.#places));
  }

  async startBackup(backup: MachineBackup, options: BackupOptions, run: RunContext): Promise<StartedBackup> {
    run.signal.throwIfAborted();
    const named = await realBackup(backup);
    return await this.#do(async (qmp) => {
      using agent = await this.#connectAgent();
      const { freezeMountpoints } = this.#process;
      return await startBackup(qmp, { agent, freezeMountpoints }, named, options, this.#places, run);
    });
  }

  async watchBackup(backup: MachineBackup, signal: AbortSignal): Promise<void> {
    await watchBackup(() => this.#connect(), await realBackup(backup), this.#places, signal);
  }

  async stopBackup(backup: MachineBackup, options: { complete: boolean }): Promise<void> {
    await this.#do(async (qmp) => stopBackup(qmp, await realBackup(backup), options, this.#places));
  }

  async plug(plugged: PluggedDisk): Promise<DiskExport> {
    return await this.#do(async (qmp) => plug(qmp, await realPlugged(plugged), this.#places));
  }

  async unplug(plugged: PluggedDisk): Promise<void> {
    // Its own disks stay open in a pool.
    const options = { ...this.#places, close: this.#pool === null };
    await this.#do(async (qmp) => unplug(qmp, await realPlugged(plugged), options));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#pool?.[Symbol.asyncDispose]();
  }

  get #places() {
    return { roots: this.#process.imageRoots, exportSocket: this.#process.exportSocket };
  }

  async #do<Result>(act: (qmp: QmpClient) => Promise<Result>): Promise<Result> {
    using qmp = await this.#connect();
    return await act(qmp);
  }

  async #connect(): Promise<QmpClient> {
    const { monitorPath, socketRoots } = this.#process;
    const qmp = await QmpClient.connect(monitorPath, socketRoots).catch((error: unknown) => {
      // The folder of a pool that somebody else has ended is gone.
      if (this.#pool !== null && error instanceof PathNotAllowedError) return null;
      throw error;
    });
    if (qmp === null) throw new HypervisorUnavailableError(`Nobody listens on ${monitorPath} any more.`);
    return qmp;
  }

  async #connectAgent(): Promise<GuestAgent | null> {
    const { agentSocket, socketRoots } = this.#process;
    return agentSocket === null ? null : await GuestAgent.connect(agentSocket, socketRoots);
  }
}

const real = async (disk: MachineDisk): Promise<MachineDisk> => ({ ...disk, path: await realPath(disk.path) });

const realBackup = async (backup: MachineBackup): Promise<MachineBackup> => ({
  ...backup,
  disks: await Promise.all(backup.disks.map(real)),
});

const realPlugged = async ({ id, image, temporaryPath }: PluggedDisk): Promise<PluggedDisk> => ({
  id,
  image: await real(image),
  temporaryPath: temporaryPath === null ? null : await realPath(temporaryPath),
});

/** Of a file that may not exist (any more): files are told apart by their paths. */
async function realPath(path: string): Promise<string> {
  const folder = await realpath(dirname(path)).catch((error: unknown) => {
    throw new SourceMissingError(`The folder of ${path} cannot be reached (${errnoOf(error)}).`, { cause: error });
  });
  return join(folder, basename(path));
}
