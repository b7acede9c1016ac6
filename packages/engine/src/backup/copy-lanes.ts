import { ThreadFailedError } from "../errors.ts";
import type { Extent } from "../format/extents.ts";
import { nbdError } from "../threads/direct-access.ts";
import type { EngineContext } from "../threads/engine-context.ts";
import { type LaneSlice, pumpLanes } from "../threads/pump-lanes.ts";
import { pairedBytes, type UnreadPlace } from "../threads/read-fully.ts";
import type { ThreadPlace } from "../threads/thread-place.ts";
import type { VolumeSource } from "../volume/volume.ts";

export interface CopiedLane {
  /** 32 bytes for every block. */
  hashes: Uint8Array<ArrayBuffer>;
  md5: string;
  /** False when the window was all zeros and nothing was put. */
  put: boolean;
}

export interface LanesInput {
  source: VolumeSource;
  /** Where threads read it. */
  from: ThreadPlace;
  /** Each with its data extents, see LaneMessage. */
  windows: readonly (Extent & { data: Float64Array })[];
  blockBytes: number;
  /** Whether all-zero windows are left to the caller. */
  leaveZeros: boolean;
  /** Stores one window. Must have finished with a chunk before it asks for the next one: the chunk's memory is reused. */
  put: (index: number, body: AsyncIterable<Uint8Array>, signal: AbortSignal) => Promise<void>;
  /** See RunContext. */
  pace?: (bytes: number) => Promise<void> | null;
}

/**
 * Copies several uncompressed windows in lockstep, slice by slice: a thread reads and hashes the next slices of all of them while the
 * previous ones are being stored. No whole window is ever in memory. When it settles, nothing is left running.
 */
export async function copyLanes(engine: EngineContext, input: LanesInput, outer: AbortSignal): Promise<CopiedLane[]> {
  const stop = new AbortController();
  const signal = AbortSignal.any([outer, stop.signal]);
  const lanes = input.windows.map((window, index) => new Lane(input, window, index, { signal, stop }));
  try {
    const { source, from, windows: messages, blockBytes, pace } = input;
    const handOut = async (slices: LaneSlice[]): Promise<unknown> => {
      // The next slices are read when these are handed out.
      await pace?.(slices.reduce((sum, { index, bytes }) => sum + bytes.length * dataShare(input.windows[index]), 0));
      return Promise.all(slices.map((slice) => (lanes[slice.index] as Lane).take(slice)));
    };
    const unread = await pumpLanes(engine.pool, { from, messages, blockBytes }, handOut, signal);
    if (unread !== null) throw await readFailure(source, unread);
    await Promise.all(lanes.map((lane) => lane.finish()));
    return lanes.map((lane) => lane.copied);
  } catch (error) {
    stop.abort(error);
    // The first failure caused the others.
    throw outer.aborted ? outer.reason : stop.signal.reason;
  } finally {
    stop.abort(new Error("The windows are no longer wanted."));
    await Promise.allSettled(lanes.map((lane) => lane.settled));
  }
}

/** What part of a window is data. */
function dataShare(window: (Extent & { data: Float64Array }) | undefined): number {
  return window === undefined ? 0 : pairedBytes(window.data) / window.length;
}

/** Finds out why a thread could not read: a server's failure is known; a file is read again where errors are classified. */
export async function readFailure(source: VolumeSource, place: UnreadPlace): Promise<Error> {
  if (place.failure !== undefined && source.nbdExport !== undefined) return nbdError(source.nbdExport, place.failure);
  await source.read(new Uint8Array(place.length), place.offset);
  return new ThreadFailedError(`Reading ${place.length} bytes at ${place.offset} of the source failed once.`);
}

const zeros = new Uint8Array(64 * 1024);

interface Slice {
  bytes: Uint8Array;
  done: () => void;
}

/** One window in flight. Its put starts with the first slice that is not all zeros. */
class Lane {
  readonly window: Extent;
  /** Settles when no work on this window is left running. */
  settled: Promise<unknown> = Promise.resolve();
  readonly #input: LanesInput;
  readonly #index: number;
  readonly #run: { signal: AbortSignal; stop: AbortController };
  readonly #hashes: Uint8Array<ArrayBuffer>;
  readonly #waiting: Slice[] = [];
  #wake: () => void = () => {};
  #blocks = 0;
  #leadingZeros = 0;
  #md5 = "";
  #started = false;
  #ended = false;
  #putDone = false;

  constructor(input: LanesInput, window: Extent, index: number, run: { signal: AbortSignal; stop: AbortController }) {
    this.window = window;
    this.#input = input;
    this.#index = index;
    this.#run = run;
    this.#hashes = new Uint8Array(Math.ceil(window.length / input.blockBytes) * 32);
    run.signal.addEventListener("abort", () => this.#wake(), { once: true });
  }

  get copied(): CopiedLane {
    return { hashes: this.#hashes, md5: this.#md5, put: this.#started };
  }

  /** Resolves when the slice's memory can be reused; rejects when the copy is stopped. */
  take(slice: LaneSlice): Promise<void> {
    this.#hashes.set(slice.hashes, this.#blocks * 32);
    this.#blocks += slice.hashes.length / 32;
    if (slice.md5 !== null) this.#md5 = slice.md5;
    if (!this.#started && this.#input.leaveZeros && slice.zero.every((flag) => flag === 1)) {
      this.#leadingZeros += slice.bytes.length;
      return Promise.resolve();
    }
    if (!this.#started) this.#start();
    if (this.#putDone) return Promise.resolve();
    return new Promise((done, stopped) => {
      const { signal } = this.#run;
      const onAbort = (): void => stopped(signal.reason);
      signal.addEventListener("abort", onAbort, { once: true });
      const release = (): void => {
        signal.removeEventListener("abort", onAbort);
        done();
      };
      this.#waiting.push({ bytes: slice.bytes, done: release });
      this.#wake();
    });
  }

  /** After the last slice; resolves when the object is stored. */
  async finish(): Promise<void> {
    this.#ended = true;
    this.#wake();
    await this.settled;
  }

  #start(): void {
    this.#started = true;
    const put = this.#input.put(this.#index, this.#body(), this.#run.signal).finally(() => {
      this.#putDone = true;
      for (const { done } of this.#waiting.splice(0)) done();
    });
    put.catch((error: unknown) => this.#run.stop.abort(error));
    this.settled = put;
  }

  async *#body(): AsyncGenerator<Uint8Array> {
    for (let left = this.#leadingZeros; left > 0; left -= zeros.length) {
      yield left < zeros.length ? zeros.subarray(0, left) : zeros;
    }
    for (;;) {
      this.#run.signal.throwIfAborted();
      const slice = this.#waiting[0];
      if (slice === undefined) {
        if (this.#ended) return;
        await new Promise<void>((resume) => {
          this.#wake = resume;
        });
        continue;
      }
      yield slice.bytes;
      this.#waiting.shift();
      slice.done();
    }
  }
}
