import type { Extent } from "../format/extents.ts";
import type { RunContext } from "../run/run-context.ts";
import type { VolumeSource, VolumeTarget } from "./volume.ts";

/** What to read: a volume, or a snapshot of one. */
export type SourceReference = { volumeId: string } | { snapshotId: string };

/** Driver differences that matter to callers. Callers must not infer anything from a driver's name. */
export interface VolumeCapabilities {
  /**
   * `aside`: a restore writes separate storage, which `publishRestore` turns into the volume; until then the volume is unchanged.
   * `in-place`: the target is the volume itself, whose contents are undefined from the first write until it is published; such a restore
   * can be neither copied nor abandoned.
   */
  readonly restores: "aside" | "in-place";
  /** Whether `changedExtents` reports more than "everything may differ", so that a snapshot is worth keeping for the next backup. */
  readonly tellsChanges: boolean;
  /**
   * Where fingerprints of a source can be compared: on all machines that open it, or only on the one that took the first, since each sees
   * but its own changes. Then one worker reads the whole volume.
   */
  readonly fingerprints: "everywhere" | "on-one-machine";
}

/** A file or object in a backend that an operation has created. */
export interface BackendLeftover {
  kind: "volume" | "snapshot" | "private";
  /** Its name in messages, by which the driver finds it again. */
  path: string;
  /** The uuids in its name. */
  ids: string[];
  modifiedAt: Date;
}

/** Where files named by users may be. */
export interface UserPlaces {
  /** Only beneath these folders, which may themselves be named through links. */
  roots: readonly string[];
  /** Folders and files of the service itself: excluded with everything in them, whatever root they are under. */
  reserved?: readonly string[];
}

/** The operation and run that writes: the draft's name contains both, so that its owner can be identified later. */
export interface ExportRun {
  operationId: string;
  /** Runs of one operation are numbered from 0. */
  claim: number;
}

export interface ExportOptions {
  places: UserPlaces;
  run: ExportRun;
  /** Whether an existing regular file may be replaced. */
  overwrite: boolean;
}

/** What a restored volume is to be called and to have beside its bytes, where its storage keeps that. Null: what it has. */
export interface RestoredProperties {
  name: string | null;
  description: string | null;
  metadata: Record<string, string> | null;
  bootable: boolean;
  /** Of the image that it was made of. */
  imageMetadata?: Record<string, string> | null;
}

/** A target that was reserved when the restore was accepted. */
export interface HeldTarget {
  /** Null: a new one of which nobody was told before the request ended. */
  volumeId: string | null;
  /** By which the storage knows the reservation; null where it was not told in time. */
  hold: string | null;
  /** Made for this restore. */
  isNew: boolean;
}

/** An image of a machine that runs, and what it is to write instead. */
export interface RunningLayer {
  volumeId: string;
  /** The image that it writes: an absolute path. */
  path: string;
  /** Another name of that image, by which the machine has it open from then on. */
  keptPath: string;
  /** A new image on it, by that name. */
  overlayPath: string;
}

/** The images that a machine which runs has open. */
export interface RunningImages<Taken> {
  /** Whether it writes an image that builds on another. */
  writes(path: string): Promise<boolean>;
  /** From one moment on it writes all the new images. What an interrupted call has done stays done. */
  switchOver(layers: readonly RunningLayer[]): Promise<Taken>;
}

/** Absolute paths: the layer, and the one on which it builds, which gets its name. */
export interface LayersToMerge {
  layerPath: string;
  intoPath: string;
}

export interface RestoreLengths {
  sizeBytes: number;
  /** If the volume is longer, its own bytes from `sizeBytes` on are kept. */
  keepTail: boolean;
}

/**
 * Where volumes are stored. Sources and targets are accessed through the VolumeSource and VolumeTarget contracts: by threads through a
 * descriptor or connections to an export where there are such, otherwise by request. One object serves several tasks concurrently, and
 * several processes may open the same place. Every verb is idempotent: it can be run again after a crash at any point, with the same ids. Ids are uuids or derived from
 * one; anything that is not a plain file name is PathNotAllowedError.
 *
 * Every verb throws VolumeStorageError when the storage fails, with `retryable` saying whether waiting may help; VolumeStorageFullError
 * when out of space; BackendUnavailableError where the place as a whole does not respond. A verb that takes a RunContext stops at its
 * signal and checks its fence before any change visible to others.
 */
