import type { Compression } from "../codec/compression.ts";

/** One data object, as its entry in the metadata describes it. */
export interface ObjectEntry {
  /** The number in its name. */
  number: number;
  /** Offset of its bytes in the volume. */
  offset: number;
  /** Decoded length. */
  length: number;
  /** Hex MD5 of the decoded bytes; null when the metadata has none. Entries written here always have one. */
  md5: string | null;
  /** The label. */
  compression: Compression;
}
