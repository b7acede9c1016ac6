import { setTimeout as delay } from "node:timers/promises";

/**
 * Polls until the answer is neither undefined nor false.
 *
 * @param ask may throw: that counts as "not yet", and the last error becomes the cause of the failure
 * @throws after `timeoutMs`, naming `what`; the signal's reason when it aborts
 */
export async function poll<T>(
  ask: () => Promise<T | undefined | false> | T | undefined | false,
  {
    what,
    timeoutMs,
    everyMs = 50,
    signal,
  }: { what: string; timeoutMs: number; everyMs?: number; signal?: AbortSignal },
): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  let cause: unknown;
  for (;;) {
    signal?.throwIfAborted();
    try {
      const answer = await ask();
      if (answer !== undefined && answer !== false) return answer;
    } catch (error) {
      cause = error;
    }
    if (performance.now() > deadline) throw new Error(`${what}: not within ${timeoutMs / 1000} s`, { cause });
    await delay(everyMs, undefined, signal === undefined ? {} : { signal });
  }
}
