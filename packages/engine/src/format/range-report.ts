import type { Extent } from "./extents.ts";

/** What a finished range stores in its task row: small, JSON, and enough to seal without reading the volume again. */
export interface RangeReport {
  range: Extent;
  objects: number;
  blocks: number;
  /** Bytes of the range that were read; excludes holes. */
  bytesRead: number;
  /** Stored bytes of all objects, including adopted ones. */
  bytesStored: number;
  /** Of these, bytes of objects that already existed: an earlier attempt has stored them. */
  bytesAdopted: number;
  /** The source's fingerprint before and after; must be the same for all ranges of a backup. */
  sourceFingerprint: string;
  /** See ListingDigest. */
  listingDigest: string;
  /** See Md5Digest: MD5s reported by the store when the objects were put. Absent in reports of earlier versions. */
  md5Digest?: string | null;
  /** Hex SHA-256 of the two slices. */
  hashesDigest: string;
  entriesDigest: string;
  /** Names of the slices in the operation's staging container; null when they were never written. */
  staged: { hashes: string; entries: string } | null;
}
