import type { Hashing } from "../hashing/hashing.ts";

/** What a thread computes with. */
export interface CpuTools {
  hashing: Hashing;
  cancelled: () => boolean;
}
