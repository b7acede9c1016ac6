import type { Config, Principal } from "@tephra/control";
import { RateLimiterMemory, RateLimiterRes } from "rate-limiter-flexible";

/** The whole seconds after which a request of this project may be sent again; null when it may go on, and is counted. */
export type Throttle = (principal: Principal, method: string) => Promise<number | null>;

/** Counts per project, in the memory of this process: several API processes allow as many times as much. */
export function openThrottle({ requests, changes, window_seconds: duration }: Config["rate_limits"]): Throttle {
  const limiterOf = (points: number | null) => (points === null ? null : new RateLimiterMemory({ points, duration }));
  const [all, changing] = [limiterOf(requests), limiterOf(changes)];
  return async ({ projectId }, method) => {
    const isChange = method !== "GET" && method !== "HEAD";
    try {
      if (isChange) await changing?.consume(projectId);
      await all?.consume(projectId);
      return null;
    } catch (refused) {
      if (!(refused instanceof RateLimiterRes)) throw refused;
      return Math.max(1, Math.ceil(refused.msBeforeNext / 1000));
    }
  };
}

/** What a caller is told who asks too often, in the words of Cinder's own limiter. */
export const throttledText = "This request was rate-limited.";
