import { deflateRawSync, inflateRawSync } from "node:zlib";
import { InvalidLayoutError } from "../errors.ts";
import { clipExtent, type Extent } from "../format/extents.ts";
import { blocksOf } from "../format/layout.ts";

/** Which parts of a range may differ from the parent, in a form that is stored with the range. */
export interface ChangedParts {
  /** What one bit stands for. The last one may reach beyond the range. */
  grainBytes: number;
  /** A bit per grain, 1 where it may differ, the lowest of each byte first: compressed by raw deflate, in base64. */
  grains: string;
}

/** Of a whole volume: 8 MiB of bits. With blocks of 32 KiB, volumes of more than 2 TiB are told of in coarser grains. */
const grainsMax = 2 ** 26;

/**
 * Divides what has changed in a volume among its ranges, in blocks or, where there are very many, in coarser grains.
 *
 * @param changes in any order; may overlap
 * @param ranges of cutRanges(): all of one length, except the last
 */
export async function divideChanges(
  changes: AsyncIterable<Extent>,
  ranges: readonly Extent[],
  blockBytes: number,
): Promise<ChangedParts[]> {
  const rangeBytes = ranges[0]?.length ?? 1;
  const total = ranges.reduce((sum, { length }) => sum + length, 0);
  let grainBytes = blockBytes;
  while (total / grainBytes > grainsMax) grainBytes *= 2;
  const bits = ranges.map(({ length }) => new Uint8Array(bytesOf(length, grainBytes)));
  for await (const change of changes) {
    const last = Math.min(ranges.length, Math.ceil((change.offset + change.length) / rangeBytes)) - 1;
    for (let index = Math.floor(change.offset / rangeBytes); index <= last; index++) {
      const range = ranges[index] as Extent;
      const part = clipExtent(change, range);
      if (part !== null) mark(bits[index] as Uint8Array, part.offset - range.offset, part.length, grainBytes);
    }
  }
  return bits.map((each) => ({ grainBytes, grains: deflateRawSync(each).toString("base64") }));
}

/** The parts of `range` that may have changed, ascending. @throws InvalidLayoutError when they are not those of such a range */
export function readChanges({ grainBytes, grains }: ChangedParts, range: Extent): Extent[] {
  const bits = inflated(grains, bytesOf(range.length, grainBytes));
  const changes: Extent[] = [];
  for (let grain = 0; grain < blocksOf(range.length, grainBytes); grain++) {
    if (((bits[grain >> 3] as number) & (1 << (grain & 7))) === 0) continue;
    const offset = range.offset + grain * grainBytes;
    const length = Math.min(grainBytes, range.offset + range.length - offset);
    const last = changes.at(-1);
    if (last !== undefined && last.offset + last.length === offset) last.length += length;
    else changes.push({ offset, length });
  }
  return changes;
}

const bytesOf = (rangeBytes: number, grainBytes: number): number => Math.ceil(blocksOf(rangeBytes, grainBytes) / 8);

function mark(bits: Uint8Array, offset: number, length: number, grainBytes: number): void {
  const end = Math.ceil((offset + length) / grainBytes);
  for (let grain = Math.floor(offset / grainBytes); grain < end; grain++) {
    const byte = grain >> 3;
    bits[byte] = (bits[byte] as number) | (1 << (grain & 7));
  }
}

function inflated(grains: string, bytes: number): Uint8Array {
  const wrong = (cause?: unknown): InvalidLayoutError =>
    new InvalidLayoutError("The changes that were noted with the range are not those of such a range.", { cause });
  let bits: Uint8Array;
  try {
    bits = inflateRawSync(Buffer.from(grains, "base64"), { maxOutputLength: Math.max(1, bytes) });
  } catch (error) {
    throw wrong(error);
  }
  if (bits.length !== bytes) throw wrong();
  return bits;
}
