import type { RunContext } from "../run/run-context.ts";
import type { Consistency } from "./hypervisor.ts";

/*
 * What a machine's disks can do beyond group snapshots: snapshots that are kept as layers, backups by changed blocks, exports over NBD.
 * Tasks of workers call it; it knows neither rows nor who may do what. `openMachineDisks` (open-hypervisor.ts) opens it: through the
 * machine's own process while that runs, and through a process of this worker's (`daemon`) while the machine is off.
 *
 * A disk is a chain of layers, each an image file on the one before. The machine writes the active layer alone. The caller keeps the
 * chain's order in rows of its own, and names every new file; a file name never comes from a user. Callers hold a lock on the machine.
 * Everything here may be called again after a crash at any point, with the same ids and paths.
 *
 * A checkpoint is a moment from which on a disk records what is written: a persistent bitmap with the checkpoint's id as its name, in the
 * layer that was active then and in every active layer since. It goes on recording until it is removed, so that any number of backups, in
 * any order, can be incremental to it.
 */

export interface MachineDisk {
  /** A uuid. */
  id: string;
  /** The active layer: an absolute path. */
  path: string;
  format: "qcow2" | "raw";
}

/** Another process that must not outlive its purpose. It ends with this process, but a reconciler must be able to make sure (endDaemon). */
export interface Daemon {
  pid: number;
  /** In clock ticks since the boot, as in /proc/PID/stat: with the pid it names one process of a boot. */
  startTicks: number;
  /** Its private folder, with its sockets. */
  folder: string;
}

/** The machine's file systems at a moment. */
export interface MomentOptions {
  /** Maximum freeze time in milliseconds. */
  freezeLimitMs: number;
  /** Without a frozen guest, throw GuestNotFrozenError; nothing is left then. */
  requireConsistency: boolean;
}

export interface Moment {
  takenAt: Date;
  /** How long the guest was frozen; null when it was not. */
  frozenMs: number | null;
  consistency: Consistency;
}

/** A backup by changed blocks, as long as it can be read. */
export interface MachineBackup {
  /** A uuid. */
  id: string;
  disks: readonly MachineDisk[];
  /** The checkpoint of its moment, which later backups can be incremental to; a uuid. */
  checkpointId: string | null;
  /** Ids of disks that record no changes; nor do raw images. */
  unrecorded?: ReadonlySet<string>;
  /** Where what the machine overwrites meanwhile is kept: a folder, absolute. */
  scratchFolder: string;
  /** When less is free there, the backup ends, before a write of the machine could fail. */
  reserveBytes: number;
}

export interface BackupOptions extends MomentOptions {
  /** By disk id: only what has changed since that checkpoint. The others are read in full. */
  since: ReadonlyMap<string, string>;
  /** Older checkpoints of these disks, the oldest first. */
  checkpointIds: readonly string[];
  /** How many are kept, the new one included: the machine pays for each of them with every write. */
  checkpointsMax: number;
}

/** What an NBD client reads. */
export interface DiskExport {
  diskId: string;
  /** The server's unix socket. */
  socketPath: string;
  /** The name of the export. */
  name: string;
  sizeBytes: number;
  /** The name of the metadata context whose flag 1 marks what has changed; null when all of it is to be read. */
  changes: string | null;
}

export interface StartedBackup extends Moment {
  /** In the order of the disks; read-only, and of the one moment. */
  exports: DiskExport[];
  /** Checkpoints that were removed because there were too many. */
  expired: string[];
}

/** A disk, or a snapshot of one, in another machine. */
export interface PluggedDisk {
  /** A uuid. */
  id: string;
  /** What is plugged in: the active layer of a disk that no other process writes, or a layer that never changes. */
  image: MachineDisk;
  /** For a layer that never changes: the file that takes what the other machine writes, which is removed with the disk. */
  temporaryPath: string | null;
}

/** A disk of which a snapshot is taken. */
export interface DiskToLayer {
  disk: MachineDisk;
  /** The file of the new active layer, in the folder of the present one. */
  overlayPath: string;
  /** Another name of the present active layer: the new one is there already and builds on it by this name, by which the process has it open from then on. */
  keptPath?: string;
}

export interface MergeOptions {
  layerPath: string;
  /** The layer on which it builds. */
  intoPath: string;
  /** The lower layer gets the upper's name, so that whatever else builds on the upper goes on doing so. Not of the active layer. */
  keepName?: boolean;
}

export interface MachineDisks extends AsyncDisposable {
  /** Null where the machine's own process has the disks open. */
  readonly daemon: Daemon | null;

  /**
   * From one moment on, all these disks are written in new layers, and the present ones never change again. Checkpoints stay valid.
   *
   * HypervisorUnavailableError, HypervisorRefusedError, GuestNotFrozenError: no disk has a new layer then.
   */
  takeSnapshot(disks: readonly DiskToLayer[], options: MomentOptions, run: RunContext): Promise<Moment>;

  /** Whether an image is the active layer of a disk, on another one. */
  writes(path: string): Promise<boolean>;

  /**
   * Writes what one layer of a disk holds into the one below it, and removes its file: the snapshot between the two is gone. Where that was
   * the active layer, the one below becomes it. Checkpoints stay valid, except for those that a raw image cannot keep. Called again after a
   * crash, `disk` is as it was before.
   *
   * HypervisorRefusedError when another image builds on the layer below, which would change beneath it, or another process reads that.
   */
  mergeLayer(disk: MachineDisk, options: MergeOptions, run: RunContext): Promise<void>;

  /** Makes a disk longer. Checkpoints stay valid. HypervisorRefusedError, which storage daemons answer as long as the disk is exported. */
  resize(disk: MachineDisk, sizeBytes: number): Promise<void>;

  /**
   * The checkpoints of a disk that can be used. Any other that there was has been lost, such as when the process that had the disk open was
   * killed, and must be called invalid.
   */
  checkpoints(disk: MachineDisk): Promise<string[]>;

  removeCheckpoint(disks: readonly MachineDisk[], id: string): Promise<void>;

  /**
   * Exports all disks as of one moment. The machine goes on; what it overwrites is kept in scratch files until stopBackup.
   *
   * CheckpointInvalidError: it needs a full backup; ScratchFullError: the scratch folder might not take all that the machine can overwrite;
   * HypervisorUnavailableError, HypervisorRefusedError, GuestNotFrozenError. Nothing of it is left then.
   */
  startBackup(backup: MachineBackup, options: BackupOptions, run: RunContext): Promise<StartedBackup>;

  /**
   * Watches a backup until the signal is aborted. When its scratch files may soon have no space, the backup is given up, with its checkpoint:
   * the exports end, and ScratchFullError is thrown. HypervisorUnavailableError, HypervisorRefusedError when it has ended otherwise.
   */
  watchBackup(backup: MachineBackup, signal: AbortSignal): Promise<void>;

  /** Ends a backup and removes all that it has left, whatever became of it. The checkpoint stays only if the backup is `complete`. */
  stopBackup(backup: MachineBackup, options: { complete: boolean }): Promise<void>;

  /** Plugs a disk into this machine. HypervisorRefusedError; ImageInUseError when another process writes it. */
  plug(plugged: PluggedDisk): Promise<DiskExport>;

  /** Whatever is connected to it is disconnected. HypervisorRefusedError for a disk that the machine has otherwise. */
  unplug(plugged: PluggedDisk): Promise<void>;

  /** Ends the process, where it is `daemon`, after everything recorded is written. */
  [Symbol.asyncDispose](): Promise<void>;
}
