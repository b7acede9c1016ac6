import { Worker } from "node:worker_threads";
import { FilesError } from "../errors.ts";
import type { VolumeSource } from "../volume/volume.ts";
import type { FileMap, FilesAnswers, FilesRequest } from "./answer.ts";
import type { FilesRead, FilesSaid, FilesThreadData } from "./files-thread.ts";

/** What a disk is read by. */
export type DiskBytes = Pick<VolumeSource, "sizeBytes" | "read">;

export interface FileReadersOptions {
  /** How many requests are worked on at once; others wait. */
  threadsMax?: number;
  /** After this time a request is ended. */
  timeMs?: number;
}

/** Of a thread. What it keeps of the disk comes on top: 8 MiB. */
const heapMiB = 64;

/**
 * Tells what files are on disks, and where, without the kernel: ext2 to ext4, xfs and FAT, in partitions by GPT or MBR, or on the whole disk.
 * What is on a disk is anybody's: it is examined in a thread of its own for each request, with little memory and for a limited time, which
 * reads the disk through its parent alone.
 */
export class FileReaders {
  readonly #threadsMax: number;
  readonly #timeMs: number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  constructor({ threadsMax = 4, timeMs = 60_000 }: FileReadersOptions = {}) {
    this.#threadsMax = threadsMax;
    this.#timeMs = timeMs;
  }

  /** @throws FilesError; whatever the disk cannot read */
  async ask<Kind extends FilesRequest["kind"]>(
    disk: DiskBytes,
    request: Extract<FilesRequest, { kind: Kind }>,
  ): Promise<FilesAnswers[Kind]> {
    if (this.#running >= this.#threadsMax) await new Promise<void>((go) => this.#waiting.push(go));
    else this.#running += 1;
    try {
      return (await runThread(disk, request, this.#timeMs)) as FilesAnswers[Kind];
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#running -= 1;
      else next();
    }
  }

  /** A file, to be read from its beginning on. @throws as `ask` */
  async open(disk: DiskBytes, file: { path: string; partition: number | null }): Promise<FileContent> {
    const mapFrom = (from: number): Promise<FileMap> => this.ask(disk, { kind: "extents", ...file, from });
    return new FileContent(disk, await mapFrom(0), mapFrom);
  }
}

async function runThread(disk: DiskBytes, request: FilesRequest, timeMs: number): Promise<unknown> {
  const entry = new URL(import.meta.url.endsWith(".ts") ? "./files-thread.ts" : "./files-thread.js", import.meta.url);
  const data: FilesThreadData = { request, sizeBytes: disk.sizeBytes };
  const thread = new Worker(entry, {
    workerData: data,
    resourceLimits: { maxOldGenerationSizeMb: heapMiB, maxYoungGenerationSizeMb: 8, stackSizeMb: 2 },
  });
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  const tooMuch = (why: string): void =>
    reject(new FilesError("damaged", `The file system is damaged, or too large to be read: ${why}.`));
  const timer = setTimeout(() => tooMuch(`it took more than ${timeMs / 1000} s`), timeMs);
  const read = async ({ read: number, offset, length }: Extract<FilesSaid, { read: number }>): Promise<void> => {
    const bytes = new Uint8Array(length);
    await disk.read(bytes, offset);
    const answer: FilesRead = { read: number, bytes };
    thread.postMessage(answer, [bytes.buffer]);
  };
  thread.on("message", (said: FilesSaid) => {
    if ("read" in said) read(said).catch(reject);
    else if ("answer" in said) resolve(said.answer);
    else if ("refusal" in said) reject(new FilesError(said.refusal.kind, said.refusal.message));
    else reject(new Error(`A thread that reads files failed: ${said.failure}`));
  });
  thread.on("error", (error: Error & { code?: string }) => {
    if (error.code === "ERR_WORKER_OUT_OF_MEMORY") tooMuch("it took too much memory");
    else reject(error);
  });
  thread.on("exit", () => reject(new Error("A thread that reads files has ended.")));
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    await thread.terminate();
  }
}

/** The bytes of a file, in ascending order. */
export class FileContent {
  readonly sizeBytes: number;
  readonly #disk: DiskBytes;
  readonly #mapFrom: (from: number) => Promise<FileMap>;
  #map: FileMap;

  constructor(disk: DiskBytes, map: FileMap, mapFrom: (from: number) => Promise<FileMap>) {
    this.#disk = disk;
    this.#map = map;
    this.#mapFrom = mapFrom;
    this.sizeBytes = map.sizeBytes;
  }

  /** Fills `into`, of which nothing may be before what was read last. */
  async read(into: Uint8Array, offset: number): Promise<void> {
    into.fill(0);
    const end = Math.min(offset + into.length, this.sizeBytes);
    for (let at = offset; at < end; ) {
      if (at >= this.#map.end) this.#map = await this.#mapFrom(at);
      const until = Math.min(end, this.#map.end);
      await this.#copy(into.subarray(at - offset, until - offset), at);
      at = until;
    }
  }

  async #copy(into: Uint8Array, offset: number): Promise<void> {
    for (const { at, length, from } of this.#map.extents) {
      const [start, end] = [Math.max(at, offset), Math.min(at + length, offset + into.length)];
      if (start >= end) continue;
      const part = into.subarray(start - offset, end - offset);
      if (typeof from === "number") await this.#disk.read(part, from + start - at);
      else part.set(from.subarray(start - at, end - at));
    }
  }
}
