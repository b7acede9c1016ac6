import { z } from "zod";
import { time } from "./fields.ts";

export const weekDays = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"] as const;

/** At least what lets one piece of a megabyte through in a minute. */
export const bytesPerSecond = z.number().int().min(16_384).max(Number.MAX_SAFE_INTEGER);

export const timeOfDay = z.string().regex(/^(?:[01]\d|2[0-3]):[0-5]\d$/, "is not a time from 00:00 to 23:59");

/** A part of the week, by the clocks of a time zone, and how many bytes a second it allows; null: any number. */
export const LimitWindow = z.object({
  from: z.string(),
  to: z.string(),
  days: z.array(z.enum(weekDays)),
  timezone: z.string(),
  bytes_per_second: z.number().int().nullable(),
});
export type LimitWindow = z.infer<typeof LimitWindow>;

/** How fast volumes are read, or repositories written and read, by all that is of one name; `bytes_per_second_now` has the window of now. */
export const BandwidthLimit = z
  .object({
    traffic: z.enum(["volumes", "repositories"]),
    scope: z.enum(["worker", "project", "backend", "repository"]),
    name: z.string(),
    bytes_per_second: z.number().int().nullable(),
    windows: z.array(LimitWindow),
    bytes_per_second_now: z.number().int().nullable(),
    changed_by: z.string(),
    changed_at: time,
  })
  .meta({ id: "BandwidthLimit" });
export type BandwidthLimit = z.infer<typeof BandwidthLimit>;
