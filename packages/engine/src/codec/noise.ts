import { constants, zstdCompressSync } from "node:zlib";
import { ownBytes } from "./own-bytes.ts";

/** One byte in this many is counted; 4096 per unit are enough to tell noise from text. */
const sampleStride = 16;
/**
 * Chi-square of 256 equally likely values has mean 255 and standard deviation 23: noise hardly ever exceeds this; other data exceeds it
 * by far.
 */
const chiSquareMax = 400;
/** Shorter data is not worth testing. */
const unitBytesMin = 16 * 1024;
/** Enough room for the fast encoder's output for one unit, whatever it holds. */
const probeChunkBytes = 80 * 1024;
/** The share a fast encoder must save before the slow one is tried. */
const savedMin = 1 / 128;

/**
 * Whether deflating these bytes (about 64 KiB) would be useless: all byte values are about equally frequent, and a fast encoder finds no
 * repetitions either. Deterministic. Costs a twentieth of deflating noise at level 6.
 */
export function isNoise(unit: Uint8Array): boolean {
  if (unit.length < unitBytesMin) return false;
  const counts = new Uint32Array(256);
  let samples = 0;
  for (let at = 0; at < unit.length; at += sampleStride) {
    const value = unit[at] as number;
    counts[value] = (counts[value] as number) + 1;
    samples++;
  }
  const expected = samples / 256;
  let chiSquare = 0;
  for (const count of counts) chiSquare += (count - expected) ** 2 / expected;
  if (chiSquare > chiSquareMax) return false;
  const options = { chunkSize: probeChunkBytes, params: { [constants.ZSTD_c_compressionLevel]: 1 } };
  const probe = ownBytes(zstdCompressSync(unit, options), probeChunkBytes);
  const isVain = probe.length > unit.length * (1 - savedMin);
  // Free the memory now: otherwise as many bytes as there is noise would wait for a garbage collection.
  probe.buffer.transfer(0);
  return isVain;
}
