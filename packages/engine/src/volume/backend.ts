import type { Extent } from "../format/extents.ts";
import type { RunContext } from "../run/run-context.ts";
import type { VolumeSource, VolumeTarget } from "./volume.ts";

/** What is read: a volume, or what was frozen of one. */
export type SourceReference = { volumeId: string } | { snapshotId: string };

/** How one driver differs from another, as far as its callers have to know. A driver's name says nothing to them. */
export interface VolumeCapabilities {
  /**
   * `aside`: what a restore writes becomes the volume by `publishRestore`, and until then the volume is as it was. `in-place`: the target is
   * the volume itself, whose bytes are undefined from the first write until it is published; such a restore cannot be copied or abandoned.
   */
  readonly restores: "aside" | "in-place";
  /** Whether `changedExtents` tells more than that everything may differ, so that a frozen state is worth keeping for the next backup. */
  readonly tellsChanges: boolean;
}

/** A file or object of a backend that an operation has made. */
export interface BackendLeftover {
  kind: "volume" | "snapshot" | "private";
  /** What messages call it, and by what the driver finds it again. */
  path: string;
  /** The uuids in its name. */
  ids: string[];
  modifiedAt: Date;
}

/** Where files that users name may lie. */
export interface UserPlaces {
  /** Only beneath these folders, which may themselves be named by links. */
  roots: readonly string[];
  /** Folders and files of the service itself: neither they nor what is in them, whatever root they lie beneath. */
  reserved?: readonly string[];
}

/** Which run of which operation writes: its draft bears both, so that whoever comes later knows whose it is. */
export interface ExportRun {
  operationId: string;
  /** Runs of one operation are numbered from 0 on. */
  claim: number;
}

export interface ExportOptions {
  places: UserPlaces;
  run: ExportRun;
  /** Whether a regular file of that name may be replaced. */
  overwrite: boolean;
}

export interface RestoreLengths {
  sizeBytes: number;
  /** The volume's own bytes from `sizeBytes` on are kept where it is longer. */
  keepTail: boolean;
}

/**
 * Where volumes are. What is opened is read and written by the contracts of VolumeSource and VolumeTarget: by threads through a descriptor
 * where there is one, else by request. One object serves several tasks at once, and several processes may open the same place. Every verb is idempotent: it
 * can be run again after a crash at any point, with the same ids. Ids are uuids or made of one; anything that is no plain name is
 * PathNotAllowedError.
 *
 * Every verb throws VolumeStorageError when the storage fails, with `retryable` saying whether waiting may help; VolumeStorageFullError
 * without room; BackendUnavailableError where the place as a whole does not answer. A verb that takes a RunContext stops at its signal and
 * asks its fence before whatever others can see.
 */
export interface VolumeBackend {
  readonly capabilities: VolumeCapabilities;

  /** Bytes that are free for new volumes. */
  freeBytes(): Promise<number>;

  /** Makes an empty volume, all zeros. An existing one of the same length is success, of another VolumeConflictError. */
  create(volumeId: string, sizeBytes: number): Promise<void>;
  /**
   * Makes a volume of the bytes that `source` has at one moment: as long as its source, or `sizeBytes` where that is more. SourceMissingError,
   * SourceChangedError.
   */
  clone(source: SourceReference, volumeId: string, sizeBytes: number, run: RunContext): Promise<{ sizeBytes: number }>;
  /** Makes a volume longer, with zeros; one that is as long already is success. SourceMissingError when there is none. */
  extend(volumeId: string, sizeBytes: number): Promise<void>;
  /** Removes a volume; a missing one is success. */
  remove(volumeId: string): Promise<void>;
  /** How long the volume is that is there, whoever made it. SourceMissingError when there is none. */
  measure(volumeId: string): Promise<{ sizeBytes: number }>;

