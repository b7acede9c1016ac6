import type { RunContext } from "./run-context.ts";

interface Waiter {
  bytes: number;
  start: () => void;
}

/**
 * Shares a number of bytes among all concurrent calls, first come, first served. A request larger than the whole budget waits until
 * nothing else is held and then runs, so that no object size can block a backup forever.
 */
export class MemoryBudget {
  readonly #totalBytes: number;
  #freeBytes: number;
  readonly #waiters: Waiter[] = [];

  constructor(totalBytes: number) {
    this.#totalBytes = totalBytes;
    this.#freeBytes = totalBytes;
  }

  /** Waits for `bytes`; the returned function releases them and may be called once. Throws the signal's reason on abort. */
  async claim(bytes: number, signal: AbortSignal): Promise<() => void> {
    signal.throwIfAborted();
    const share = Math.min(bytes, this.#totalBytes);
    if (this.#waiters.length > 0 || share > this.#freeBytes) await this.#wait(share, signal);
    else this.#freeBytes -= share;
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      this.#freeBytes += share;
      this.#startWaiters();
    };
  }

  #wait(bytes: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiter: Waiter = {
        bytes,
        start: () => {
          signal.removeEventListener("abort", leave);
          resolve();
        },
      };
      const leave = (): void => {
        this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
        reject(signal.reason);
        this.#startWaiters();
      };
      signal.addEventListener("abort", leave, { once: true });
      this.#waiters.push(waiter);
    });
  }

  #startWaiters(): void {
    for (let next = this.#waiters[0]; next !== undefined && next.bytes <= this.#freeBytes; next = this.#waiters[0]) {
      this.#waiters.shift();
      this.#freeBytes -= next.bytes;
      next.start();
    }
  }
}

/** Claims memory for so many bytes of a volume, once the call may begin with them. The returned function releases it. */
export async function claimMemory(
  memory: MemoryBudget,
  { bytes, of }: { bytes: number; of: number },
  { admit, signal }: Pick<RunContext, "admit" | "signal">,
): Promise<() => void> {
  await admit?.(of);
  return memory.claim(bytes, signal);
}
