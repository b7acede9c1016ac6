import { z } from "zod";
import { id, time } from "./fields.ts";

/** That something has another status: whoever shows it asks for it again. `from` null: it was made. */
export const Change = z
  .object({
    resource: z.string(),
    id,
    project_id: z.string(),
    from: z.string().nullable(),
    to: z.string(),
    operation_id: id.nullable(),
    at: time,
  })
  .meta({ id: "Change" });
export type Change = z.infer<typeof Change>;

/**
 * `next`: the cursor to ask with for what comes after. `resync`: changes were left out, so what is shown has to be asked for again. A change
 * may be told more than once.
 */
export const Changes = z.object({ changes: z.array(Change), next: z.string(), resync: z.boolean() });

/** What stands beside what is shown: that of an overview, and `alerts_digest`, which is another one whenever the alerts are. */
export interface Pulse {
  as_of: string;
  queue: { ready: number; dispatched: number; running: number; oldest_seconds: number };
  workers: { live: number; silent: number; disabled: number; slots: number; busy: number };
  alerts_digest: string;
}
