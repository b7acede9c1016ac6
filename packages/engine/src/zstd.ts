import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib";
import { ownBytes } from "./own-bytes.ts";

const chunkBytes = 1024 * 1024;

/**
 * Compresses `data` to one Zstandard frame. It is made in one shot, so that its header holds the content size: Cinder's decoder
 * refuses frames without it. Returns null when the frame would not be shorter than the data.
 */
export function zstdPieces(data: Uint8Array, level: number): Uint8Array<ArrayBuffer>[] | null {
  try {
    const frame = zstdCompressSync(data, {
      chunkSize: chunkBytes,
      maxOutputLength: Math.max(1, data.length - 1),
      params: { [constants.ZSTD_c_compressionLevel]: level, [constants.ZSTD_c_contentSizeFlag]: 1 },
    });
    return frame.length < data.length ? [ownBytes(frame, chunkBytes)] : null;
  } catch (error) {
    if ((error as { code?: unknown }).code === "ERR_BUFFER_TOO_LARGE") return null;
    throw error;
  }
}

/** Decompresses exactly one frame to exactly `length` bytes, or says what is wrong. Output never exceeds `length`. */
export function unzstdExactly(stored: Uint8Array, length: number): Uint8Array<ArrayBuffer> | { reason: string } {
  let result: { buffer: Buffer; engine: { bytesWritten: number } };
  const chunkSize = Math.max(64, length);
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
