import { hash } from "node:crypto";
import { LRUCache } from "lru-cache";

/** Cached constants: hashing a block of 64 MiB takes a tenth of a second, and a large volume has many windows of zeros. */
const digests = new LRUCache<number, Buffer>({ max: 32 });

function zeroDigest(length: number): Buffer {
  const known = digests.get(length);
  if (known !== undefined) return known;
  const digest = hash("sha256", new Uint8Array(length), "buffer");
  digests.set(length, digest);
  return digest;
}

/** The hashes of `length` zero bytes, 32 bytes per block; a shorter last block is hashed over its actual bytes. */
export function zeroBlockHashes(length: number, blockBytes: number): Uint8Array<ArrayBuffer> {
  const whole = Math.floor(length / blockBytes);
  const rest = length % blockBytes;
  const hashes = new Uint8Array((whole + (rest > 0 ? 1 : 0)) * 32);
  if (whole > 0) {
    const digest = zeroDigest(blockBytes);
    Buffer.from(hashes.buffer, 0, whole * 32).fill(digest);
  }
  if (rest > 0) hashes.set(zeroDigest(rest), whole * 32);
  return hashes;
}
