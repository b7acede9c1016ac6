/** What every long-running verb receives from its caller. */
export interface RunContext {
  /** Aborts the verb: it throws the signal's reason once everything in flight has settled. */
  signal: AbortSignal;
  /**
   * Called synchronously before every put, link, removal and write of at most 1 MiB. Throws when the caller may no longer
   * write (its lease is lost); the engine then changes nothing more.
   */
  fence: () => void;
  /**
   * The same limit in a form that threads can read: a `process.hrtime` time in nanoseconds at which they stop writing on their own, even
   * while the caller's thread is blocked. Without it threads write nothing, which is slower.
   */
  writableUntil?: BigInt64Array<SharedArrayBuffer>;
  /**
   * Called before a volume is read for a backup, with the number of bytes; the engine waits for what it returns, if anything. May let
   * pieces of a megabyte through as well as whole objects.
   */
  pace?: (bytes: number) => Promise<void> | null;
  /**
   * Called before memory for the next windows is claimed, with their bytes; the engine waits for what it returns, if anything. What waits
   * there holds no memory.
   */
  admit?: (bytes: number) => Promise<void> | null;
  /** Totals of this call so far, in bytes. Called on the caller's thread, at most once per object or piece. */
  onProgress: (progress: { bytesDone: number; bytesStored: number }) => void;
}

/** The part of a RunContext that a single write needs. */
export interface WriteContext extends Pick<RunContext, "signal" | "fence"> {
  /** Called before a put resolves, with the hex MD5 of the stored bytes, where the store itself has confirmed it. */
  onVouched?: (md5: string) => void;
  /**
   * Hex MD5 of the put's whole body, from a caller who has it: object stores check the bytes against it. A body that is sent in parts is
   * digested by parts all the same, and folders need none.
   */
  bodyMd5?: string;
}

/** The largest write allowed per fence check, in bytes. */
export const writeBytesMax = 1024 * 1024;

/** For a caller whose work cannot be taken over by another. */
export const writableForever: BigInt64Array<SharedArrayBuffer> = new BigInt64Array(new SharedArrayBuffer(8));
writableForever[0] = 2n ** 63n - 1n;
