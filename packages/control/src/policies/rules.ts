import { z } from "zod";
import { verifyModes } from "../queue/documents.ts";

/**
 * The parts of a policy as they are stored: written by the verbs, which check what they mean (check.ts), and read from rows. Keys are those
 * of the API.
 */

const count = z.int().min(0);

/**
 * Which backups of a volume are kept. `keep_hourly: n`: the newest of each of the last n hours that have any, in the policy's time zone; the
 * others alike. `keep_within`: everything younger, such as `36h`, `7d` or `2w`. `min_good`: so many restorable ones stay whatever the other
 * rules say. `manual`: backups that no policy has made count and go as well. `deletion_delay_hours`: for how long the policy's deleted
 * backups can be brought back, however they were deleted; absent: as their repository says.
 */
export const RetentionRules = z.object({
  keep_last: count.optional(),
  keep_hourly: count.optional(),
  keep_daily: count.optional(),
  keep_weekly: count.optional(),
  keep_monthly: count.optional(),
  keep_yearly: count.optional(),
  keep_within: z.string().optional(),
  min_good: z.int().min(1).default(1),
  manual: z.boolean().default(false),
  deletion_delay_hours: z.number().min(0).optional(),
});
export type RetentionRules = z.output<typeof RetentionRules>;

/** When the oldest members of a chain are merged: once it has more members than this. */
export const SquashRules = z.object({ when_chain_longer_than: z.int().min(1) });
export type SquashRules = z.output<typeof SquashRules>;

/** How thoroughly backups are verified: those of every n-th run, of so many percent of what it backs up. */
export const VerifyRules = z.object({
  mode: z.enum(verifyModes),
  every: z.int().min(1).default(1),
  sample: z.number().min(1).max(100).default(100),
});
export type VerifyRules = z.output<typeof VerifyRules>;

/**
 * `cron` has five fields and is read in `timezone`. Backups of a run begin within `window_minutes`, spread over the first `jitter_minutes`
 * of them.
 */
export const Schedule = z.object({
  cron: z.string(),
  timezone: z.string(),
  window_minutes: z.int().min(1),
  jitter_minutes: count,
});
export type Schedule = z.output<typeof Schedule>;

/** Which backups are full: every n-th of a chain, or the first one after each time that the cron expression names. */
export const BackupKinds = z.union([
  z.object({ full_every: z.int().min(1) }),
  z.object({ full_on: z.string(), full_every: z.undefined().optional() }),
]);
export type BackupKinds = z.output<typeof BackupKinds>;

const hoursOf = { h: 1, d: 24, w: 168 } as const;
const duration = /^([1-9]\d{0,5})([hdw])$/;

/** The milliseconds of a duration such as `36h`, `7d` or `2w`; null when it is none. Of fixed length, whatever clocks do. */
export function durationMs(text: string): number | null {
  const [, number, unit] = duration.exec(text) ?? [];
  return unit === undefined ? null : Number(number) * hoursOf[unit as keyof typeof hoursOf] * 3_600_000;
}
