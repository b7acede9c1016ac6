import { z } from "zod";
import { id, time } from "./fields.ts";

/** One status transition. `id` is a number as text: pages begin after it. */
export const AuditEntry = z
  .object({
    id: z.string(),
    at: time,
    resource: z.string(),
    resource_id: id,
    project_id: z.string().nullable(),
    from: z.string().nullable(),
    to: z.string(),
    actor: z.string(),
    user_id: z.string().nullable(),
    user_project_id: z.string().nullable(),
    worker_id: z.string().nullable(),
    request_id: z.string().nullable(),
    operation_id: id.nullable(),
    reason: z.string().nullable(),
  })
  .meta({ id: "AuditEntry" });
export type AuditEntry = z.infer<typeof AuditEntry>;
