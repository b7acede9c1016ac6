import type { Extent } from "../format/extents.ts";

/** A volume, snapshot or image that is read. The engine reads it at several places at once. */
export interface VolumeSource extends AsyncDisposable {
  /** Exact length when it was opened. */
  readonly sizeBytes: number;
  /**
   * An open file that holds the volume's bytes at their own places, if there is one: threads read it by themselves. Stays open
   * until the source is disposed.
   */
  readonly descriptor?: number;
  /** Fills `into` from `offset`. SourceChangedError when the source has become shorter; VolumeStorageError when it fails. */
  read(into: Uint8Array, offset: number): Promise<void>;
  /**
   * The parts of `range` that may hold anything but zeros, ascending; what lies between them is known to be zero without
   * reading it. A source that cannot tell yields the whole range.
   */
  dataExtents(range: Extent): AsyncIterable<Extent>;
  /**
   * Changes whenever the contents may have changed; equal before and after a read means a read of one point in time. Equal
   * on every machine that opens the same source.
   */
  fingerprint(): Promise<string>;
}

/** A volume or image that a restore writes. Different parts may be written at the same time. */
export interface VolumeTarget extends AsyncDisposable {
  readonly sizeBytes: number;
  /** True only when every byte is known to be zero before the restore, so that zeros need not be written. */
  readonly isNew?: boolean;
  /** An open file that is written at the volume's own places, if there is one: threads write it by themselves. Stays open until the target is disposed. */
  readonly descriptor?: number;
  /** Writes all of `data`. VolumeStorageFullError when space runs out; VolumeStorageError for any other failure. */
  write(data: Uint8Array, offset: number): Promise<void>;
  /** Resolves when everything written so far is durable. */
  flush(): Promise<void>;
}
