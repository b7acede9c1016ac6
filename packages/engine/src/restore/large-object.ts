import { createHash } from "node:crypto";
import { asDamage, type BackupReference, confirmed, damaged } from "../chain/backup-reference.ts";
import { decodeObject } from "../chain/decode-object.ts";
import type { MappedObject } from "../chain/merge-layers.ts";
import { dataName } from "../format/layout.ts";
import { claimMemory } from "../run/memory-budget.ts";
import { blockBytesOf, expectedHashes, passOrDamage, type RestoreJob, writeRuns } from "./job.ts";

/** Decoded bytes in memory at a time. */
const pieceBytesAim = 8 * 1024 * 1024;
/** MD5 is computed in steps of this size, with other work of the thread running in between. */
const hashStepBytes = 256 * 1024;

/**
 * Restores an object that is too large for memory (Cinder's posix driver writes 1.86 GiB by default): decodes, checks and writes it piece
 * by piece. Each block is checked before it is written; length and MD5 are known only at the end, and when they are wrong the object is
 * read and written a second time before it counts as damaged.
 */
export async function restoreLargeObject(job: RestoreJob, object: MappedObject, signal: AbortSignal): Promise<void> {
  const release = await claimMemory(
    job.engine.memory,
    { bytes: pieceBytesAim * 3, of: object.entry.length },
    { ...job.ctx, signal },
  );
  try {
    await confirmed(() => restoreOnce(job, object, signal));
  } finally {
    release();
  }
}

async function restoreOnce(job: RestoreJob, object: MappedObject, signal: AbortSignal): Promise<void> {
  const { entry } = object;
  const reference = job.references[object.layer] as BackupReference;
  const name = dataName(reference.prefix, entry.number);
  const md5 = createHash("md5");
  const blockBytes = blockBytesOf(job);
  const pieceBytes = Math.max(1, Math.floor(pieceBytesAim / blockBytes)) * blockBytes;
  let done = 0;
  try {
    const decoded = decodeObject(reference, { name, compression: entry.compression }, signal);
    for await (const piece of regroup(decoded, pieceBytes)) {
      // The piece is transferred to a thread, which detaches its buffer.
      const offset = done;
      done += piece.length;
      if (done > entry.length) throw damaged(reference, name, `more than ${entry.length} bytes are stored`);
      for (let step = 0; step < piece.length; step += hashStepBytes) {
        md5.update(piece.subarray(step, step + hashStepBytes));
      }
      await restorePiece(job, object, { offset, data: piece }, signal);
    }
  } catch (error) {
    throw asDamage(reference, name, error);
  }
  if (done !== entry.length) throw damaged(reference, name, `${done} bytes are stored instead of ${entry.length}`);
  if (entry.md5 !== null && md5.digest("hex") !== entry.md5) throw damaged(reference, name, "the MD5 does not match");
}

/** Checks and writes the parts of one piece that the restore map takes from this object. */
async function restorePiece(
  job: RestoreJob,
  object: MappedObject,
  piece: { offset: number; data: Uint8Array<ArrayBuffer> },
  signal: AbortSignal,
): Promise<void> {
  const start = object.entry.offset + piece.offset;
  const end = start + piece.data.length;
  const segments = object.segments
    .map(([from, to]): [number, number] => [Math.max(from, start), Math.min(to, end)])
    .filter(([from, to]) => to > from);
  if (segments.length === 0) return;
  const expected = await expectedHashes(job.hashes, segments);
  const request = {
    kind: "checkBlocks" as const,
    data: piece.data,
    blockBytes: blockBytesOf(job),
    segments: Float64Array.from(segments.flatMap(([from, to]) => [from - start, to - start])),
    expected,
  };
  const moved = expected === null ? [] : [expected.buffer];
  const result = await job.engine.pool.run(request, [piece.data.buffer, ...moved], signal);
  const { data, dataRuns } = passOrDamage(job, object, shifted(result, piece.offset));
  await writeRuns(job, start, data, job.skipZeros ? dataRuns : request.segments, signal);
  data.buffer.transfer(0);
}

/** Converts a mismatch's offset in the piece to one in the object. */
function shifted<Result extends { outcome: string }>(result: Result, by: number): Result {
  return "at" in result && typeof result.at === "number" ? { ...result, at: result.at + by } : result;
}

/** The same bytes in pieces of exactly `pieceBytes`; the last one may be shorter. Each piece owns its buffer. */
async function* regroup(
  chunks: AsyncIterable<Uint8Array>,
  pieceBytes: number,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  let piece = new Uint8Array(pieceBytes);
  let filled = 0;
  for await (const chunk of chunks) {
    for (let start = 0; start < chunk.length; ) {
      const some = chunk.subarray(start, start + pieceBytes - filled);
      piece.set(some, filled);
      filled += some.length;
      start += some.length;
      if (filled < pieceBytes) continue;
      yield piece;
      piece = new Uint8Array(pieceBytes);
      filled = 0;
    }
  }
  if (filled > 0) yield piece.slice(0, filled);
}
