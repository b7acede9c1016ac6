import { randomInt } from "node:crypto";
import type { Extent } from "../format/extents.ts";
import { blocksOf } from "../format/layout.ts";

/** The share of what is said to be unchanged that is read all the same, to find out whether that is true. */
const sampleShare = 0.01;

/**
 * Whole blocks of a window to read, ascending, joined where they follow each other: those that `changed` touches, and random samples of
 * the others (at least one where there are any).
 *
 * @param changed ascending; may overlap and reach beyond the window
 */
export function partsToRead(
  window: Extent,
  changed: readonly Extent[],
  blockBytes: number,
): { part: Extent; isSample: boolean }[] {
  const count = blocksOf(window.length, blockBytes);
  const isChanged = changedBlocks(window, changed, blockBytes);
  const others = Array.from({ length: count }, (_, block) => block).filter((block) => isChanged[block] === 0);
  const samples = new Set<number>();
  const wanted = Math.ceil(others.length * sampleShare);
  while (samples.size < wanted) samples.add(others[randomInt(others.length)] as number);
  const parts: { part: Extent; isSample: boolean }[] = [];
  for (let block = 0; block < count; block++) {
    const isSample = samples.has(block);
    if (!isSample && isChanged[block] === 0) continue;
    const offset = window.offset + block * blockBytes;
    const length = Math.min(blockBytes, window.offset + window.length - offset);
    const last = parts.at(-1);
    if (last?.isSample === isSample && last.part.offset + last.part.length === offset) last.part.length += length;
    else parts.push({ part: { offset, length }, isSample });
  }
  return parts;
}

/** 1 for each block of the window that `changed` touches. */
function changedBlocks(window: Extent, changed: readonly Extent[], blockBytes: number): Uint8Array {
  const count = blocksOf(window.length, blockBytes);
  const blocks = new Uint8Array(count);
  for (const { offset, length } of changed) {
    if (length === 0) continue;
    const first = Math.floor((offset - window.offset) / blockBytes);
    const end = Math.ceil((offset + length - window.offset) / blockBytes);
    if (end <= 0) continue;
    if (first >= count) break;
    blocks.fill(1, Math.max(0, first), Math.min(count, end));
  }
  return blocks;
}
