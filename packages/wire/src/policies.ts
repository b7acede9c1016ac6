import { z } from "zod";
import { bytes, id, Priority, time } from "./fields.ts";

const count = z.number().int().min(0).max(100_000);

/** Of each period the newest backup is kept, in the policy's time zone; `keep_within`: everything younger, as `36h`, `7d` or `2w`. */
export const Retention = z.strictObject({
  keep_last: count.optional(),
  keep_hourly: count.optional(),
  keep_daily: count.optional(),
  keep_weekly: count.optional(),
  keep_monthly: count.optional(),
  keep_yearly: count.optional(),
  keep_within: z
    .string()
    .regex(/^[1-9]\d{0,5}[hdw]$/, "is no number of hours, days or weeks, such as 36h, 7d or 2w")
    .optional(),
  min_good: z.number().int().min(1).max(100_000).default(1),
  /** Backups that no policy has made count and go as well. */
  manual: z.boolean().default(false),
  /** For how long the policy's deleted backups can be brought back; absent: as their repository says. */
  deletion_delay_hours: z.number().min(0).max(87_600).optional(),
});

/** Of every n-th run the backups of so many percent of what it backs up are verified. */
export const Verify = z.strictObject({
  mode: z.enum(["quick", "deep", "drill"]),
  every: z.number().int().min(1).max(100_000).default(1),
  sample: z.number().min(1).max(100).default(100),
});

export const Squash = z.strictObject({ when_chain_longer_than: z.number().int().min(1).max(100_000) });

const minutes = z.number().int().max(527_040);

export const Schedule = z.strictObject({
  /** Five fields: minute, hour, day of month, month, day of week. */
  cron: z.string().min(1).max(255),
  /** Name in the IANA time zone database. */
  timezone: z.string().min(1).max(64).default("UTC"),
  window_minutes: minutes.min(1).default(60),
  jitter_minutes: minutes.min(0).default(0),
});

export const Kinds = z.union([
  z.strictObject({ full_every: z.number().int().min(1).max(100_000) }),
  z.strictObject({ full_on: z.string().min(1).max(255) }),
]);

/** `project_id` null: published by an admin, for every project. */
export const Policy = z
  .object({
    id,
    project_id: z.string().nullable(),
    user_id: z.string(),
    name: z.string(),
    description: z.string().nullable(),
    enabled: z.boolean(),
    schedule: Schedule,
    kind: Kinds,
    retention: Retention.nullable(),
    squash: Squash.nullable(),
    repository: z.string().nullable(),
    force: z.boolean(),
    priority: Priority,
    verify: Verify.nullable(),
    target_hours: z.number().int().nullable(),
    next_at: time.nullable(),
    created_at: time,
    updated_at: time.nullable(),
  })
  .meta({ id: "Policy" });
export type Policy = z.infer<typeof Policy>;

/** With the next five times at which it is due, whether it is enabled or not. */
export const PolicyDetails = Policy.extend({ next_runs: z.array(time) }).meta({ id: "PolicyDetails" });
export type PolicyDetails = z.infer<typeof PolicyDetails>;

export const PolicyAssignment = z
  .object({
    id,
    policy_id: id,
    scope: z.enum(["volume", "machine", "project"]),
    project_id: z.string(),
    volume_id: id.nullable(),
    instance_id: id.nullable(),
    user_id: z.string(),
    created_at: time,
  })
  .meta({ id: "PolicyAssignment" });
export type PolicyAssignment = z.infer<typeof PolicyAssignment>;

const ofVolume = { volume_id: id, backup_id: id };

/**
 * What retention would do. Every backup is in one of the lists, or merged into the last of a `squash`. `rules` name the keys of `retention`
 * that keep it, or what else does; `because` are the kept backups that build on it. `truncated`: the policy has more volumes than are looked
 * at.
 */
export const RetentionPreview = z
  .object({
    as_of: time,
    volumes: z.number().int(),
    truncated: z.boolean(),
    keep: z.array(z.object({ ...ofVolume, rules: z.array(z.string()) })),
    go: z.array(z.object({ ...ofVolume, reason: z.enum(["no_rule", "failed", "damaged", "parent_damaged"]) })),
    squash: z.array(z.array(id)),
    blocked: z.array(z.object({ ...ofVolume, because: z.array(id) })),
    frees_bytes: bytes,
  })
  .meta({ id: "RetentionPreview" });
export type RetentionPreview = z.infer<typeof RetentionPreview>;

/**
 * What becomes of one volume by the rules of a policy. Bytes are those stored. `backups`: what is there at the end, with the rules that keep
 * it; none for what is only there since others build on it. `series`: at most some 60 points.
 */
export const PolicySimulation = z
  .object({
    made: bytes,
    deleted: bytes,
    squashed: bytes,
    stored_bytes: bytes,
    peak_bytes: bytes,
    backups: z.array(z.object({ at: time, full: z.boolean(), bytes, rules: z.array(z.string()) })),
    series: z.array(z.object({ at: time, backups: bytes, stored_bytes: bytes })),
  })
  .meta({ id: "PolicySimulation" });
export type PolicySimulation = z.infer<typeof PolicySimulation>;

const source = z.enum(["volume", "metadata", "machine", "project"]);

/** Which policy applies to a volume, and why: `candidates` are all that could, the most specific first, which is the one that does. */
export const VolumePolicy = z
  .object({
    policy: z.object({ id, name: z.string() }).nullable(),
    by: source.nullable(),
    why: z.string(),
    candidates: z.array(z.object({ by: source, policy_id: id, name: z.string() })),
  })
  .meta({ id: "VolumePolicy" });
export type VolumePolicy = z.infer<typeof VolumePolicy>;

const items = z.number().int().nonnegative();

/**
 * `state`: `ran`; `late`, begun after its time; `missed`, never begun; `skipped`, because the run before it had not ended. `volumes`: how many
 * of what it has to do are in each state; a machine counts as one. `operation_id`: of a run of one volume.
 */
export const PolicyRun = z
  .object({
    id,
    due_at: time,
    state: z.enum(["ran", "late", "missed", "skipped"]),
    /** False: somebody has run it by hand. */
    scheduled: z.boolean(),
    reason: z.string().nullable(),
    operation_id: id.nullable(),
    started_at: time.nullable(),
    window_end: time.nullable(),
    finished_at: time.nullable(),
    volumes: z.object({ waiting: items, running: items, succeeded: items, failed: items, skipped: items }),
  })
  .meta({ id: "PolicyRun" });
export type PolicyRun = z.infer<typeof PolicyRun>;

/** What a run has to do with a volume, or a machine. `incremental` null: nothing has begun. */
export const PolicyRunItem = z
  .object({
    project_id: z.string(),
    volume_id: id.nullable(),
    instance_id: id.nullable(),
    starts_at: time,
    state: z.enum(["waiting", "running", "succeeded", "failed", "skipped"]),
    reason: z.string().nullable(),
    incremental: z.boolean().nullable(),
    backup_id: id.nullable(),
    operation_id: id.nullable(),
    started_at: time.nullable(),
    finished_at: time.nullable(),
  })
  .meta({ id: "PolicyRunItem" });
export type PolicyRunItem = z.infer<typeof PolicyRunItem>;