export interface VolumeBackend {
  readonly capabilities: VolumeCapabilities;

  /** Free bytes for new volumes. */
  freeBytes(): Promise<number>;

  /** Creates an empty volume, all zeros. An existing one of the same length is success, of another length VolumeConflictError. */
  create(volumeId: string, sizeBytes: number): Promise<void>;
  /**
   * Creates a volume with the contents of `source` at one point in time: as long as its source, or `sizeBytes` where that is more.
   * SourceMissingError, SourceChangedError.
   */
  clone(source: SourceReference, volumeId: string, sizeBytes: number, run: RunContext): Promise<{ sizeBytes: number }>;
  /** Extends a volume with zeros; one that already has that length is success. SourceMissingError when there is none. */
  extend(volumeId: string, sizeBytes: number): Promise<void>;
  /** Removes a volume; removing a missing one is success. */
  remove(volumeId: string): Promise<void>;
  /** The length of an existing volume, whoever created it. SourceMissingError when there is none. */
  measure(volumeId: string): Promise<{ sizeBytes: number }>;

  /**
   * Makes an image that exists a volume, which stays where it is, also when the volume is removed. `url` is in the driver's own form.
   * Repeating it is success. Absent where volumes are nowhere but in their backend. InvalidVolumeUrlError, PathNotAllowedError,
   * SourceMissingError, VolumeConflictError; VolumeStorageError when it cannot be used.
   */
  adoptImage?(url: string, volumeId: string, run: RunContext): Promise<{ sizeBytes: number }>;

  /** Whether a snapshot, of that volume, takes next to no time and space, so that one may be made for each backup. */
  canFreezeCheaply(volumeId?: string): Promise<boolean>;
  /**
   * Takes a snapshot under the given id: the volume's contents at one point in time, unaffected by later writes; or, where the storage's
   * snapshots have to be copied before they can be read, those of its snapshot `from`. An existing one is kept
   * as it is. SourceMissingError; SourceChangedError when writes to the volume could not be stopped; NotReadyYetError while it is being made.
   */
  freeze(volumeId: string, snapshotId: string, run: RunContext, from?: string): Promise<{ sizeBytes: number }>;
  /**
   * As `freeze`, of several volumes at one moment. Absent where that is a hypervisor's to do (snapshotPaths), or nobody's.
   * SourceMissingError; VolumeStorageError while somebody writes one of them.
   */
  freezeTogether?(
    members: readonly { volumeId: string; snapshotId: string }[],
    run: RunContext,
  ): Promise<{ takenAt: Date; sizesBytes: number[] }>;
  /**
   * As freezeTogether, of volumes that a machine writes, which `images` tells to write elsewhere from one moment on. Repeated after a crash,
   * it takes what was interrupted to its end. `taken`: as switchOver says.
   */
  freezeRunning?<Taken>(
    members: readonly { volumeId: string; snapshotId: string }[],
    images: RunningImages<Taken>,
    run: RunContext,
  ): Promise<{ taken: Taken; sizesBytes: number[] }>;
  /**
   * What an interrupted freezeRunning has left of a volume: names that lead elsewhere than where the machine writes, new images that it does
   * not write. `images`: null for a machine that is off.
   */
  settleRunning?(
    member: { volumeId: string; snapshotId: string },
    images: Pick<RunningImages<unknown>, "writes"> | null,
  ): Promise<void>;
  /**
   * Offers, one after another, the layers of a volume that a machine has open to be written into the ones below, since no snapshot needs what
   * is between them. The layer that it writes is not among them.
   */
  mergeRunning?(volumeId: string, merge: (layers: LayersToMerge) => Promise<void>): Promise<void>;
  /**
   * The volume has its snapshot's bytes again, and keeps its length: what it is longer by is zeros. Absent where it cannot. SourceMissingError;
   * VolumeStorageError while somebody writes it, where that can be known.
   */
  goBack?(volumeId: string, snapshotId: string, run: RunContext): Promise<void>;
  /**
   * Removes a snapshot; removing a missing one is success. NotReadyYetError while it is being removed. `backedUp`: a backup has its bytes, so
   * that it may be kept instead for telling the next one what has changed since, until that one is removed with `backedUp`.
   */
  thaw(snapshotId: string, options?: { backedUp: boolean }): Promise<void>;
  /**
   * The paths of a volume and of its future snapshot, as files of this machine, for a hypervisor that takes snapshots of several volumes
   * together. BackendUnavailableError where volumes are not files.
   */
  snapshotPaths(volumeId: string, snapshotId: string): { volumePath: string; snapshotPath: string };
  /**
   * The image that a machine has open as this volume: an absolute path on this machine, and how its bytes are to be read. Absent where
   * volumes are no files.
   */
  imageFile?(volumeId: string): Promise<{ path: string; format: "qcow2" | "raw" }>;
  /** The same of a snapshot, whose bytes never change: others may build on it as long as it is there. */
  snapshotFile?(snapshotId: string): Promise<{ path: string; format: "qcow2" | "raw" }>;

