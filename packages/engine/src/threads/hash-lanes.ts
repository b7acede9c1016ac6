import { zeroBlockHashes } from "../format/zero-blocks.ts";
import type { Md5InStep, Span } from "../hashing/hashing.ts";
import type { CpuTools } from "./cpu-tools.ts";
import { clipPairs, readPieces, type SparsePiece, type UnreadResult } from "./read-fully.ts";
import type { ThreadPlace } from "./thread-place.ts";

/** The next piece of one of several messages that are hashed in lockstep. */
export interface LanePiece {
  offset: number;
  length: number;
  /** Pairs of start and end within the piece, ascending: the gaps between them are zero and are not read. */
  data: Float64Array<ArrayBuffer>;
  /** Length of the whole message when this is its last piece, else null. Other pieces are a multiple of 64 bytes long. */
  endsAt: number | null;
}

/**
 * Up to `bytes` of a message from `at` on, none behind its end; or of a piece of one, whose message ends at `endsAt`, if with this piece: by
 * default what is cut is a whole message.
 */
export function cutPiece(
  {
    offset,
    length: whole,
    data,
    endsAt = whole,
  }: { offset: number; length: number; data: Float64Array; endsAt?: number | null },
  at: number,
  bytes: number,
): LanePiece {
  const length = Math.max(0, Math.min(bytes, whole - at));
  const isLast = length > 0 && at + length === whole;
  return { offset: offset + at, length, data: clipPairs(data, at, at + length), endsAt: isLast ? endsAt : null };
}

/** Reads the next piece of several messages and updates their digests with it. */
export interface HashLanesRequest {
  kind: "hashLanes";
  from: ThreadPlace;
  /** Ownership moves to the thread and back. Piece i goes to i × strideBytes; behind the last one are as many zeros, for pieces without data. */
  buffer: ArrayBuffer;
  strideBytes: number;
  blockBytes: number;
  pieces: readonly LanePiece[];
  /** MD5 states of the messages, in the order of the pieces; null at the start. */
  states: Uint8Array<ArrayBuffer> | null;
}

export interface HashLanesResult {
  buffer: ArrayBuffer;
  states: Uint8Array<ArrayBuffer>;
  /** 32 bytes for every block of every piece, in order. */
  hashes: Uint8Array<ArrayBuffer>;
  /** 1 for every block that is all zero. */
  zero: Uint8Array<ArrayBuffer>;
  /** Hex MD5 of the messages that have ended, else null. */
  md5: (string | null)[];
}

export function hashLanes(
  request: HashLanesRequest,
  { hashing, cancelled }: CpuTools,
): HashLanesResult | UnreadResult | undefined {
  const { from, buffer, strideBytes, blockBytes, pieces } = request;
  const md5InStep = hashing.md5InStep as Md5InStep;
  const data = new Uint8Array(buffer);
  const count = pieces.reduce((sum, { length }) => sum + Math.ceil(length / blockBytes), 0);
  const hashes = new Uint8Array(count * 32);
  const zero = new Uint8Array(count);
  const places = laneSpans(pieces, strideBytes);
  const spaces = pieces.map(({ offset, data: pairs }, index): SparsePiece => {
    const place = places[index] as Span;
    return { offset, data: pairs, into: data.subarray(place.offset, place.offset + place.length) };
  });
  // A server is asked for everything at once; a piece of a file is hashed while it is still in the processor's cache.
  const missed = "nbd" in from ? readPieces(from, spaces.filter(hasData)) : null;
  if (missed !== null) return { unread: missed };
  let block = 0;
  for (const space of spaces) {
    if (cancelled()) return undefined;
    const { length } = space.into;
    const end = block + Math.ceil(length / blockBytes);
    if (hasData(space)) {
      const unread = "nbd" in from ? null : readPieces(from, [space]);
      if (unread !== null) return { unread };
      hashing.hashBlocks(space.into, blockBytes, hashes.subarray(block * 32), zero.subarray(block));
    } else {
      hashes.set(zeroBlockHashes(length, blockBytes), block * 32);
      zero.fill(1, block, end);
    }
    block = end;
  }
  const states = request.states ?? md5InStep.start(pieces.length);
  md5InStep.update(states, data, places);
  const md5 = pieces.map(({ endsAt }, index) =>
    endsAt === null ? null : md5InStep.finish(states, index, (spaces[index] as SparsePiece).into, endsAt),
  );
  return { buffer, states, hashes, zero, md5 };
}

const hasData = ({ data }: { data: Float64Array }): boolean => data.length > 0;

/** Where each piece is in the buffer. Pieces without data share the zeros at its end, which stay in the processor's cache. */
export function laneSpans(pieces: readonly LanePiece[], strideBytes: number): Span[] {
  return pieces.map((piece, index) => ({
    offset: (hasData(piece) ? index : pieces.length) * strideBytes,
    length: piece.length,
  }));
}
