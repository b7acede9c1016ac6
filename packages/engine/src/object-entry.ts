import type { Compression } from "./compression.ts";

/** One data object, as its entry in the metadata describes it. */
export interface ObjectEntry {
  /** The number in its name. */
  number: number;
  /** Where its bytes belong in the volume. */
  offset: number;
  /** Decoded length. */
  length: number;
  /** Hex MD5 of the decoded bytes. */
  md5: string;
  compression: Compression;
}
