import { LRUCache } from "lru-cache";
import { FilesError } from "../errors.ts";

/** Bytes that are read at once, and kept. */
const pieceBytes = 64 * 1024;
const piecesKept = 128;
/** Nothing that describes files is longer: blocks and clusters have at most 64 KiB, directories of xfs, too. */
const readBytesMax = 1024 * 1024;

export type ReadBytes = (offset: number, length: number) => Promise<Uint8Array>;

/** A disk, or a part of one, whose structures are read. Everything in it may be a lie. */
export class Disk {
  readonly sizeBytes: number;
  /** Where it begins on the whole disk. */
  readonly start: number;
  readonly #wholeBytes: number;
  readonly #read: ReadBytes;
  readonly #pieces: LRUCache<number, Promise<Buffer>>;

  private constructor(
    read: ReadBytes,
    pieces: LRUCache<number, Promise<Buffer>>,
    place: { start: number; sizeBytes: number; wholeBytes: number },
  ) {
    this.#read = read;
    this.#pieces = pieces;
    this.start = place.start;
    this.sizeBytes = place.sizeBytes;
    this.#wholeBytes = place.wholeBytes;
  }

  static whole(read: ReadBytes, sizeBytes: number): Disk {
    return new Disk(read, new LRUCache({ max: piecesKept }), { start: 0, sizeBytes, wholeBytes: sizeBytes });
  }

  /** A part of it, cut off where this ends. */
  part(offset: number, length: number): Disk {
    const sizeBytes = Math.max(0, Math.min(length, this.sizeBytes - offset));
    return new Disk(this.#read, this.#pieces, { start: this.start + offset, sizeBytes, wholeBytes: this.#wholeBytes });
  }

  holds(offset: number, length: number): boolean {
    return offset >= 0 && length >= 0 && offset + length <= this.sizeBytes;
  }

  /** @throws FilesError damaged, beyond the end */
  async bytes(offset: number, length: number): Promise<Buffer> {
    if (!this.holds(offset, length) || length > readBytesMax)
      throw damaged(`something is said to be at byte ${offset}`);
    const into = Buffer.alloc(length);
    for (let done = 0; done < length; ) {
      const at = this.start + offset + done;
      const piece = await this.#piece(Math.floor(at / pieceBytes));
      done += piece.copy(into, done, at % pieceBytes);
    }
    return into;
  }

  #piece(number: number): Promise<Buffer> {
    const known = this.#pieces.get(number);
    if (known !== undefined) return known;
    const at = number * pieceBytes;
    const read = this.#read(at, Math.min(pieceBytes, this.#wholeBytes - at)).then((bytes) =>
      Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength),
    );
    this.#pieces.set(number, read);
    return read;
  }
}

export const damaged = (what: string): FilesError =>
  new FilesError("damaged", `The file system is damaged, or is none that can be read: ${what}.`);

/** A number of 64 bits, little or big end first. @throws FilesError damaged for one that no disk reaches */
export const u64le = (bytes: Buffer, at: number): number => within53(bytes.readBigUInt64LE(at));
export const u64be = (bytes: Buffer, at: number): number => within53(bytes.readBigUInt64BE(at));

export function within53(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw damaged(`${value} is too large`);
  return Number(value);
}
