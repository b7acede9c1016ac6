import { createCipheriv, createHash } from "node:crypto";
import { open } from "node:fs/promises";

const MiB = 1024 * 1024;
const islandBytes = 8 * MiB;
const poolBytes = 4 * MiB;

/**
 * Writes a sparse file: islands of 8 MiB, evenly spread, half text that compresses about 3 to 1, half noise that does not.
 * The same arguments give the same bytes.
 */
export async function writeSparseFile(
  path: string,
  { sizeBytes, dataBytes, seed }: { sizeBytes: number; dataBytes: number; seed: string },
): Promise<void> {
  await using file = await open(path, "w");
  await file.truncate(sizeBytes);
  const text = textOf(`text ${seed}`, poolBytes);
  const noise = noiseOf(`noise ${seed}`);
  const islands = Math.ceil(dataBytes / islandBytes);
  const stride = Math.floor(sizeBytes / islands / 4096) * 4096;
  for (let island = 0; island < islands; island += 1) {
    for (let at = 0; at < islandBytes; at += poolBytes) {
      const left = dataBytes - island * islandBytes - at;
      if (left <= 0) break;
      const data = at < islandBytes / 2 ? text : noise(poolBytes);
      await file.write(data, 0, Math.min(poolBytes, left), island * stride + at);
    }
  }
}

/** An endless stream of bytes that look random. */
export function noiseOf(seed: string): (bytes: number) => Buffer {
  const hash = createHash("sha256").update(seed).digest();
  const cipher = createCipheriv("aes-128-ctr", hash.subarray(0, 16), hash.subarray(16));
  return (bytes) => cipher.update(Buffer.alloc(bytes));
}

const vocabularySize = 8192;

/** Words of a vocabulary, some very often and most seldom, as in prose: about 3 to 1 under zlib, at the speed of prose. */
export function textOf(seed: string, bytes: number): Buffer {
  const letters = noiseOf("vocabulary")(vocabularySize * 10);
  const vocabulary = Array.from({ length: vocabularySize }, (_, word) => {
    const from = word * 10;
    const length = 2 + ((letters[from] ?? 0) % 8);
    return String.fromCharCode(...letters.subarray(from + 1, from + 1 + length).map((byte) => 97 + (byte % 26)));
  });
  const draws = noiseOf(seed)(bytes);
  const words: string[] = [];
  for (let length = 0, draw = 0; length < bytes; draw += 2) {
    const word = vocabulary[Math.floor((draws.readUInt16LE(draw) / 65_536) ** 7 * vocabularySize)] ?? "";
    words.push(word);
    length += word.length + 1;
  }
  return Buffer.from(words.join(" ")).subarray(0, bytes);
}
