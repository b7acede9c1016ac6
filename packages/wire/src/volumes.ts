import { z } from "zod";
import { bytes, id, time } from "./fields.ts";

/** What Cinder's representation of a volume lacks: its exact length. `size` is in GiB, rounded up. */
export const VolumeDetails = z
  .object({ id, size: z.number().int(), bytes, status: z.string(), backend: z.string().nullable() })
  .meta({ id: "VolumeDetails" });
export type VolumeDetails = z.infer<typeof VolumeDetails>;

export const protectionState = z.enum(["protected", "late", "at risk", "never", "excluded"]);

/**
 * `protected`: the newest good backup is within the target; `late`: it is older; `at risk`: within it, but the newest try has failed or a newer
 * backup is damaged; `never`: there is none; `excluded`: on purpose.
 */
export const VolumeProtection = z
  .object({
    state: protectionState,
    reason: z.string().nullable(),
    /** With when it was last verified, and how thoroughly; null: never. */
    last_good: z
      .object({ backup_id: id, at: time, verified_at: time.nullable(), verified_mode: z.string().nullable() })
      .nullable(),
    last_try: z.object({ backup_id: id, status: z.string(), at: time }).nullable(),
    target_seconds: z.number().int(),
    /** When its policy is due next. */
    next_at: time.nullable(),
    policy: z.object({ id, name: z.string() }).nullable(),
    excluded: z.object({ reason: z.string(), until: time.nullable() }).nullable(),
  })
  .meta({ id: "VolumeProtection" });
export type VolumeProtection = z.infer<typeof VolumeProtection>;

/**
 * One letter a day, from `from` on. `R`: a backup of that day can be restored; `p`: one was made and has been deleted since; `F`: one failed, or
 * is damaged; `X`: excluded on purpose; `M`: a run of the policy was due and missed, or skipped it; `.`: nothing was due; `-`: the volume did not exist.
 */
export const ProtectionDays = z
  .object({
    from: z.iso.date(),
    volumes: z.array(z.object({ id, days: z.string().regex(/^[RpFXM.-]*$/) })),
  })
  .meta({ id: "ProtectionDays" });

/**
 * A volume, and how protected it is. `machine`: what it is attached to. `points`: its backups that are whole, which store `stored_bytes` together. `chain_depth`: how many
 * the newest good one builds on; null: there is none.
 */
export const ProtectedVolume = z
  .object({
    id,
    name: z.string().nullable(),
    project_id: z.string(),
    bytes,
    status: z.string(),
    backend: z.string(),
    machine: z.object({ id, name: z.string() }).nullable(),
    protection: VolumeProtection,
    points: z.number().int().nonnegative(),
    stored_bytes: bytes,
    chain_depth: z.number().int().nonnegative().nullable(),
  })
  .meta({ id: "ProtectedVolume" });
export type ProtectedVolume = z.infer<typeof ProtectedVolume>;
