import { closeSync, constants, fstatSync, openSync, readlinkSync, readSync } from "node:fs";
import type { Extent } from "../format/extents.ts";
import { fileCall } from "./file-calls.ts";
import { type NbdFailure, type NbdPart, readByNbd } from "./nbd-lane.ts";
import type { ThreadPlace } from "./thread-place.ts";

/** The thread could not read its source; the owner can determine why. */
export interface UnreadResult {
  unread: UnreadPlace;
}

export interface UnreadPlace extends Extent {
  /** What the server did, where it is an export. */
  failure?: NbdFailure;
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

/** A piece of a volume: what lies within `data`, pairs of start and end relative to the piece, is read, the rest is zeroed. */
export interface SparsePiece {
  offset: number;
  data: Float64Array;
  into: Uint8Array;
}

/** Fills pieces of a volume, over a connection all at once. Returns what cannot be read, or null. */
export function readPieces(from: ThreadPlace, pieces: readonly SparsePiece[]): UnreadPlace | null {
  const parts = pieces.flatMap(dataParts);
  if ("nbd" in from) {
    const failure = readByNbd(from.nbd, parts);
    const [{ offset, into } = { offset: 0, into: new Uint8Array() }] = parts;
    return failure === null ? null : { offset, length: into.length, failure };
  }
  for (const { offset, into } of parts) {
    if (!readFully(from.descriptor, into, offset)) return { offset, length: into.length };
  }
  return null;
}

/** The parts of a piece to be read; its other bytes are zeroed now. */
function dataParts({ offset, data, into }: SparsePiece): NbdPart[] {
  const parts: NbdPart[] = [];
  let filled = 0;
  for (let pair = 0; pair < data.length; pair += 2) {
    const start = data[pair] as number;
    const end = data[pair + 1] as number;
    into.fill(0, filled, start);
    parts.push({ offset: offset + start, into: into.subarray(start, end) });
    filled = end;
  }
  into.fill(0, filled);
  return parts;
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

/** Number of bytes within pairs of start and end. */
export function pairedBytes(pairs: Float64Array): number {
  return pairs.reduce((sum, place, index) => sum + (index % 2 === 0 ? -place : place), 0);
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
