import type { RunContext } from "../run/run-context.ts";

/** Power states of a machine, named as in OpenStack's compute service. */
export const powerStates = ["ACTIVE", "SHUTOFF", "PAUSED", "SUSPENDED", "MIGRATING", "ERROR"] as const;
export type PowerState = (typeof powerStates)[number];

/** One disk of a machine and the path of its snapshot: absolute paths in the folder of a volume backend (snapshotPaths). */
export interface Disk {
  volumePath: string;
  /** The name in the guest, such as /dev/vda: for messages only. */
  device: string;
  /** An existing regular file there is replaced. */
  snapshotPath: string;
}

/** `application`: the guest's file systems were frozen; `crash`: the state after a power cut. */
export type Consistency = "application" | "crash";

export interface TogetherOptions {
  /** Maximum freeze time in milliseconds. */
  freezeLimitMs: number;
  /** Without a frozen guest, throw GuestNotFrozenError instead of taking a crash-consistent snapshot. */
  requireConsistency: boolean;
  /** A uuid, used to name everything that the run creates outside its own process. */
  operationId: string;
}

export interface TogetherResult {
  /** The single point in time of all snapshots. */
  takenAt: Date;
  /** How long the guest was frozen; null when it was not. */
  frozenMs: number | null;
  consistency: Consistency;
  /** Lengths of the snapshots, in disk order. */
  sizesBytes: number[];
}

/** The hypervisor features that backups need. One caller at a time per machine: callers hold a lock on it. */
export interface Hypervisor extends AsyncDisposable {
  /** HypervisorUnavailableError when the state cannot be determined. */
  powerState(signal: AbortSignal): Promise<PowerState>;

  /**
   * Takes snapshots of all disks as of one moment: when it resolves they are complete, durable files, and the machine is in its previous
   * state. It may be called again after a crash at any point, also with another operation id: leftovers of the first run in the
   * hypervisor are undone first, and all snapshots are taken anew. The guest is thawed in every case.
   *
   * SourceChangedError when writes to the disks could not be stopped; HypervisorUnavailableError, HypervisorRefusedError,
   * GuestNotFrozenError; errors of the volume storage.
   */
  snapshotTogether(disks: readonly Disk[], options: TogetherOptions, run: RunContext): Promise<TogetherResult>;

  /**
   * Undoes what an interrupted run has left in the hypervisor: a frozen guest, writes diverted to overlays. Having nothing to undo is
   * success. To be called when an operation ends without completing snapshotTogether, and before disks are replaced.
   */
  recover(disks: readonly Disk[], run: RunContext): Promise<void>;
}
