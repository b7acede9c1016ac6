import { z } from "zod";
import { bytes } from "./fields.ts";

const count = z.number().int().nonnegative();
/** `limit` -1: none. Gigabytes are GiB. */
const QuotaLine = z.object({ limit: z.number().int(), in_use: count });

/** `running`, `waiting`: tasks; `late`, `never`: volumes; `stored_bytes`: of backups that can be restored. */
export const Project = z
  .object({
    project_id: z.string(),
    quota: z.object({
      volumes: QuotaLine,
      gigabytes: QuotaLine,
      snapshots: QuotaLine,
      groups: QuotaLine,
      backups: QuotaLine,
      backup_gigabytes: QuotaLine,
    }),
    running: count,
    waiting: count,
    late: count,
    never: count,
    stored_bytes: bytes,
  })
  .meta({ id: "Project" });
export type Project = z.infer<typeof Project>;
