import { parentPort, workerData } from "node:worker_threads";
import { type HashingChoice, openHashing } from "../hashing/hashing.ts";
import type { CopyWindowResult, CpuRequest } from "./cpu-tasks.ts";
import { runCpuTask } from "./cpu-tasks.ts";
import { countFileCalls } from "./file-calls.ts";
import type { StoreLanesResult } from "./store-lanes.ts";

/** Start-up data of a thread. */
export interface CpuThreadData {
  hashing: HashingChoice;
}

/**
 * A request to a thread, which handles one at a time and sends one response each. `cancel[0]` becomes 1 when the response is no longer
 * wanted; see file-calls.ts for the count.
 */
export interface CpuMessage {
  request: CpuRequest;
  cancel: Int32Array<SharedArrayBuffer>;
  fileCalls: Int32Array<SharedArrayBuffer>;
}

export type CpuAnswer =
  | { outcome: "done"; result: ReturnType<typeof runCpuTask> }
  | { outcome: "failed"; message: string };

const hashing = openHashing((workerData as CpuThreadData).hashing);

/** What scratch memory there has been so far; see CpuTools. At most the slices of all lanes, of a few megabytes. */
let kept = new Uint8Array();

function scratch(bytes: number): Uint8Array<ArrayBuffer> {
  if (kept.length < bytes) kept = new Uint8Array(bytes);
  return kept.subarray(0, bytes);
}

/** The window that was given back last, for as long as windows follow each other: its pages need not be made again. */
let idleWindow: ArrayBuffer | null = null;
const idleMs = 500;
const dropIdle = setTimeout(() => giveBackWindow(null), idleMs);

function windowMemory(bytes: number): ArrayBuffer {
  const window = idleWindow;
  if (window?.byteLength !== bytes) return new ArrayBuffer(bytes);
  idleWindow = null;
  return window;
}

function giveBackWindow(window: ArrayBuffer | null): void {
  idleWindow?.transfer(0);
  idleWindow = window;
  if (window !== null) dropIdle.refresh();
}

parentPort?.on("message", ({ request, cancel, fileCalls }: CpuMessage) => {
  countFileCalls(fileCalls);
  let answer: CpuAnswer;
  try {
    answer = {
      outcome: "done",
      result: runCpuTask(request, {
        hashing,
        cancelled: () => Atomics.load(cancel, 0) === 1,
        scratch,
        windowMemory,
        giveBackWindow,
      }),
    };
  } catch (error) {
    answer = { outcome: "failed", message: error instanceof Error ? error.message : String(error) };
  }
  parentPort?.postMessage(answer, buffersOf(answer));
  freeInput(request);
});

/** The buffers to transfer rather than copy. */
function buffersOf(answer: CpuAnswer): ArrayBuffer[] {
  if (answer.outcome === "failed" || answer.result === undefined) return [];
  const result = answer.result;
  if ("buffer" in result && "pieces" in result) return storedBuffers(result);
  if ("failed" in result) return [result.states.buffer];
  if ("states" in result) return [result.buffer, result.states.buffer, result.hashes.buffer, result.zero.buffer];
  if ("lane" in result) return [];
  if ("unread" in result || "unwritten" in result) return [];
  if ("hashes" in result) return windowBuffers(result);
  if ("outcome" in result) return result.outcome === "ok" ? [result.data.buffer, result.dataRuns.buffer] : [];
  return result.pieces?.map((piece) => piece.buffer) ?? [];
}

function storedBuffers({ buffer, states, pieces }: StoreLanesResult): ArrayBuffer[] {
  return [buffer, states.buffer, ...pieces.map(({ hashes }) => hashes.buffer)];
}

function windowBuffers(result: CopyWindowResult): ArrayBuffer[] {
  const buffers = result.extents.flatMap((extent) => extent.pieces?.map((piece) => piece.buffer) ?? []);
  return [result.hashes.buffer, ...(result.raw === null ? [] : [result.raw]), ...buffers];
}

/** Frees the input's memory now rather than at some later garbage collection. Does nothing to a transferred buffer. */
function freeInput(request: CpuRequest): void {
  const buffer =
    request.kind === "copyWindow" && request.window !== null
      ? request.window
      : request.kind === "checkObject"
        ? request.stored.buffer
        : null;
  if (buffer !== null && !buffer.detached) buffer.transfer(0);
}
