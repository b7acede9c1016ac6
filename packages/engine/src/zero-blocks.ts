import { hash } from "node:crypto";

/** The hashes of `length` zero bytes, 32 bytes per block; a shorter last block is hashed over its actual bytes. */
export function zeroBlockHashes(length: number, blockBytes: number): Uint8Array<ArrayBuffer> {
  const whole = Math.floor(length / blockBytes);
  const rest = length % blockBytes;
  const hashes = new Uint8Array((whole + (rest > 0 ? 1 : 0)) * 32);
  if (whole > 0) {
    const digest = hash("sha256", new Uint8Array(blockBytes), "buffer");
    for (let block = 0; block < whole; block++) hashes.set(digest, block * 32);
  }
  if (rest > 0) hashes.set(hash("sha256", new Uint8Array(rest), "buffer"), whole * 32);
  return hashes;
}
