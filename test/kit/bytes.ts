import { createCipheriv, createHash } from "node:crypto";

/** Bytes that no compressor shrinks, the same for the same seed. */
export function randomBytesOf(seed: string, length: number): Buffer {
  const key = createHash("sha256").update(seed).digest();
  const cipher = createCipheriv("aes-128-ctr", key.subarray(0, 16), key.subarray(16));
  return cipher.update(Buffer.alloc(length));
}
