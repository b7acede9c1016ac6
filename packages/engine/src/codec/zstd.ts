import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { ownBytes } from "./own-bytes.ts";

/** Node's minimum. */
const chunkBytesMin = 64;

/**
 * Compresses `data` to one Zstandard frame in a single call, so that its header holds the content size: Cinder's decoder rejects frames
 * without it. Returns null when the frame would not be shorter than the data.
 */
export function zstdPieces(data: Uint8Array, level: number): Uint8Array<ArrayBuffer>[] | null {
  // One buffer, of which only the written part takes physical memory: several would be concatenated into yet another one.
  const chunkSize = Math.max(chunkBytesMin, data.length);
  try {
    const frame = zstdCompressSync(data, {
      chunkSize,
      maxOutputLength: Math.max(1, data.length - 1),
      params: { [constants.ZSTD_c_compressionLevel]: level, [constants.ZSTD_c_contentSizeFlag]: 1 },
    });
    if (frame.length >= data.length) return null;
    // A small frame must not keep the whole buffer alive; copying a large one would take more memory than the unused rest of the buffer.
    const isLarge = frame.buffer.byteLength === chunkSize && frame.length > chunkSize / 8;
    return [isLarge ? (frame as Buffer<ArrayBuffer>) : ownBytes(frame, chunkSize)];
  } catch (error) {
    if ((error as { code?: unknown }).code === "ERR_BUFFER_TOO_LARGE") return null;
    throw error;
  }
}

/** Decompresses exactly one frame to exactly `length` bytes, or says what is wrong. Output never exceeds `length`. */
export function unzstdExactly(stored: Uint8Array, length: number): Uint8Array<ArrayBuffer> | { reason: string } {
  let result: { buffer: Buffer; engine: { bytesWritten: number } };
  const chunkSize = Math.max(chunkBytesMin, length);
  try {
    const options = { chunkSize, maxOutputLength: Math.max(1, length), info: true };
    result = zstdDecompressSync(stored, options) as unknown as typeof result;
  } catch (error) {
    return { reason: `the zstd frame cannot be decoded to ${length} bytes (${(error as Error).message})` };
  }
  const { buffer, engine } = result;
  if (buffer.length !== length) return { reason: `${buffer.length} bytes decoded instead of ${length}` };
  if (engine.bytesWritten !== stored.length) return { reason: "there is data behind the end of the zstd frame" };
  return ownBytes(buffer, chunkSize);
}
