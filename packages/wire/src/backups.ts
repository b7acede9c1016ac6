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

/** By when backups were last verified: within 7 days, within 30, before, never. */
export const proofAges = ["week", "month", "older", "never"] as const;

/**
 * A backup in a list. `volume.name` is null where the volume is gone (`volume.gone`) or has no name; `machine`: what that is attached to.
 * `chain_depth`: how many it builds on; `sound`: neither it nor one of them is damaged. `operation_id`: what is being done with it.
 * `keep_until`: nobody deletes it before.
 */
export const ListedBackup = z
  .object({
    id,
    name: z.string().nullable(),
    project_id: z.string(),
    volume: z.object({ id, name: z.string().nullable(), gone: z.boolean() }),
    machine: z.object({ id, name: z.string() }).nullable(),
    status: z.string(),
    kind: z.enum(["full", "incremental"]),
    parent_id: id.nullable(),
    chain_depth: z.number().int().nonnegative(),
    data_timestamp: time,
    created_at: time,
    bytes: bytes.nullable(),
    stored_bytes: bytes.nullable(),
    objects: z.number().int().nonnegative(),
    repository: z.string(),
    encrypted: z.boolean(),
    damage: z.string().nullable(),
    sound: z.boolean(),
    proof: z.object({ at: time, mode: z.string().nullable() }).nullable(),
    fail_reason: z.string().nullable(),
    operation_id: id.nullable(),
    keep_until: time.nullable(),
    policy_id: id.nullable(),
  })
  .meta({ id: "ListedBackup" });
export type ListedBackup = z.infer<typeof ListedBackup>;

const counts = z.record(z.string(), z.number().int().nonnegative());

/**
 * `facets`, only where they were asked for, and at most five seconds old: how many there are of each status, repository and age of proof,
 * whatever of these was asked for. `total`: how many match. `next`: `marker` of the next page.
 */
export const BackupList = z.object({
  backups: z.array(ListedBackup),
  facets: z
    .object({ status: counts, repository: counts, proof: z.record(z.enum(proofAges), z.number().int().nonnegative()) })
    .nullable(),
  total: z.number().int().nonnegative().nullable(),
  next: id.nullable(),
});

/** `actions`: what the caller may do with it now; where that is not allowed, `why` says why. */
export const BackupDetails = ListedBackup.extend(BackupHealth.shape)
  .extend({
    actions: z.array(
      z.object({ name: z.enum(["restore", "verify", "delete"]), allowed: z.boolean(), why: z.string().nullable() }),
    ),
  })
  .meta({ id: "BackupDetails" });
export type BackupDetails = z.infer<typeof BackupDetails>;

/**
 * A member of a family of backups. `depth`: how many it builds on. `sound`: neither it nor what it builds on is damaged. `read`: a restore of the
 * backup that was asked for reads it.
 */
const ChainMember = z.object({
  id,
  name: z.string().nullable(),
  project_id: z.string(),
  volume_id: id,
  status: z.string(),
  kind: z.enum(["full", "incremental"]),
  parent_id: id.nullable(),
  depth: z.number().int().nonnegative(),
  data_timestamp: time,
  created_at: time,
  bytes: bytes.nullable(),
  stored_bytes: bytes.nullable(),
  objects: z.number().int().nonnegative(),
  repository: z.string(),
  damage: z.string().nullable(),
  sound: z.boolean(),
  read: z.boolean(),
  proof: z.object({ at: time, mode: z.string().nullable() }).nullable(),
});

/**
 * All that hangs together with a backup, newest first, at most 1,000: what it builds on, and whatever builds on that. `restore`: what a restore of
 * it reads; null where something that it builds on is gone.
 */
export const BackupChain = z
  .object({
    members: z.array(ChainMember),
    restore: z
      .object({ members: z.number().int().positive(), objects: z.number().int().nonnegative(), stored_bytes: bytes })
      .nullable(),
  })
  .meta({ id: "BackupChain" });
export type BackupChain = z.infer<typeof BackupChain>;

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

/** In this order; those that are about nothing (the quota of a volume that exists) are left out. */
export const RestoreCheck = z
  .object({
    /** `no`: a check has failed, and so would the restore; `perhaps`: one could not be made; `yes`: all are well. */
    verdict: z.enum(["yes", "perhaps", "no"]),
    checks: z.array(
      z.object({
        code: z.enum(["chain", "damage", "proof", "workers", "space", "quota", "target_free", "key", "shut_off"]),
        /** Null: it is not known. */
        ok: z.boolean().nullable(),
        /** One sentence. */
        text: z.string(),
      }),
    ),
    /** `bytes` are written; `seconds`: null where `basis`, which says from what they are estimated, is nothing. */
    estimate: z.object({ seconds: z.number().nonnegative().nullable(), bytes: bytes.nullable(), basis: z.string() }),
    /** Tasks of the project that wait now and go before it; no more than 1,000 are counted. */
    ahead: z.number().int().nonnegative(),
  })
  .meta({ id: "RestoreCheck" });
export type RestoreCheck = z.infer<typeof RestoreCheck>;
