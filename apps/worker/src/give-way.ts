import { setTimeout as sleep } from "node:timers/promises";

/** What goes on beside tasks of high priority: this part of the bytes that those take. */
const share = 0.05;
/** While those take none, such as when they wait for a store, something goes on this often all the same. */
const idleMs = 1_000;
const lookMs = 50;

/**
 * Tasks of high priority have slots of their own, beside those of the others, and the same processor, disks and memory. While any of them is
 * at work in a process, the others there begin little: they wait before they claim memory for their next window. What they have begun goes
 * on, and they never stand still.
 */
export class GiveWay {
  #high = 0;
  /** Bytes that others may begin. */
  #credit = 0;
  #begunAt = 0;
  readonly #idleMs: number;

  constructor(options: { idleMs?: number } = {}) {
    this.#idleMs = options.idleMs ?? idleMs;
  }

  /** A task of high priority begins; the returned function says that it has ended. */
  enter(): () => void {
    if (this.#high === 0) {
      this.#credit = 0;
      this.#begunAt = performance.now();
    }
    this.#high += 1;
    return () => {
      this.#high -= 1;
    };
  }

  /** A task of high priority begins so many bytes. */
  begun(bytes: number): void {
    this.#credit += bytes * share;
  }

  /** Resolves when another task may begin so many bytes; null: at once. `onWait`: called now and then. @throws the signal's reason */
  pass(bytes: number, waiter: { signal: AbortSignal; onWait: () => void }): Promise<void> | null {
    return this.#high === 0 ? null : this.#wait(bytes, waiter);
  }

  async #wait(bytes: number, { signal, onWait }: { signal: AbortSignal; onWait: () => void }): Promise<void> {
    while (this.#high > 0 && this.#credit < bytes && performance.now() < this.#begunAt + this.#idleMs) {
      await sleep(lookMs, undefined, { signal }).catch(() => signal.throwIfAborted());
      onWait();
    }
    signal.throwIfAborted();
    this.#credit = Math.max(0, this.#credit - bytes);
    this.#begunAt = performance.now();
  }
}
