import type { Hashing } from "../hashing/hashing.ts";

/** The implementations that a thread computes with. */
export interface CpuTools {
  hashing: Hashing;
  cancelled: () => boolean;
}
