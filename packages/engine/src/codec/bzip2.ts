import { openSystemLibrary, type SystemLibrary } from "./system-library.ts";

/**
 * bzip2 by the system library, called without copies. Its state is a struct of 80 bytes on every 64-bit system:
 *
 *     next_in 0 · avail_in 8 · total_in 12 · next_out 24 · avail_out 32 · total_out 36 · state 48 · bzalloc 56 · bzfree 64 · opaque 72
 *
 * The library compares the struct's address with the one passed at initialization, so addresses are passed as numbers.
 */
const structBytes = 80;
const nextIn = 0;
const availIn = 8;
const nextOut = 24;
const availOut = 32;

const BZ_RUN = 0;
const BZ_FINISH = 2;
const BZ_OK = 0;
const BZ_STREAM_END = 4;
/** Input and output per call; bounds how long a call takes. */
const stepBytes = 1024 * 1024;

type Library = SystemLibrary<keyof typeof prototypes>;

const prototypes = {
  compressInit: "int BZ2_bzCompressInit(uint64 strm, int blockSize100k, int verbosity, int workFactor)",
  compress: "int BZ2_bzCompress(uint64 strm, int action)",
  compressEnd: "int BZ2_bzCompressEnd(uint64 strm)",
  decompressInit: "int BZ2_bzDecompressInit(uint64 strm, int verbosity, int small)",
  decompress: "int BZ2_bzDecompress(uint64 strm)",
  decompressEnd: "int BZ2_bzDecompressEnd(uint64 strm)",
};

/** Loaded once per thread, for the first bzip2 object. */
const libraries: Library[] = [];

function library(): Library {
  const [loaded] = libraries;
  if (loaded !== undefined) return loaded;
  const opened = openSystemLibrary("bz2", "libbz2.so.1.0", prototypes);
  libraries.push(opened);
  return opened;
}

/** Throws CodecUnavailableError unless bzip2 works on this machine. */
export function requireBzip2(): void {
  library();
}

/** One open stream of the library. `close` frees its memory. */
class Stream {
  readonly #library = library();
  readonly #mode: "compress" | "decompress";
  readonly #state = new DataView(new ArrayBuffer(structBytes));
  readonly #address: bigint;

  constructor(mode: "compress" | "decompress", level: number) {
    this.#mode = mode;
    this.#address = this.#library.address(new Uint8Array(this.#state.buffer));
    const { compressInit, decompressInit } = this.#library.calls;
    const status = mode === "compress" ? compressInit(this.#address, level, 0, 0) : decompressInit(this.#address, 0, 0);
    if (status !== BZ_OK) throw new Error(`bzip2 cannot start (${status})`);
  }

  /** Consumes `input` and fills `output` as far as one call gets. A negative status means bad data. */
  step(input: Uint8Array, output: Uint8Array, action: number): { status: number; consumed: number; produced: number } {
    this.#point(input, output);
    const { compress, decompress } = this.#library.calls;
    const status = this.#mode === "compress" ? compress(this.#address, action) : decompress(this.#address);
    return this.#outcome(status, input, output);
  }

  /** The same, off this thread. The buffers must not be touched until it resolves. */
  async stepAside(input: Uint8Array, output: Uint8Array): Promise<ReturnType<Stream["step"]>> {
    this.#point(input, output);
    const status = await new Promise<number>((resolve, reject) => {
      this.#library.calls.decompress.async(this.#address, (error: Error | null, value: number) => {
        if (error === null) resolve(value);
        else reject(error);
      });
    });
    return this.#outcome(status, input, output);
  }

  close(): void {
    const { compressEnd, decompressEnd } = this.#library.calls;
    if (this.#mode === "compress") compressEnd(this.#address);
    else decompressEnd(this.#address);
  }

  #point(input: Uint8Array, output: Uint8Array): void {
    this.#state.setBigUint64(nextIn, input.length > 0 ? this.#library.address(input) : 0n, true);
    this.#state.setUint32(availIn, input.length, true);
    this.#state.setBigUint64(nextOut, this.#library.address(output), true);
    this.#state.setUint32(availOut, output.length, true);
  }

  #outcome(status: number, input: Uint8Array, output: Uint8Array): ReturnType<Stream["step"]> {
    return {
      status,
      consumed: input.length - this.#state.getUint32(availIn, true),
      produced: output.length - this.#state.getUint32(availOut, true),
    };
  }
}