  /** Whether a freeze takes next to no time and room, so that one may be made for each backup. */
  canFreezeCheaply(): Promise<boolean>;
  /**
   * Keeps the volume's bytes of one moment under a snapshot's id, whatever is written to the volume afterwards. One that is there already is
   * kept as it is. SourceMissingError; SourceChangedError when the volume could not be held still.
   */
  freeze(volumeId: string, snapshotId: string, run: RunContext): Promise<{ sizeBytes: number }>;
  /** Gives up what was frozen; a missing one is success. */
  thaw(snapshotId: string): Promise<void>;
  /**
   * Where a volume's bytes are and where those of its snapshot will be, as files of this machine, for a hypervisor that freezes several
   * volumes together. BackendUnavailableError where volumes are no files.
   */
  snapshotPaths(volumeId: string, snapshotId: string): { volumePath: string; snapshotPath: string };

  /** Opens what is to be read. SourceMissingError when there is no such thing. */
  openSource(source: SourceReference): Promise<VolumeSource>;
  /**
   * The parts of `range` that may differ between what was frozen under the id `since` and `source`, ascending; what lies between them is the
   * same in both. The whole range where that cannot be told, or not any more.
   */
  changedExtents(source: SourceReference, since: string, range: Extent): AsyncIterable<Extent>;

  /**
   * Prepares what a restore writes into. `restoreId` names it, by an operation and a run of it. Replaces what an earlier run has left under the same id. Aside, all but a kept tail is zero. In
   * place, the volume must be there (VolumeConflictError) and is given its length, where it may be longer.
   */
  beginRestore(volumeId: string, restoreId: string, lengths: RestoreLengths, run?: RunContext): Promise<void>;
  /** Opens it for writing. VolumeConflictError when nothing was prepared. */
  openRestoreTarget(volumeId: string, restoreId: string): Promise<VolumeTarget>;
  /** Opens it for reading. SourceMissingError when nothing was prepared. */
  openRestored(volumeId: string, restoreId: string): Promise<VolumeSource>;
  /**
   * Makes what was written the volume, durably. With `fresh`, whoever still has the target open cannot reach the volume any more; in place
   * that is left to the target's own fence. Again after success it changes nothing; VolumeConflictError when nothing was prepared.
   */
  publishRestore(volumeId: string, restoreId: string, options: { fresh: boolean }, run?: RunContext): Promise<void>;
  /**
   * Copies what was written to `freshId`: whoever still has the first open cannot reach what will be published. VolumeConflictError when there
   * is nothing, or it is the volume itself.
   */
  copyRestore(volumeId: string, restoreId: string, freshId: string, run: RunContext): Promise<void>;
  /** Throws away what was prepared; aside, the volume stays as it was. A missing one is success. */
  abandonRestore(restoreId: string): Promise<void>;

  /** Makes a volume of a file that a user named, with the file's exact length. PathNotAllowedError, SourceMissingError. */
  importFile(path: string, volumeId: string, places: UserPlaces, run: RunContext): Promise<{ sizeBytes: number }>;
  /**
   * As importFile, but what is there already is never replaced: with the same bytes it is success, with others VolumeConflictError.
   */
  importIfAbsent(path: string, volumeId: string, places: UserPlaces, run: RunContext): Promise<void>;
  /** The checks of importFile alone. */
  statImport(path: string, places: UserPlaces): Promise<{ sizeBytes: number }>;
  /** Writes a volume to a file that a user named, which appears whole or not at all. PathTakenError unless it may be replaced. */
  exportFile(volumeId: string, path: string, options: ExportOptions, run: RunContext): Promise<{ sizeBytes: number }>;

  /**
   * Everything of a kind that an operation makes here, and its drafts, in any order: what of it is still needed, the caller knows. Never what
   * may hold the only copy of somebody's bytes.
   */
  leftovers(): AsyncIterable<BackendLeftover>;
  /** Removes what leftovers() has shown; what is gone is success. */
  removeLeftover(leftover: BackendLeftover): Promise<void>;
}
