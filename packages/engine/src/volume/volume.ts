import type { Extent } from "../format/extents.ts";
import type { NbdExport } from "./nbd/nbd-protocol.ts";

/** A volume, snapshot or image to read. The engine reads it concurrently at several offsets. */
export interface VolumeSource extends AsyncDisposable {
  /** Exact length when opened. */
  readonly sizeBytes: number;
  /**
   * An open file with the volume's bytes at their own offsets, if there is one, which threads read directly. Stays open until the source
   * is disposed.
   */
  readonly descriptor?: number;
  /**
   * An export with the volume's bytes, if there is no such file, which threads read over connections of their own. Served until the source
   * is disposed.
   */
  readonly nbdExport?: NbdExport | undefined;
  /** Fills `into` from `offset`. SourceChangedError when the source has become shorter; VolumeStorageError when the read fails. */
  read(into: Uint8Array, offset: number): Promise<void>;
  /**
   * The parts of `range` that may contain non-zero data, ascending; the gaps between them are known to be zero without reading. A source
   * that cannot tell yields the whole range.
   */
  dataExtents(range: Extent): AsyncIterable<Extent>;
  /**
   * Changes whenever the contents may have changed; if equal before and after a read, the read was of one point in time. Equal on every
   * machine that opens the same source, unless the backend's capabilities say otherwise.
   */
  fingerprint(): Promise<string>;
}

/** A volume or image written by a restore. Different parts may be written concurrently. */
export interface VolumeTarget extends AsyncDisposable {
  readonly sizeBytes: number;
  /** True only when every byte is known to be zero before the restore, so that zeros need not be written. */
  readonly isNew?: boolean;
  /**
   * An open file, written at the volume's own offsets, if there is one, which threads write directly. Stays open until the target is
   * disposed.
   */
  readonly descriptor?: number;
  /** An export, if there is no such file, which threads write over connections of their own. What they have written, `flush` covers. */
  readonly nbdExport?: NbdExport | undefined;
  /** Writes all of `data`. VolumeStorageFullError when space runs out; VolumeStorageError for any other failure. */
  write(data: Uint8Array, offset: number): Promise<void>;
  /** Makes a range read as zeros, which are not stored where that can be avoided. Absent where zeros have to be written. */
  zero?(range: Extent): Promise<void>;
  /** Resolves when everything written so far is durable. */
  flush(): Promise<void>;
}
