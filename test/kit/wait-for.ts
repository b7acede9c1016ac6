import { inspect } from "node:util";
import { poll } from "../../scripts/poll.ts";

/**
 * How many times longer than usual whatever has a limit may take: on a busy machine (`TEPHRA_TEST_PATIENCE`; default 1). The limits are
 * there against what never ends, and tell nothing of speed.
 */
export const patience = Number(process.env["TEPHRA_TEST_PATIENCE"] ?? 1);

/** No wait is given up earlier: a program that is held up for a while is no failure. */
const leastMs = 60_000;

/** T if it is truthy. */
export type Truthy<T> = Exclude<T, false | null | undefined | 0 | "">;

/** Thrown by a condition that can no longer become true: waiting ends at once. */
export class HopelessError extends Error {}

/**
 * Calls `fn` repeatedly until its result is truthy, and returns that.
 *
 * @throws after a minute, or `timeoutMs` if that is longer (times `patience`), or at once when `fn` throws `HopelessError`, with `what`, the last result or error, and `context()`
 */
export async function waitFor<T>(
  fn: () => Promise<T> | T,
  { what, timeoutMs: ownMs = leastMs, everyMs = 50, context }: WaitOptions,
): Promise<Truthy<T>> {
  const timeoutMs = Math.max(ownMs, leastMs) * patience;
  let last = "nothing yet";
  const ask = async (): Promise<Truthy<T> | undefined> => {
    try {
      const answer = await fn();
      last = inspect(answer, { depth: 6, breakLength: 120 });
      return answer ? (answer as Truthy<T>) : undefined;
    } catch (error) {
      last = inspect(error);
      if (error instanceof HopelessError) throw error;
      return undefined;
    }
  };
  try {
    return await poll(ask, { what, timeoutMs, everyMs });
  } catch (error) {
    const more = context === undefined ? "" : `\n${context()}`;
    const when = error instanceof HopelessError ? "no more to be expected" : `not within ${timeoutMs / 1000} s`;
    throw new Error(`${when}: ${what}\nlast answer: ${last}${more}`);
  }
}

export interface WaitOptions {
  /** A description of the condition, for the error message. */
  what: string;
  timeoutMs?: number;
  everyMs?: number;
  /** Called only on failure. */
  context?: () => string;
}
