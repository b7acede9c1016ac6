import type { RunContext } from "../run/run-context.ts";

/** What a machine is doing, in the words of OpenStack's compute service. */
export const powerStates = ["ACTIVE", "SHUTOFF", "PAUSED", "SUSPENDED", "MIGRATING", "ERROR"] as const;
export type PowerState = (typeof powerStates)[number];

/** One disk of a machine and the place of its snapshot: absolute paths in the folder of a volume backend (snapshotPaths). */
export interface Disk {
  volumePath: string;
  /** The name in the guest, such as /dev/vda: for messages only. */
  device: string;
  /** A regular file there is replaced. */
  snapshotPath: string;
}

/** `application`: the guest's file systems were frozen; `crash`: what a power cut would have left. */
export type Consistency = "application" | "crash";

export interface TogetherOptions {
  /** The longest that the guest may stay frozen, in milliseconds. */
  freezeLimitMs: number;
  /** Without a frozen guest GuestNotFrozenError, instead of a snapshot that is consistent as after a crash. */
  requireConsistency: boolean;
  /** A uuid; what a run makes outside its own process is named after it. */
  operationId: string;
}

export interface TogetherResult {
  /** One moment at which every snapshot is what its disk was. */
  takenAt: Date;
  /** How long the guest was frozen; null when it was not. */
  frozenMs: number | null;
  consistency: Consistency;
  /** Lengths of the snapshots, in the order of the disks. */
  sizesBytes: number[];
}

/** What runs a machine, as far as backups need it. One caller at a time per machine: whoever calls holds a lock on it. */
export interface Hypervisor extends AsyncDisposable {
  /** HypervisorUnavailableError when that cannot be told. */
  powerState(signal: AbortSignal): Promise<PowerState>;

  /**
   * Takes snapshots of all disks as of one moment: when it resolves they are whole, durable files, and the machine is as it was
   * before. It may be called again after a crash at any point, also with another operation id: what the first run has left in
   * the hypervisor is taken back first, and all snapshots are taken anew. A guest is thawed in every case.
   *
   * SourceChangedError when the disks could not be held still; HypervisorUnavailableError, HypervisorRefusedError,
   * GuestNotFrozenError; errors of the volume storage.
   */
  snapshotTogether(disks: readonly Disk[], options: TogetherOptions, run: RunContext): Promise<TogetherResult>;

  /**
   * Takes back what a run that was broken off has left in the hypervisor: a frozen guest, writes that go beside a disk. Nothing
   * left is success. To be called when an operation ends without having got through snapshotTogether, and before disks are
   * replaced.
   */
  recover(disks: readonly Disk[], run: RunContext): Promise<void>;
}
