/** Messages that go in step: their MD5 share the lanes of the processor's vectors, of which there are 16. */
export const lanesMax = 16;
/** Read and hashed at a time of each message: small enough that the slices of all lanes stay in the processor's cache. */
const sliceBytesAim = 256 * 1024;

/** Whether blocks of this size can be hashed in lanes: whole MD5 steps, and slices that stay small. */
export function fitsLanes(blockBytes: number): boolean {
  return blockBytes % 64 === 0 && blockBytes <= 4 * sliceBytesAim;
}

export function sliceBytesOf(blockBytes: number): number {
  return Math.max(1, Math.floor(sliceBytesAim / blockBytes)) * blockBytes;
}

/** Bytes that pumping holds: each lane has one slice being hashed and one that the consumer has. */
export function laneMemoryBytes(lanes: number, blockBytes: number): number {
  return 2 * lanes * sliceBytesOf(blockBytes);
}
