import { Cron } from "croner";
import type { Schedule } from "./rules.ts";

/** When something is due: a cron expression of five fields, read in a time zone. */
export type Times = Pick<Schedule, "cron" | "timezone">;

const open = ({ cron, timezone }: Times): Cron => new Cron(cron, { timezone, paused: true, mode: "5-part" });

/**
 * The first time after `after`, or null when there is none. In the hour that a clock set forward leaves out, a time of day happens once,
 * when the hour is over; in the one that a clock set back repeats, it happens once, the first time. What is due every hour happens every
 * hour that passes.
 *
 * @throws Error for an expression or time zone that cannot be read
 */
export const nextTime = (times: Times, after: Date): Date | null => open(times).nextRun(after);

/** The next `count` times after `after`, fewer when there are no more. @throws as nextTime */
export const nextTimes = (times: Times, after: Date, count: number): Date[] => open(times).nextRuns(count, after);

/** The shortest time between two of the next `count` times, in ms; Infinity when there are fewer than two. @throws as nextTime */
export function shortestGapMs(times: Times, after: Date, count: number): number {
  const all = nextTimes(times, after, count).map((time) => time.getTime());
  return Math.min(...all.slice(1).map((time, at) => time - (all[at] as number)));
}

/** Whether an expression has five fields: others, such as `@daily`, dates and seconds, are read by the library alone. */
export const hasFiveFields = (cron: string): boolean => /^\S+( \S+){4}$/.test(cron) && !cron.startsWith("@");
