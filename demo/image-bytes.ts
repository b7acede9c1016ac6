import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import { open } from "node:fs/promises";

const unitBytes = 64 * 1024;
/** What a file system writes at the least. */
const blockBytes = 4096;

/** Overwrites about `bytes` of the file in place, in pieces of 64 KiB spread over its whole length. */
export async function overwriteBlocks(path: string, bytes: number): Promise<void> {
  await using file = await open(path, "r+");
  const { size } = await file.stat();
  const units = Math.max(1, Math.floor(bytes / unitBytes));
  const step = size / units;
  for (let unit = 0; unit < units; unit += 1) {
    const at = Math.floor((unit * step) / unitBytes) * unitBytes;
    await file.write(randomBytes(Math.min(unitBytes, size - at)), 0, undefined, at);
  }
}

/** Bytes in blocks of 4 KiB that differ between two files of one length. */
export async function changedBytes(before: string, after: string): Promise<number> {
  await using a = await open(before);
  await using b = await open(after);
  const { size } = await a.stat();
  const windowBytes = 64 * unitBytes;
  const [left, right] = [Buffer.alloc(windowBytes), Buffer.alloc(windowBytes)];
  let changed = 0;
  for (let at = 0; at < size; at += windowBytes) {
    const length = Math.min(windowBytes, size - at);
    await Promise.all([a.read(left, 0, length, at), b.read(right, 0, length, at)]);
    if (left.subarray(0, length).equals(right.subarray(0, length))) continue;
    for (let block = 0; block < length; block += blockBytes) {
      const end = Math.min(block + blockBytes, length);
      if (!left.subarray(block, end).equals(right.subarray(block, end))) changed += end - block;
    }
  }
  return changed;
}

/** SHA-256 of a file, as hex digits. */
export async function sha256Of(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 4 * 1024 * 1024 })) hash.update(chunk);
  return hash.digest("hex");
}
