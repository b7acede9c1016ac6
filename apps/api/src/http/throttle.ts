import type { Config, Principal } from "@tephra/control";
import { RateLimiterMemory, RateLimiterRes } from "rate-limiter-flexible";

/** Seconds after which a request of this project may be repeated; null when it is allowed, in which case it is counted. */
export type Throttle = (principal: Principal, method: string) => Promise<number | null>;

/** Counts per project in this process's memory: the effective limit multiplies with the number of API processes. */
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

/** Shown to a caller over the rate limit; the text of Cinder's own limiter. */
export const throttledText = "This request was rate-limited.";

/** Wrong passwords, counted by who tried them for whom, in this process's memory. */
export interface FailureLimit {
  /** Seconds after which another attempt is allowed; null: now. */
  left: (key: string) => Promise<number | null>;
  count: (key: string) => Promise<void>;
}

/** Enough for programs that share an address, and too few to guess a password. */
const ofPrograms = { failuresMax: 30, seconds: 300 };
/** Of one person at a form. */
export const ofPeople = { failuresMax: 5, seconds: 60 };

export function openFailureLimit({ failuresMax, seconds } = ofPrograms): FailureLimit {
  const limiter = new RateLimiterMemory({ points: failuresMax, duration: seconds });
  return {
    left: async (key) => {
      const counted = await limiter.get(key);
      if (counted === null || counted.consumedPoints < failuresMax) return null;
      return Math.max(1, Math.ceil(counted.msBeforeNext / 1000));
    },
    count: async (key) => {
      await limiter.penalty(key);
    },
  };
}
