import { z } from "zod";
import { id, time } from "./fields.ts";

/** The delivery of an event to one target. `next_attempt_at` is null unless it is pending. */
export const Notification = z
  .object({
    id,
    message_id: id,
    event_type: z.string(),
    target: z.string(),
    state: z.enum(["pending", "delivered", "dead"]),
    attempts: z.number().int(),
    last_error: z.string().nullable(),
    next_attempt_at: time.nullable(),
    payload: z.unknown(),
    created_at: time,
  })
  .meta({ id: "Notification" });
export type Notification = z.infer<typeof Notification>;
