import type { BackupExport, Extent, VolumeSource, VolumeTarget } from "@tephra/engine";

/** Bytes moved at a time. */
export const pieceBytes = 1024 * 1024;

/** A part of an image, as its client is told of it. */
export interface ImageExtent {
  start: number;
  length: number;
  zero: boolean;
  hole: boolean;
}

/** A part of a backup's disk, as its client is told what has changed since an earlier one. */
export interface DirtyExtent {
  start: number;
  length: number;
  dirty: boolean;
  zero: boolean;
}

/** What a ticket gives a right to: bytes that are read and, in an upload, written. */
export class Image implements AsyncDisposable {
  readonly #source: VolumeSource;
  readonly #target: VolumeTarget | null;
  /** Of what is made while it is read: where its parts are. Null for bytes that are stored as they are read. */
  readonly layout: string | null;

  readonly #changes: Pick<BackupExport, "changedParts"> | null;

  /** Takes ownership of both. `target`: null for a download. `changes`: the source, where it tells what has changed. */
  constructor(
    source: VolumeSource,
    target: VolumeTarget | null,
    {
      layout = null,
      changes = null,
    }: { layout?: string | null; changes?: Pick<BackupExport, "changedParts"> | null } = {},
  ) {
    this.#source = source;
    this.#target = target;
    this.layout = layout;
    this.#changes = changes;
  }

  get sizeBytes(): number {
    return this.#target?.sizeBytes ?? this.#source.sizeBytes;
  }

  get isWritable(): boolean {
    return this.#target !== null;
  }

  get tellsChanges(): boolean {
    return this.#changes !== null;
  }

  /** The whole image, in order, without gaps; nothing where it does not tell what has changed. */
  async *dirtyExtents(): AsyncGenerator<DirtyExtent> {
    const parts = this.#changes?.changedParts({ offset: 0, length: this.sizeBytes }) ?? [];
    for await (const { offset: start, length, dirty, zero } of parts) yield { start, length, dirty, zero };
  }

  read(into: Uint8Array, offset: number): Promise<void> {
    return this.#source.read(into, offset);
  }

  /** The whole image, in order, without gaps. */
  async *extents(): AsyncGenerator<ImageExtent> {
    const { sizeBytes } = this;
    let last: ImageExtent | null = null;
    let at = 0;
    const part = (start: number, end: number, zero: boolean): ImageExtent => ({
      start,
      length: end - start,
      zero,
      hole: false,
    });
    for await (const { offset, length } of this.#source.dataExtents({ offset: 0, length: sizeBytes })) {
      if (last !== null && last.start + last.length === offset) {
        last.length += length;
      } else {
        if (last !== null) yield last;
        if (offset > at) yield part(at, offset, true);
        last = part(offset, offset + length, false);
      }
      at = offset + length;
    }
    if (last !== null) yield last;
    if (at < sizeBytes) yield part(at, sizeBytes, true);
  }

  /** Writes at most `pieceBytes`. */
  async write(data: Uint8Array, offset: number): Promise<void> {
    await this.#target?.write(data, offset);
  }

  /** What reads as zeros already is left alone. `mayGoOn` is called before each write. */
  async zero(range: Extent, mayGoOn: () => void): Promise<void> {
    if (this.#target?.zero) {
      mayGoOn();
      return this.#target.zero(range);
    }
    const zeros = new Uint8Array(Math.min(range.length, pieceBytes));
    for await (const { offset, length } of this.#source.dataExtents(range)) {
      for (let at = offset; at < offset + length; at += zeros.length) {
        mayGoOn();
        await this.write(zeros.subarray(0, offset + length - at), at);
      }
    }
  }

  async flush(): Promise<void> {
    await this.#target?.flush();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await using stack = new AsyncDisposableStack();
    stack.use(this.#source);
    stack.use(this.#target);
  }
}
