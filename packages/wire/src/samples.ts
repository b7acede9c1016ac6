import { z } from "zod";
import { time } from "./fields.ts";

/** What samples are of. `stored` is one series for each repository, by its name: `stored:main`. */
export const sampleSeries = [
  "bytes_in",
  "bytes_out",
  "ends_succeeded",
  "ends_failed",
  "ends_cancelled",
  "queue_waiting",
  "queue_running",
  "queue_oldest",
  "workers",
  "slots",
  "volumes_protected",
  "volumes_late",
  "volumes_at_risk",
  "volumes_never",
  "volumes_excluded",
  "stored",
] as const;

/**
 * `t`: the beginnings of steps of `step_seconds`; in each series, one value for each of them, null where nobody has looked. `bytes_in` and
 * `bytes_out` are bytes per second, `ends_…` operations that have ended in the step, `queue_oldest` seconds, the longest of the step; all else is
 * as of the end of the step.
 */
export const Samples = z
  .object({
    as_of: time,
    step_seconds: z.number().int().positive(),
    t: z.array(time),
    series: z.record(z.string(), z.array(z.number().nonnegative().nullable())),
  })
  .meta({ id: "Samples" });
export type Samples = z.infer<typeof Samples>;
