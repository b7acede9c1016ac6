/** Messages hashed in lockstep: their MD5s share the lanes of the processor's vector units, of which there are 16. */
export const lanesMax = 16;
/** Bytes of each message read and hashed at a time: small enough that the slices of all lanes fit in the processor's cache. */
const sliceBytesAim = 256 * 1024;

/** Whether blocks of this size can be hashed in lanes: whole 64-byte MD5 blocks, and slices that stay small. */
export function fitsLanes(blockBytes: number): boolean {
  return blockBytes % 64 === 0 && blockBytes <= 4 * sliceBytesAim;
}

export function sliceBytesOf(blockBytes: number): number {
  return Math.max(1, Math.floor(sliceBytesAim / blockBytes)) * blockBytes;
}

/** Memory that pumping takes: per lane, one slice being hashed and one held by the consumer; and the zeros beside them. */
export function laneMemoryBytes(lanes: number, blockBytes: number): number {
  return 2 * (lanes + 1) * sliceBytesOf(blockBytes);
}
