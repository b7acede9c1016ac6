import type { Extent } from "./extents.ts";

/** What a finished range leaves in its task's row: small, JSON, and enough to seal without looking at the volume again. */
export interface RangeReport {
  range: Extent;
  objects: number;
  blocks: number;
  /** Bytes of the range that were read; holes are not. */
  bytesRead: number;
  /** Bytes of all objects as stored, adopted ones included. */
  bytesStored: number;
  /** Of these, the bytes of objects that were there already: an earlier try has stored them. */
  bytesAdopted: number;
  /** What the source looked like before and after; all ranges of a backup must have seen the same. */
  sourceFingerprint: string;
  /** See ListingDigest. */
  listingDigest: string;
  /** See Md5Digest: what the store said when the objects were put. Absent in reports of earlier versions. */
  md5Digest?: string | null;
  /** Hex SHA-256 of the two slices. */
  hashesDigest: string;
  entriesDigest: string;
  /** Names of the slices in the operation's staging container; null when they were never written. */
  staged: { hashes: string; entries: string } | null;
}
