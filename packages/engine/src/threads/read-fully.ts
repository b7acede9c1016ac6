import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";

/** The thread could not read its source, which its owner can find out more about. */
export interface UnreadResult {
  unread: { offset: number; length: number };
}

/** What a thread reads: an open file, or one that it opens for each read, which must then be regular and of that size. */
export type ReadableFile = number | { path: string; sizeBytes: number };

/** Fills `into` from an open file; false when the file ends before or cannot be read. */
export function readFully(descriptor: number, into: Uint8Array, offset: number): boolean {
  try {
    for (let done = 0; done < into.length; ) {
      const bytes = readSync(descriptor, into, done, into.length - done, offset + done);
      if (bytes === 0) return false;
      done += bytes;
    }
    return true;
  } catch {
    return false;
  }
}

/**
 * Fills `into` with a part of a file: what lies within `data`, pairs of start and end relative to the part, is read, the
 * rest is zero; null stands for all. Returns the place that cannot be read, in the file, or null.
 */
export function readExtents(
  from: { file: ReadableFile; offset: number; data: Float64Array | null },
  into: Uint8Array,
): { offset: number; length: number } | null {
  if (into.length === 0) return null;
  const data = from.data ?? [0, into.length];
  const descriptor = typeof from.file === "number" ? from.file : openRegularSync(from.file);
  if (descriptor === null) return { offset: from.offset, length: into.length };
  try {
    let filled = 0;
    for (let pair = 0; pair < data.length; pair += 2) {
      const start = data[pair] as number;
      const end = data[pair + 1] as number;
      into.fill(0, filled, start);
      const offset = from.offset + start;
      if (!readFully(descriptor, into.subarray(start, end), offset)) return { offset, length: end - start };
      filled = end;
    }
    into.fill(0, filled);
    return null;
  } finally {
    if (typeof from.file !== "number") closeSync(descriptor);
  }
}

/** Follows no link and waits for no FIFO; null when the file is not there or not as it should be. */
function openRegularSync({ path, sizeBytes }: { path: string; sizeBytes: number }): number | null {
  try {
    const descriptor = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const status = fstatSync(descriptor);
    if (status.isFile() && status.size === sizeBytes) return descriptor;
    closeSync(descriptor);
    return null;
  } catch {
    return null;
  }
}

/** The pairs of start and end that lie within a part, relative to its start. */
export function clipPairs(pairs: Float64Array, start: number, end: number): Float64Array<ArrayBuffer> {
  const clipped: number[] = [];
  for (let pair = 0; pair < pairs.length; pair += 2) {
    const from = Math.max(start, pairs[pair] as number);
    const to = Math.min(end, pairs[pair + 1] as number);
    if (to > from) clipped.push(from - start, to - start);
  }
  return Float64Array.from(clipped);
}
