import type { Hashing } from "../hashing/hashing.ts";

/** The implementations that a thread computes with. */
export interface CpuTools {
  hashing: Hashing;
  cancelled: () => boolean;
  /** Memory with anything in it, until the next call: fresh memory costs a page fault every 4 KiB. */
  scratch: (bytes: number) => Uint8Array<ArrayBuffer>;
}
