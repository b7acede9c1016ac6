import { mkdir, rm } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import type { Config, Database } from "@tephra/control";
import { atPoint } from "@tephra/control/process";
import {
  type BackedUpMachine,
  forgetCheckpoints,
  invalidateCheckpoints,
  type MachineBackupRow,
  noteDaemon,
} from "@tephra/control/work";
import {
  CheckpointInvalidError,
  HypervisorUnavailableError,
  type MachineBackup,
  type MachineDisk,
  type MachineDisks,
  type MachineDisksSettings,
  openMachineDisks,
  openRunningDisks,
  type RunContext,
  removeScratchFiles,
  type StartedBackup,
  VolumeStorageError,
} from "@tephra/engine";
import type { Places } from "../sites.ts";
import { type BackupPlaces, placesOf, settingsOf } from "./places.ts";

export interface OpenOptions {
  database: Database;
  config: Config;
  sites: Pick<Places, "backend">;
}

/** How long an image may be in use, such as by a process that another worker has left and that is just ending. */
const patienceMs = 15_000;
const retryMs = 250;

/** A backup that this process holds: its machine's disks can be read as of one moment until it ends. */
export class HeldBackup {
  readonly row: MachineBackupRow;
  readonly started: StartedBackup;
  /** Why it cannot be read any more; null while it can. */
  error: Error | null = null;
  readonly #disks: MachineDisks;
  readonly #backup: MachineBackup;
  readonly #places: BackupPlaces;
  readonly #settings: MachineDisksSettings;
  readonly #watching = new AbortController();
  readonly #watched: Promise<void>;
  #stopped = false;

