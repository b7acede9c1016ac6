/** Shorter runs of zeros are written: a file of many small extents is slower to read. */
const holeBytesMin = 64 * 1024;
const zeros = Buffer.alloc(holeBytesMin);

/** The non-zero parts of a piece, as start and end within it. */
export function dataRuns(piece: Uint8Array): { start: number; end: number }[] {
  const runs: { start: number; end: number }[] = [];
  for (let start = 0; start < piece.length; start += holeBytesMin) {
    const end = Math.min(start + holeBytesMin, piece.length);
    if (zeros.compare(piece, start, end, 0, end - start) === 0) continue;
    const last = runs.at(-1);
    if (last?.end === start) last.end = end;
    else runs.push({ start, end });
  }
  return runs;
}
