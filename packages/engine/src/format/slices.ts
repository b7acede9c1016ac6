import { createHash, type Hash } from "node:crypto";
import { encodeHashes } from "./hash-list.ts";
import { metadataEntry } from "./metadata.ts";
import type { ObjectEntry } from "./object-entry.ts";

const comma = Buffer.from(",\n");
/** Number of entries joined into one chunk before it is written. */
const entriesPerChunk = 1000;
/** Blocks per chunk of hash text: 576 KiB. */
const hashesPerChunk = 8192;

/**
 * A range's part of `_sha256file`: exactly the bytes that the file will contain, without a comma at either end. `windows` are the hashes
 * of consecutive windows, 32 bytes per block.
 */
export function* hashSlice(windows: readonly Uint8Array[]): Generator<Uint8Array> {
  let first = true;
  for (const digests of windows) {
    for (let start = 0; start < digests.length; start += hashesPerChunk * 32) {
      if (!first) yield comma;
      first = false;
      yield encodeHashes(digests.subarray(start, start + hashesPerChunk * 32));
    }
  }
}

/** A range's part of `_metadata`: exactly the bytes that the file will contain, without a comma at either end. */
export function* entrySlice(prefix: string, entries: readonly ObjectEntry[]): Generator<Uint8Array> {
  for (let start = 0; start < entries.length; start += entriesPerChunk) {
    if (start > 0) yield comma;
    const some = entries.slice(start, start + entriesPerChunk);
    yield Buffer.from(some.map((entry) => metadataEntry(prefix, entry)).join(",\n"));
  }
}

/** Hex SHA-256 of a slice. */
export function sliceDigest(slice: Iterable<Uint8Array>): string {
  const hash = createHash("sha256");
  for (const chunk of slice) hash.update(chunk);
  return hash.digest("hex");
}

/** Joins non-empty slices with `,\n`, and adds text before and after. */
export async function* joinSlices(
  head: string,
  slices: Iterable<AsyncIterable<Uint8Array>>,
  tail: string,
): AsyncGenerator<Uint8Array> {
  yield Buffer.from(head);
  let empty = true;
  for (const slice of slices) {
    let started = false;
    for await (const chunk of slice) {
      if (chunk.length === 0) continue;
      if (!started) yield empty ? Buffer.from("\n") : comma;
      started = true;
      empty = false;
      yield chunk;
    }
  }
  yield Buffer.from(empty ? tail : `\n  ${tail}`);
}

/** Passes chunks on and feeds them to a hash. */
export async function* hashing(chunks: AsyncIterable<Uint8Array>, hash: Hash): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    hash.update(chunk);
    yield chunk;
  }
}
