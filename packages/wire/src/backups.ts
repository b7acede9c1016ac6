import { z } from "zod";
import { bytes, id, time } from "./fields.ts";

/** What Cinder's representation of a backup lacks: exact sizes and health. `damage` is the backup's own, not its parents'. */
export const BackupHealth = z
  .object({
    id,
    status: z.string(),
    repository: z.string(),
    parent_id: id.nullable(),
    bytes: bytes.nullable(),
    stored_bytes: bytes.nullable(),
    damage: z.string().nullable(),
    damaged_parents: z.array(z.object({ id, damage: z.string() })),
    verified_at: time.nullable(),
    verified_mode: z.string().nullable(),
  })
  .meta({ id: "BackupHealth" });
export type BackupHealth = z.infer<typeof BackupHealth>;
