import type { Extent } from "../format/extents.ts";
import type { CpuPool } from "./cpu-pool.ts";
import type { CpuResult } from "./cpu-tasks.ts";
import { cutPiece, type HashLanesRequest, type HashLanesResult, laneSpans } from "./hash-lanes.ts";
import { sliceBytesOf } from "./lane-sizes.ts";
import type { UnreadPlace } from "./read-fully.ts";
import type { ThreadPlace } from "./thread-place.ts";

export interface LaneMessage extends Extent {
  /** Pairs of start and end within the message, ascending: the gaps between them are zero and are not read. */
  data: Float64Array;
}

/** The next slice of one message. */
export interface LaneSlice {
  /** Lane index, in message order. */
  index: number;
  /** Offset within the message. */
  offset: number;
  /** Reused once the consumer has settled. */
  bytes: Uint8Array<ArrayBuffer>;
  /** 32 bytes for every block. */
  hashes: Uint8Array;
  /** 1 for every block that is all zero. */
  zero: Uint8Array;
  /** Hex MD5 of the whole message with its last slice, else null. */
  md5: string | null;
}

/**
 * Reads and hashes several messages in lockstep, slice by slice, in threads, while the previous slices are being consumed. Returns the
 * place that could not be read, or null. `from` must stay open until then.
 */
export async function pumpLanes(
  pool: CpuPool,
  input: { from: ThreadPlace; messages: readonly LaneMessage[]; blockBytes: number },
  consume: (slices: LaneSlice[]) => Promise<unknown>,
  signal: AbortSignal,
): Promise<UnreadPlace | null> {
  const { from, messages, blockBytes } = input;
  const longest = Math.max(...messages.map(({ length }) => length));
  const sliceBytes = Math.min(sliceBytesOf(blockBytes), Math.ceil(longest / 64) * 64);
  // Double buffering: the buffer of the previous slices is reused when they have been consumed.
  const bufferBytes = (messages.length + 1) * sliceBytes;
  const free = [new ArrayBuffer(bufferBytes)];
  if (longest > sliceBytes) free.push(new ArrayBuffer(bufferBytes));
  let states: Uint8Array<ArrayBuffer> | null = null;
  let consumed: Promise<ArrayBuffer> | null = null;
  for (let at = 0; at < longest; at += sliceBytes) {
    const buffer = free.pop() as ArrayBuffer;
    const pieces = messages.map(({ offset, length, data }) => cutPiece({ offset, length, data }, at, sliceBytes));
    const request: HashLanesRequest = {
      kind: "hashLanes",
      from,
      buffer,
      strideBytes: sliceBytes,
      blockBytes,
      pieces,
      states,
    };
    const moved: ArrayBuffer[] = states === null ? [buffer] : [buffer, states.buffer];
    const result: CpuResult<HashLanesRequest> = await pool.run(request, moved, signal);
    if ("unread" in result) {
      await consumed;
      return result.unread;
    }
    states = result.states;
    const before = consumed;
    consumed = consume(slicesOf(result, request, at)).then(() => result.buffer);
    consumed.catch(() => {});
    if (before !== null) free.push(await before);
  }
  await consumed;
  return null;
}

function slicesOf(result: HashLanesResult, request: HashLanesRequest, at: number): LaneSlice[] {
  const slices: LaneSlice[] = [];
  const places = laneSpans(request.pieces, request.strideBytes);
  let block = 0;
  for (const [index, { offset, length }] of places.entries()) {
    if (length === 0) continue;
    const end = block + Math.ceil(length / request.blockBytes);
    slices.push({
      index,
      offset: at,
      bytes: new Uint8Array(result.buffer, offset, length),
      hashes: result.hashes.subarray(block * 32, end * 32),
      zero: result.zero.subarray(block, end),
      md5: result.md5[index] ?? null,
    });
    block = end;
  }
  return slices;
}
