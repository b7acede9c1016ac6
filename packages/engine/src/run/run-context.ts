/** What every long verb takes from its caller. */
export interface RunContext {
  /** Ends the verb: it throws the signal's reason as soon as what is in flight has come to rest. */
  signal: AbortSignal;
  /**
   * Called synchronously before every put, link, removal and write of at most 1 MiB. Throws when the caller may no longer
   * write (its lease is lost); the engine then changes nothing more.
   */
  fence: () => void;
  /**
   * The same limit where threads can read it: one number, in nanoseconds of `process.hrtime`, at which they stop writing by themselves,
   * even while the caller's own thread stands still. Without it nothing is written by threads, which is slower.
   */
  writableUntil?: BigInt64Array<SharedArrayBuffer>;
  /** Totals of this call so far, in bytes. Called on the caller's thread, at most once per object or piece. */
  onProgress: (progress: { bytesDone: number; bytesStored: number }) => void;
}

/** The part of a RunContext that a single write needs. */
export interface WriteContext extends Pick<RunContext, "signal" | "fence"> {
  /** Called before a put resolves with the hex MD5 of the stored bytes, where the store itself has said that it holds these. */
  onVouched?: (md5: string) => void;
}

/** The largest write that may follow one call of the fence, in bytes. */
export const writeBytesMax = 1024 * 1024;

/** For a caller that nobody takes the work away from. */
export const writableForever: BigInt64Array<SharedArrayBuffer> = new BigInt64Array(new SharedArrayBuffer(8));
writableForever[0] = 2n ** 63n - 1n;
