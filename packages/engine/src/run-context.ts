/** What every long verb takes from its caller. */
export interface RunContext {
  /** Ends the verb: it throws the signal's reason as soon as what is in flight has come to rest. */
  signal: AbortSignal;
  /**
   * Called synchronously before every put, link, removal and write of at most 1 MiB. Throws when the caller may no longer
   * write (its lease is lost); the engine then changes nothing more.
   */
  fence: () => void;
  /** Totals of this call so far, in bytes. Called on the caller's thread, at most once per object or piece. */
  onProgress: (progress: { bytesDone: number; bytesStored: number }) => void;
}

/** The part of a RunContext that a single write needs. */
export type WriteContext = Pick<RunContext, "signal" | "fence">;

/** The largest write that may follow one call of the fence, in bytes. */
export const writeBytesMax = 1024 * 1024;
