import { parentPort, workerData } from "node:worker_threads";
import { FilesError } from "../errors.ts";
import { answerFiles, type FilesAnswers, type FilesRequest } from "./answer.ts";
import { Disk, damaged } from "./disk.ts";

/* A thread that answers one request about the files of a disk. It reads nothing itself: its parent does, on demand. */

export interface FilesThreadData {
  request: FilesRequest;
  sizeBytes: number;
}

/** What the thread says: what it needs to read, and at last its answer. */
export type FilesSaid =
  | { read: number; offset: number; length: number }
  | { answer: FilesAnswers[FilesRequest["kind"]] }
  | { refusal: { kind: FilesError["kind"]; message: string } }
  | { failure: string };

/** What it gets for each read. */
export interface FilesRead {
  read: number;
  bytes: Uint8Array;
}

const { request, sizeBytes } = workerData as FilesThreadData;
const waiting = new Map<number, (bytes: Uint8Array) => void>();
const say = (said: FilesSaid): void => parentPort?.postMessage(said);
let reads = 0;

parentPort?.on("message", ({ read, bytes }: FilesRead) => {
  waiting.get(read)?.(bytes);
  waiting.delete(read);
});

const disk = Disk.whole((offset, length) => {
  reads += 1;
  const read = reads;
  return new Promise((settle) => {
    waiting.set(read, settle);
    say({ read, offset, length });
  });
}, sizeBytes);

try {
  say({ answer: await answerFiles(disk, request) });
} catch (error) {
  // What is read beyond the end of a structure was said by the structure.
  const told = error instanceof RangeError ? damaged("one of its structures ends too early") : error;
  if (told instanceof FilesError) say({ refusal: { kind: told.kind, message: told.message } });
  else say({ failure: error instanceof Error ? (error.stack ?? error.message) : String(error) });
}
parentPort?.close();