  private constructor(
    row: MachineBackupRow,
    parts: {
      disks: MachineDisks;
      backup: MachineBackup;
      places: BackupPlaces;
      settings: MachineDisksSettings;
      started: StartedBackup;
    },
  ) {
    this.row = row;
    this.started = parts.started;
    this.#disks = parts.disks;
    this.#backup = parts.backup;
    this.#places = parts.places;
    this.#settings = parts.settings;
    this.#watched = this.#disks.watchBackup(this.#backup, this.#watching.signal).catch((error: unknown) => {
      this.error = error as Error;
    });
  }

  /** Opens the machine's disks and begins. Throws what the engine does; nothing is left then, unless removing it fails, too. */
  static async open(
    row: MachineBackupRow,
    machine: BackedUpMachine,
    options: OpenOptions,
    run: RunContext,
  ): Promise<HeldBackup> {
    const { database, config } = options;
    const places = placesOf(config, row);
    const { checkpoints_max: checkpointsMax, reserve_bytes: reserveBytes } = config.machine_backups;
    await mkdir(places.scratchFolder, { recursive: true, mode: 0o700 });
    await mkdir(places.runFolder, { recursive: true, mode: 0o700 });
    await using stack = new AsyncDisposableStack();
    stack.defer(() => rm(places.runFolder, { recursive: true, force: true }));
    const settings = settingsOf(config, machine, places);
    const images = await imagesOf(row, machine, options);
    const disks = stack.use(await patiently(() => openMachineDisks(settings, images)));
    if (disks.daemon !== null) await noteDaemon(database, row, disks.daemon);
    atPoint("machine-backup.opened");
    await settleCheckpoints(database, row, machine, { disks, images });
    const backup: MachineBackup = {
      id: row.id,
      disks: images,
      checkpointId: row.toCheckpointId,
      unrecorded: new Set(row.disks.flatMap(({ volumeId, recorded }) => (recorded ? [] : [volumeId]))),
      scratchFolder: places.scratchFolder,
      reserveBytes,
    };
    const started = await disks.startBackup(
      backup,
      {
        freezeLimitMs: config.instance_groups.freeze_limit_ms,
        // The file systems of a machine that is off are at rest.
        requireConsistency: row.requireConsistency && disks.daemon === null,
        since: new Map(row.disks.flatMap(({ volumeId, sinceId }) => (sinceId === null ? [] : [[volumeId, sinceId]]))),
        checkpointIds: machine.checkpoints.flatMap(({ id, status }) => (status === "removing" ? [] : [id])),
        checkpointsMax,
      },
      run,
    );
    stack.move();
    return new HeldBackup(row, { disks, backup, places, settings, started });
  }

  /** Whether the process that has the disks open is gone: a monitor that does not answer may only be busy. */
  async isLost(): Promise<boolean> {
    if (this.#disks.daemon !== null) return true;
    try {
      return (await openRunningDisks(this.#settings)) === null;
    } catch (error) {
      if (error instanceof HypervisorUnavailableError) return false;
      throw error;
    }
  }

  /**
   * Ends it: the exports, the jobs, the scratch files, and the process that has the disks open, if it is this one's. Only once: later calls
   * find it ended. Throws when something may be left.
   */
  async end({ complete }: { complete: boolean }): Promise<void> {
    if (this.#stopped) return;
    this.#watching.abort();
    await this.#watched;
    await using stack = new AsyncDisposableStack();
    stack.defer(() => rm(this.#places.runFolder, { recursive: true, force: true }));
    stack.use(this.#disks);
    try {
      await this.#disks.stopBackup(this.#backup, { complete });
    } catch (error) {
      // With a process of this one's, everything but files ends.
      if (this.#disks.daemon === null || complete) throw error;
      await removeScratchFiles(this.#backup);
    }
    this.#stopped = true;
  }
}

async function imagesOf(
  row: MachineBackupRow,
  { backends }: BackedUpMachine,
  { sites }: OpenOptions,
): Promise<MachineDisk[]> {
  const images: MachineDisk[] = [];
  for (const { volumeId } of row.disks) {
    const backend = await sites.backend(backends.get(volumeId) ?? "");
    const image = await backend.imageFile?.(volumeId);
    if (!image) throw new VolumeStorageError(`Volume ${volumeId} is not an image file.`, { retryable: false });
    images.push({ id: volumeId, path: image.path, format: image.format });
  }
  return images;
}

/** Runs this again while an image is in use, for a limited time. */
async function patiently<Result>(attempt: () => Promise<Result>): Promise<Result> {
  for (const until = performance.now() + patienceMs; ; ) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof VolumeStorageError && error.retryable) || performance.now() > until) throw error;
      await sleep(retryMs);
    }
  }
}

/**
 * What is to be removed is, and what the disks have lost is invalid from now on.
 *
 * @throws CheckpointInvalidError when the backup is to be of what has changed since one of those
 */
async function settleCheckpoints(
  database: Database,
  row: MachineBackupRow,
  { backends, checkpoints }: BackedUpMachine,
  { disks, images }: { disks: MachineDisks; images: readonly MachineDisk[] },
): Promise<void> {
  const imagesOfCheckpoint = (checkpoint: BackedUpMachine["checkpoints"][number]): MachineDisk[] =>
    images.filter(({ id }) => checkpoint.disks.some(({ volumeId }) => volumeId === id));
  const removed: string[] = [];
  for (const checkpoint of checkpoints.filter(({ status }) => status === "removing")) {
    const here = imagesOfCheckpoint(checkpoint);
    await disks.removeCheckpoint(here, checkpoint.id);
    const isElsewhere = ({ volumeId }: { volumeId: string }): boolean =>
      backends.has(volumeId) && here.every(({ id }) => id !== volumeId);
    if (!checkpoint.disks.some(isElsewhere)) removed.push(checkpoint.id);
  }
  await forgetCheckpoints(database, removed);
  const lost: string[] = [];
  const kept = new Map<string, string[]>();
  for (const disk of images) kept.set(disk.id, disk.format === "raw" ? [] : await disks.checkpoints(disk));
  for (const checkpoint of checkpoints.filter(({ status }) => status === "created")) {
    const here = imagesOfCheckpoint(checkpoint);
    if (here.some(({ id }) => kept.get(id)?.includes(checkpoint.id) !== true)) lost.push(checkpoint.id);
  }
  await invalidateCheckpoints(database, lost);
  const since = row.disks.find(({ sinceId }) => sinceId !== null && lost.includes(sinceId));
  if (since?.sinceId != null) {
    throw new CheckpointInvalidError(`Checkpoint ${since.sinceId} has been lost: a full backup is needed.`);
  }
}