  /** Opens a volume or snapshot for reading. SourceMissingError when it does not exist. */
  openSource(source: SourceReference): Promise<VolumeSource>;
  /**
   * The parts of `range` that may differ between the snapshot `since` and `source`, ascending; the gaps between them are the same in
   * both. The whole range where that cannot be determined, or no longer can.
   */
  changedExtents(source: SourceReference, since: string, range: Extent): AsyncIterable<Extent>;

  /**
   * Prepares the target of a restore. `restoreId` names it, by an operation and a run of it. Replaces leftovers of an earlier run under
   * the same id. Aside, everything but a kept tail is zero. In place, the volume must exist (VolumeConflictError) and is extended if it
   * is shorter than required; it may be longer. `held`: where the target was reserved.
   */
  beginRestore(
    volumeId: string,
    restoreId: string,
    lengths: RestoreLengths & { held?: HeldTarget },
    run?: RunContext,
  ): Promise<void>;
  /**
   * Whether an earlier run of the restore has published its target and could not tell: nothing is to be written any more. Absent where
   * writing again does no harm.
   */
  wasPublished?(volumeId: string, restoreId: string): Promise<boolean>;
  /** Opens the restore target for writing. VolumeConflictError when nothing was prepared. */
  openRestoreTarget(volumeId: string, restoreId: string): Promise<VolumeTarget>;
  /** Opens the restored data for reading. SourceMissingError when nothing was prepared. */
  openRestored(volumeId: string, restoreId: string): Promise<VolumeSource>;
  /**
   * Makes the restored data the volume, durably. With `fresh`, a writer that still has the target open can no longer modify the volume;
   * in place, that is left to the target's own fence. Repeating it after success changes nothing; VolumeConflictError when nothing was
   * prepared.
   */
  publishRestore(
    volumeId: string,
    restoreId: string,
    options: { fresh: boolean; properties?: RestoredProperties },
    run?: RunContext,
  ): Promise<void>;
  /**
   * Copies the restored data to `freshId`, so that a writer that still has the original open cannot modify what will be published.
   * VolumeConflictError when nothing was prepared, or when the target is the volume itself.
   */
  copyRestore(volumeId: string, restoreId: string, freshId: string, run: RunContext): Promise<void>;
  /**
   * Discards what was prepared; aside, the volume is unchanged. If there is nothing to discard, that is success. `held`: where the target
   * was reserved, it is released. NotReadyYetError while that takes time.
   */
  abandonRestore(restoreId: string, held?: HeldTarget): Promise<void>;

  /** Creates a volume from a file named by a user, with the file's exact length. PathNotAllowedError, SourceMissingError. */
  importFile(path: string, volumeId: string, places: UserPlaces, run: RunContext): Promise<{ sizeBytes: number }>;
  /** As importFile, but an existing volume is never replaced: with the same bytes it is success, with others VolumeConflictError. */
  importIfAbsent(path: string, volumeId: string, places: UserPlaces, run: RunContext): Promise<void>;
  /** Only the checks of importFile. */
  statImport(path: string, places: UserPlaces): Promise<{ sizeBytes: number }>;
  /** Writes a volume to a file named by a user, which appears completely or not at all. PathTakenError unless it may be replaced. */
  exportFile(volumeId: string, path: string, options: ExportOptions, run: RunContext): Promise<{ sizeBytes: number }>;

  /**
   * Everything that operations create here, and its drafts, in any order; the caller knows what is still needed. Never yields anything
   * that may hold the only copy of somebody's data.
   */
  leftovers(): AsyncIterable<BackendLeftover>;
  /** Removes an item yielded by leftovers(); a missing one is success. */
  removeLeftover(leftover: BackendLeftover): Promise<void>;
}
