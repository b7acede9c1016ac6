import type { Hashing } from "../hashing/hashing.ts";

/** The implementations that a thread computes with. */
export interface CpuTools {
  hashing: Hashing;
  cancelled: () => boolean;
  /** Memory with anything in it, until the next call: fresh memory costs a page fault every 4 KiB. */
  scratch: (bytes: number) => Uint8Array<ArrayBuffer>;
  /** Memory for a window, with anything in it, that the caller owns: what was given back last, where it has that size. */
  windowMemory: (bytes: number) => ArrayBuffer;
  giveBackWindow: (window: ArrayBuffer) => void;
}
