/** Appends the runs of blocks that are not all zeros, merging the first with the previous run where they touch. */
export function addDataRuns(
  runs: number[],
  zero: Uint8Array,
  { start, length, blockBytes }: { start: number; length: number; blockBytes: number },
): void {
  for (let index = 0; index < zero.length; index++) {
    if (zero[index] === 1) continue;
    const from = start + index * blockBytes;
    const to = Math.min(from + blockBytes, start + length);
    if (runs.length > 0 && runs.at(-1) === from) runs[runs.length - 1] = to;
    else runs.push(from, to);
  }
}
