import type { Extent } from "../format/extents.ts";
import type { CpuResult } from "../threads/cpu-tasks.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import { cutPiece } from "../threads/hash-lanes.ts";
import { sliceBytesOf } from "../threads/lane-sizes.ts";
import { pairedBytes } from "../threads/read-fully.ts";
import type { StoreLanesRequest } from "../threads/store-lanes.ts";
import type { ThreadPlace } from "../threads/thread-place.ts";
import type { VolumeSource } from "../volume/volume.ts";
import { type CopiedLane, readFailure } from "./copy-lanes.ts";

/** Slices of each window per request to a thread: see slicesPerStep in restore/lanes.ts. */
const slicesPerStep = 8;

/** A window, its data extents (see LaneMessage) and the file that a thread writes it to. */
export interface StoredWindow extends Extent {
  data: Float64Array;
  descriptor: number;
}

export interface StoreLanesInput {
  source: VolumeSource;
  /** Where threads read it. */
  from: ThreadPlace;
  windows: readonly StoredWindow[];
  blockBytes: number;
  /** Whether all-zero windows are left to the caller. */
  leaveZeros: boolean;
  /** See RunContext. */
  fence: () => void;
  writableUntil: BigInt64Array<SharedArrayBuffer>;
  pace?: (bytes: number) => Promise<void> | null;
  /** Called with the bytes of the windows that a request has dealt with. */
  onBytes: (bytes: number) => void;
}

/**
 * Has a thread read, hash and write several uncompressed windows in lockstep. `put` of a window says that its file is to be stored. Null when
 * something could not be written or no longer may be: copying the same windows by copyLanes determines why.
 */
export async function storeLanes(
  engine: EngineContext,
  input: StoreLanesInput,
  signal: AbortSignal,
): Promise<CopiedLane[] | null> {
  const { source, from, windows, blockBytes, writableUntil } = input;
  const longest = Math.max(...windows.map(({ length }) => length));
  const strideBytes = sliceBytesOf(blockBytes);
  const stepBytes = slicesPerStep * strideBytes;
  const lanes = windows.map(({ length }): CopiedLane => {
    return { hashes: new Uint8Array(Math.ceil(length / blockBytes) * 32), md5: "", put: !input.leaveZeros };
  });
  let buffer = new ArrayBuffer((windows.length + 1) * strideBytes);
  let states: Uint8Array<ArrayBuffer> | null = null;
  for (let at = 0; at < longest; at += stepBytes) {
    const pieces = windows.map(({ descriptor, offset, length, data }) => {
      return { ...cutPiece({ offset, length, data }, at, stepBytes), descriptor, at };
    });
    await input.pace?.(pieces.reduce((sum, { data }) => sum + pairedBytes(data), 0));
    input.fence();
    const request: StoreLanesRequest = {
      kind: "storeLanes",
      from,
      buffer,
      strideBytes,
      blockBytes,
      pieces,
      states,
      writableUntil,
    };
    const moved: ArrayBuffer[] = states === null ? [buffer] : [buffer, states.buffer];
    const result: CpuResult<StoreLanesRequest> = await engine.pool.run(request, moved, signal);
    if ("unread" in result) throw await readFailure(source, result.unread);
    if ("unwritten" in result) return null;
    ({ buffer, states } = result);
    for (const [index, { hashes, hasData, md5 }] of result.pieces.entries()) {
      if (hashes.length === 0) continue;
      const lane = lanes[index] as CopiedLane;
      lane.hashes.set(hashes, (at / blockBytes) * 32);
      lane.put ||= hasData;
      lane.md5 = md5 ?? lane.md5;
    }
    input.onBytes(pieces.reduce((sum, { length }) => sum + length, 0));
  }
  return lanes;
}
