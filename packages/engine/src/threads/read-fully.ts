import { closeSync, constants, fstatSync, openSync, readlinkSync, readSync } from "node:fs";
import { fileCall } from "./file-calls.ts";

/** The thread could not read its source; the owner can determine why. */
export interface UnreadResult {
  unread: { offset: number; length: number };
}

/** Fills `into` from an open file; false when the file ends early or cannot be read. */
export function readFully(descriptor: number, into: Uint8Array, offset: number): boolean {
  try {
    for (let done = 0; done < into.length; ) {
      const [at, length] = [done, into.length - done];
      const bytes = fileCall(() => readSync(descriptor, into, at, length, offset + at));
      if (bytes === 0) return false;
      done += bytes;
    }
    return true;
  } catch {
    return false;
  }
}

/**
 * Fills `into` with part of a file: what lies within `data`, pairs of start and end relative to the part, is read, the rest is zeroed.
 * Returns the place in the file that cannot be read, or null.
 */
export function readExtents(
  from: { file: number; offset: number; data: Float64Array },
  into: Uint8Array,
): { offset: number; length: number } | null {
  const { data } = from;
  let filled = 0;
  for (let pair = 0; pair < data.length; pair += 2) {
    const start = data[pair] as number;
    const end = data[pair + 1] as number;
    into.fill(0, filled, start);
    const offset = from.offset + start;
    if (!readFully(from.file, into.subarray(start, end), offset)) return { offset, length: end - start };
    filled = end;
  }
  into.fill(0, filled);
  return null;
}

/** A file that is closed when its scope ends. */
export interface OpenedFile extends Disposable {
  descriptor: number;
}

/**
 * Opens a file by a link-free path without blocking on a FIFO. Null when the opened file is not at that very path (a link was followed),
 * is not a regular file or does not have that size.
 */
export function openForReading({ path, sizeBytes }: { path: string; sizeBytes: number }): OpenedFile | null {
  try {
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK;
    const descriptor = fileCall(() => openSync(path, flags));
    const status = fstatSync(descriptor);
    if (status.isFile() && status.size === sizeBytes && readlinkSync(`/proc/self/fd/${descriptor}`) === path)
      return { descriptor, [Symbol.dispose]: () => closeSync(descriptor) };
    closeSync(descriptor);
    return null;
  } catch {
    return null;
  }
}

/** The pairs of start and end that overlap a part, clipped and relative to its start. */
export function clipPairs(pairs: Float64Array, start: number, end: number): Float64Array<ArrayBuffer> {
  const clipped: number[] = [];
  for (let pair = 0; pair < pairs.length; pair += 2) {
    const from = Math.max(start, pairs[pair] as number);
    const to = Math.min(end, pairs[pair + 1] as number);
    if (to > from) clipped.push(from - start, to - start);
  }
  return Float64Array.from(clipped);
}
