import { createCipheriv, createHash } from "node:crypto";

/** Incompressible bytes, deterministic for a given seed. */
export function randomBytesOf(seed: string, length: number): Buffer {
  const key = createHash("sha256").update(seed).digest();
  const cipher = createCipheriv("aes-128-ctr", key.subarray(0, 16), key.subarray(16));
  return cipher.update(Buffer.alloc(length));
}
