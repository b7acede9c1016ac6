import { parentPort, workerData } from "node:worker_threads";
import { type HashingChoice, openHashing } from "../hashing/hashing.ts";
import type { CopyWindowResult, CpuRequest } from "./cpu-tasks.ts";
import { runCpuTask } from "./cpu-tasks.ts";
import { countFileCalls } from "./file-calls.ts";

/** What a thread is started with. */
export interface CpuThreadData {
  hashing: HashingChoice;
}

/** The entry of a thread: one request at a time, one answer for each. `cancel[0]` turns 1 when the answer is no longer wanted; see file-calls.ts for the count. */
export interface CpuMessage {
  request: CpuRequest;
  cancel: Int32Array<SharedArrayBuffer>;
  fileCalls: Int32Array<SharedArrayBuffer>;
}

export type CpuAnswer =
  | { outcome: "done"; result: ReturnType<typeof runCpuTask> }
  | { outcome: "failed"; message: string };

const hashing = openHashing((workerData as CpuThreadData).hashing);

parentPort?.on("message", ({ request, cancel, fileCalls }: CpuMessage) => {
  countFileCalls(fileCalls);
  let answer: CpuAnswer;
  try {
    answer = {
      outcome: "done",
      result: runCpuTask(request, { hashing, cancelled: () => Atomics.load(cancel, 0) === 1 }),
    };
  } catch (error) {
    answer = { outcome: "failed", message: error instanceof Error ? error.message : String(error) };
  }
  parentPort?.postMessage(answer, buffersOf(answer));
  freeInput(request);
});

/** The buffers to move, not copy. */
function buffersOf(answer: CpuAnswer): ArrayBuffer[] {
  if (answer.outcome === "failed" || answer.result === undefined) return [];
  const result = answer.result;
  if ("failed" in result) return [result.states.buffer];
  if ("states" in result) return [result.buffer, result.states.buffer, result.hashes.buffer, result.zero.buffer];
  if ("unread" in result || "unwritten" in result) return [];
  if ("hashes" in result) return windowBuffers(result);
  if ("outcome" in result) return result.outcome === "ok" ? [result.data.buffer, result.dataRuns.buffer] : [];
  return result.pieces?.map((piece) => piece.buffer) ?? [];
}

function windowBuffers(result: CopyWindowResult): ArrayBuffer[] {
  const buffers = result.extents.flatMap((extent) => extent.pieces?.map((piece) => piece.buffer) ?? []);
  return [result.hashes.buffer, ...(result.raw === null ? [] : [result.raw]), ...buffers];
}

/** Gives the input's memory back now, not at some later garbage collection. Does nothing to a buffer that has moved on. */
function freeInput(request: CpuRequest): void {
  const buffer =
    request.kind === "copyWindow" && request.window !== null
      ? request.window
      : request.kind === "checkObject"
        ? request.stored.buffer
        : null;
  if (buffer !== null && !buffer.detached) buffer.transfer(0);
}
