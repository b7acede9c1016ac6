/** Reads a stream of chunks in pieces of chosen lengths. */
export class ByteReader {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #rest: Uint8Array = new Uint8Array(0);
  #ended = false;

  constructor(body: Uint8Array | AsyncIterable<Uint8Array>) {
    this.#chunks = body instanceof Uint8Array ? whole(body) : body[Symbol.asyncIterator]();
  }

  /** Up to `length` bytes in newly allocated memory; fewer only at the end of the stream. */
  async take(length: number): Promise<Buffer<ArrayBuffer>> {
    const piece = Buffer.from(new ArrayBuffer(length));
    let filled = 0;
    while (filled < length && !(await this.atEnd())) {
      const some = this.#rest.subarray(0, length - filled);
      piece.set(some, filled);
      filled += some.length;
      this.#rest = this.#rest.subarray(some.length);
    }
    return piece.subarray(0, filled);
  }

  /** Whether the stream is exhausted. */
  async atEnd(): Promise<boolean> {
    while (this.#rest.length === 0 && !this.#ended) {
      const next = await this.#chunks.next();
      if (next.done) this.#ended = true;
      else this.#rest = next.value;
    }
    return this.#rest.length === 0;
  }

  /** Ends the stream; nothing more is read. */
  async close(): Promise<void> {
    this.#ended = true;
    await this.#chunks.return?.();
  }
}

async function* whole(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}
