import { InvalidLayoutError } from "../errors.ts";

/** A contiguous part of a volume, in bytes. */
export interface Extent {
  offset: number;
  length: number;
}

/** The requested part of a volume; a length of null means up to its end. Null when the part is not within the volume. */
export function partOf(volumeBytes: number, part: { offset: number; length: number | null }): Extent | null {
  const length = part.length ?? volumeBytes - part.offset;
  return part.offset < 0 || length < 0 || part.offset + length > volumeBytes ? null : { offset: part.offset, length };
}

/**
 * Cuts a volume into ranges, each a whole number of object windows (the last one ends with the volume). A range is at least `rangeBytes`
 * long, and longer where there would otherwise be more than `rangesMax`. An empty volume has no ranges.
 */
export function cutRanges(input: {
  volumeBytes: number;
  objectBytes: number;
  rangeBytes: number;
  rangesMax: number;
}): Extent[] {
  const { volumeBytes, objectBytes, rangeBytes, rangesMax } = input;
  for (const value of [objectBytes, rangeBytes, rangesMax]) {
    if (!Number.isSafeInteger(value) || value < 1) throw new InvalidLayoutError(`Not a positive integer: ${value}.`);
  }
  const windowsTotal = Math.ceil(volumeBytes / objectBytes);
  const windowsPerRange = Math.max(1, Math.floor(rangeBytes / objectBytes), Math.ceil(windowsTotal / rangesMax));
  return cutWindows({ offset: 0, length: volumeBytes }, windowsPerRange * objectBytes);
}

/** The object windows of an extent that starts on a window boundary, in order; the last one may be shorter. */
export function cutWindows(extent: Extent, windowBytes: number): Extent[] {
  const windows: Extent[] = [];
  const end = extent.offset + extent.length;
  for (let offset = extent.offset; offset < end; offset += windowBytes) {
    windows.push({ offset, length: Math.min(windowBytes, end - offset) });
  }
  return windows;
}

/** The part of `extent` that lies inside `bounds`, or null. */
export function clipExtent(extent: Extent, bounds: Extent): Extent | null {
  const offset = Math.max(extent.offset, bounds.offset);
  const end = Math.min(extent.offset + extent.length, bounds.offset + bounds.length);
  return end > offset ? { offset, length: end - offset } : null;
}
