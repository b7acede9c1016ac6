import { Readable } from "node:stream";
import { createInflate, createZstdDecompress } from "node:zlib";
import { bunzip2, CodecDataError } from "../codec/bzip2.ts";
import { type Compression, codecOf } from "../codec/compression.ts";
import { unreachable } from "../run/unreachable.ts";
import { asDamage, type BackupReference, damaged, keyOf } from "./backup-reference.ts";

const chunkBytes = 1024 * 1024;

/**
 * Streams the decoded bytes of an object in constant memory. The reader limits their number. Throws DamagedObjectError on first sight of
 * damage, also for data after the end of the compressed stream.
 */
export async function* decodeObject(
  reference: BackupReference,
  object: { name: string; compression: Compression },
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const { name } = object;
  const stored = reference.repository.get(keyOf(reference, name), { signal });
  try {
    const codec = codecOf(object.compression);
    switch (codec) {
      case "none":
        return yield* stored;
      case "bz2":
        return yield* bunzip2(stored);
      case "zlib":
        return yield* pump(reference, name, stored, createInflate({ chunkSize: chunkBytes }));
      case "zstd":
        return yield* pump(reference, name, stored, createZstdDecompress({ chunkSize: chunkBytes }));
      default:
        return unreachable(codec);
    }
  } catch (error) {
    throw codecDamage(reference, name, error);
  }
}

/** The decoded length of an object whose metadata does not state it. More than `lengthMax` is damage. */
export async function measureObject(
  reference: BackupReference,
  object: { name: string; compression: Compression },
  options: { lengthMax: number; signal: AbortSignal },
): Promise<number> {
  const { name } = object;
  let length = 0;
  for await (const chunk of decodeObject(reference, object, options.signal)) {
    length += chunk.length;
    if (length > options.lengthMax) {
      throw damaged(
        reference,
        name,
        `its length is not in the metadata, and more than ${options.lengthMax} bytes decode`,
      );
    }
  }
  if (length === 0) throw damaged(reference, name, "it is empty");
  return length;
}

async function* pump(
  reference: BackupReference,
  name: string,
  stored: AsyncIterable<Uint8Array>,
  decoder: ReturnType<typeof createInflate> | ReturnType<typeof createZstdDecompress>,
): AsyncGenerator<Uint8Array> {
  const input = Readable.from(stored);
  input.on("error", (error) => decoder.destroy(error));
  input.pipe(decoder);
  try {
    yield* decoder as AsyncIterable<Uint8Array>;
    const { sizeBytes } = await reference.repository.stat(keyOf(reference, name));
    // Bytes the decoder has consumed: it stops at the end of the first stream.
    if (decoder.bytesWritten !== sizeBytes) {
      throw damaged(reference, name, "there is data behind the end of the compressed stream");
    }
  } finally {
    input.destroy();
    decoder.destroy();
  }
}

function codecDamage(reference: BackupReference, name: string, error: unknown): unknown {
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  if (error instanceof CodecDataError) return damaged(reference, name, error.message, error);
  if (typeof code === "string" && /^(?:Z_|ZSTD_)/.test(code)) {
    return damaged(reference, name, "the compressed stream cannot be decoded", error);
  }
  return asDamage(reference, name, error);
}
