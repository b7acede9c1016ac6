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
    /** Nobody deletes it before; null: nobody holds it. */
    hold: z.object({ until: time, reason: z.string().nullable() }).nullable(),
    /** The policy that made it; null: somebody asked for it. */
    policy_id: id.nullable(),
  })
  .meta({ id: "BackupHealth" });
export type BackupHealth = z.infer<typeof BackupHealth>;

/** A deleted backup that can be brought back until `undelete_until`; no longer once it is `removing`. */
export const DeletedBackup = z
  .object({
    id,
    project_id: z.string(),
    name: z.string().nullable(),
    volume_id: id,
    parent_id: id.nullable(),
    policy_id: id.nullable(),
    repository: z.string(),
    bytes: bytes.nullable(),
    stored_bytes: bytes.nullable(),
    data_timestamp: time,
    created_at: time,
    deleted_at: time,
    undelete_until: time,
    removing: z.boolean(),
  })
  .meta({ id: "DeletedBackup" });
export type DeletedBackup = z.infer<typeof DeletedBackup>;