/**
 * Compresses `data` to one bzip2 stream in pieces of at most 1 MiB. Returns null when the stream would not be shorter than the data, and
 * undefined as soon as `cancelled` returns true.
 */
export function bzip2Pieces(
  data: Uint8Array,
  level: number,
  cancelled: () => boolean,
): Uint8Array<ArrayBuffer>[] | null | undefined {
  const stream = new Stream("compress", level);
  try {
    const pieces: Uint8Array<ArrayBuffer>[] = [];
    let output = new Uint8Array(stepBytes);
    let filled = 0;
    let total = 0;
    for (let at = 0; ; ) {
      if (cancelled()) return undefined;
      const input = data.subarray(at, at + stepBytes);
      const action = at + input.length >= data.length ? BZ_FINISH : BZ_RUN;
      const { status, consumed, produced } = stream.step(input, output.subarray(filled), action);
      if (status < 0) throw new Error(`bzip2 failed (${status})`);
      at += consumed;
      filled += produced;
      total += produced;
      if (total >= data.length) return null;
      if (status === BZ_STREAM_END) return [...pieces, output.slice(0, filled)];
      if (filled < output.length) continue;
      pieces.push(output);
      output = new Uint8Array(stepBytes);
      filled = 0;
    }
  } finally {
    stream.close();
  }
}

/**
 * Decompresses bzip2 to exactly `length` bytes, or says what is wrong. Like Cinder's decoder it accepts concatenated streams. Output
 * never exceeds `length` by more than a byte.
 */
export function bunzip2Exactly(stored: Uint8Array, length: number): Uint8Array<ArrayBuffer> | { reason: string } {
  const output = new Uint8Array(length);
  const spare = new Uint8Array(1);
  let at = 0;
  let filled = 0;
  while (at < stored.length || at === 0) {
    const stream = new Stream("decompress", 0);
    try {
      for (let status = BZ_OK; status !== BZ_STREAM_END; ) {
        const room = filled < length ? output.subarray(filled, filled + stepBytes) : spare;
        const input = stored.subarray(at, at + stepBytes);
        const step = stream.step(input, room, BZ_RUN);
        status = step.status;
        if (status < 0) return { reason: `the bzip2 stream cannot be decoded to ${length} bytes (${status})` };
        if (room === spare && step.produced > 0) return { reason: `more than ${length} bytes decoded` };
        if (status === BZ_OK && step.consumed === 0 && step.produced === 0) {
          return { reason: "the bzip2 stream ends in the middle" };
        }
        at += step.consumed;
        filled += step.produced;
      }
    } finally {
      stream.close();
    }
  }
  return filled === length ? output : { reason: `${filled} bytes decoded instead of ${length}` };
}

/** Why a stored stream cannot be decoded; reported as damage by callers that know the object's name. */
export class CodecDataError extends Error {}

/** Decodes a bzip2 stream in pieces of at most 1 MiB. Throws CodecDataError. */
export async function* bunzip2(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  let stream: Stream | null = null;
  let started = false;
  try {
    for await (const chunk of chunks) {
      for (let at = 0, more = false; at < chunk.length || more; ) {
        stream ??= new Stream("decompress", 0);
        started = true;
        const output = new Uint8Array(stepBytes);
        const step = await stream.stepAside(chunk.subarray(at, at + stepBytes), output);
        if (step.status < 0) throw new CodecDataError(`the bzip2 stream cannot be decoded (${step.status})`);
        at += step.consumed;
        more = step.produced === output.length && step.status !== BZ_STREAM_END;
        if (step.produced > 0) yield output.subarray(0, step.produced);
        if (step.status !== BZ_STREAM_END) continue;
        stream.close();
        stream = null;
      }
    }
    if (stream !== null || !started) throw new CodecDataError("the bzip2 stream ends in the middle");
  } finally {
    stream?.close();
  }
}
