import { writeSync } from "node:fs";
import { dataRuns } from "../run/data-runs.ts";
import type { CpuTools } from "./cpu-tools.ts";
import { fileCall } from "./file-calls.ts";
import { cutPiece, hashLanes, type LanePiece, laneSpans } from "./hash-lanes.ts";
import type { UnreadResult } from "./read-fully.ts";
import type { ThreadPlace } from "./thread-place.ts";
import type { UnwrittenResult } from "./write-lanes.ts";

/** The next piece of one of several messages, which becomes the same piece of a file. */
export interface StoreLanePiece extends LanePiece {
  /** The file to write to, and where in it the piece begins. */
  descriptor: number;
  at: number;
}

/** Reads the next piece of several messages, updates their digests with it and writes what is not zero to files. */
export interface StoreLanesRequest {
  kind: "storeLanes";
  from: ThreadPlace;
  /** As of HashLanesRequest, and so is `strideBytes`: the pieces may be longer, and are taken slice by slice. */
  buffer: ArrayBuffer;
  strideBytes: number;
  blockBytes: number;
  pieces: readonly StoreLanePiece[];
  states: Uint8Array<ArrayBuffer> | null;
  /** See RunContext. */
  writableUntil: BigInt64Array<SharedArrayBuffer>;
}

export interface StoreLanesResult {
  buffer: ArrayBuffer;
  states: Uint8Array<ArrayBuffer>;
  pieces: {
    /** 32 bytes for every block. */
    hashes: Uint8Array<ArrayBuffer>;
    /** Whether any block is not all zero. */
    hasData: boolean;
    /** Hex MD5 of a message that has ended, else null. */
    md5: string | null;
  }[];
}

export function storeLanes(
  request: StoreLanesRequest,
  tools: CpuTools,
): StoreLanesResult | UnreadResult | UnwrittenResult | undefined {
  const { from, buffer, strideBytes, blockBytes, pieces, writableUntil } = request;
  const results = pieces.map(({ length }): StoreLanesResult["pieces"][number] => {
    return { hashes: new Uint8Array(Math.ceil(length / blockBytes) * 32), hasData: false, md5: null };
  });
  let { states } = request;
  const longest = Math.max(...pieces.map(({ length }) => length));
  for (let start = 0; start < longest; start += strideBytes) {
    const slices = pieces.map((piece) => cutPiece(piece, start, strideBytes));
    const hashed = hashLanes(
      { kind: "hashLanes", from, buffer, strideBytes, blockBytes, pieces: slices, states },
      tools,
    );
    if (hashed === undefined || "unread" in hashed) return hashed;
    states = hashed.states;
    let block = 0;
    for (const [index, { offset, length }] of laneSpans(slices, strideBytes).entries()) {
      if (length === 0) continue;
      const end = block + Math.ceil(length / blockBytes);
      const result = results[index] as StoreLanesResult["pieces"][number];
      result.hashes.set(hashed.hashes.subarray(block * 32, end * 32), (start / blockBytes) * 32);
      result.md5 ??= hashed.md5[index] ?? null;
      const isZero = hashed.zero.subarray(block, end).every((flag) => flag === 1);
      block = end;
      if (isZero) continue;
      result.hasData = true;
      const piece = pieces[index] as StoreLanePiece;
      const to = { descriptor: piece.descriptor, offset: piece.at + start };
      if (!writeData(to, new Uint8Array(buffer, offset, length), writableUntil)) return { unwritten: true };
    }
  }
  return { buffer, states: states as Uint8Array<ArrayBuffer>, pieces: results };
}

/** A slice is smaller than the write limit of one fence check. False when it could not be written or no longer may be. */
function writeData(
  { descriptor, offset }: { descriptor: number; offset: number },
  bytes: Uint8Array,
  writableUntil: BigInt64Array<SharedArrayBuffer>,
): boolean {
  try {
    for (const { start, end } of dataRuns(bytes)) {
      for (let done = start; done < end; ) {
        if (process.hrtime.bigint() >= Atomics.load(writableUntil, 0)) return false;
        const [at, length] = [done, end - done];
        done += fileCall(() => writeSync(descriptor, bytes, at, length, offset + at));
      }
    }
    return true;
  } catch {
    return false;
  }
}
