import { z } from "zod";
import { bytes, id, Priority, time } from "./fields.ts";
import { queuePlaces } from "./queue-places.ts";

const count = z.number().int().nonnegative();

/** `damaged`: at most a thousand objects. `affected`: backups that build on a damaged one, at most a hundred. */
const VerifyResult = z.object({
  verify: z.object({
    id,
    mode: z.enum(["quick", "deep", "drill"]),
    objects: count,
    blocks: count,
    damaged: z.array(z.object({ object: z.string(), reason: z.string() })),
    affected: z.array(id),
  }),
});

/** Lists have at most a hundred entries. `passed_over`: what could not be read; absent in results of older releases. */
const RescanResult = z.object({
  found: count,
  entered: count,
  problems: z.array(z.object({ id: z.string(), problem: z.string() })),
  passed_over: z.array(z.string()).optional(),
});

/**
 * Of the bytes of the volume: taken as they were stored, or merged. `merged`: what the backup was built on, which is deleted unless others need
 * it.
 */
const SquashResult = z.object({
  squash: z.object({ id, objects: count, taken_bytes: bytes, merged_bytes: bytes, merged: z.array(id) }),
});

/** Counts by kind of what was removed, or would be. Lists have at most a hundred entries. */
const ReapResult = z.object({
  dry_run: z.boolean(),
  removed: z.record(z.string(), count),
  names: z.array(z.string()),
  unknown: z.array(z.string()),
  unreached: z.array(z.string()),
  passed_over: z.array(z.string()).optional(),
});

const OperationResult = z.union([VerifyResult, SquashResult, RescanResult, ReapResult]);
export type OperationResult = z.infer<typeof OperationResult>;

/** Sizes in bytes. Null: unknown, or not about one. `queue_position`: 1 is the next; 1,001 stands for all after the first thousand. `phase`: the part of it that runs. `workers`: ids of those at work on it, named to those only who see all projects. `retried_as`: the operation that was begun in place of one that has failed. `result` is present once a verification, a squash, a rescan or a reaper pass has ended. */
export const Operation = z
  .object({
    id,
    kind: z.string(),
    state: z.enum(["queued", "running", "succeeded", "failed", "cancelled"]),
    priority: Priority,
    project_id: z.string(),
    backup_id: id.nullable(),
    volume_id: id.nullable(),
    /** Null where it has none, or the volume is gone. */
    volume_name: z.string().nullable(),
    user_id: z.string(),
    request_id: z.string(),
    phase: z.string().nullable(),
    workers: z.array(z.string()),
    tasks_total: count,
    tasks_done: count,
    bytes_total: bytes,
    bytes_done: bytes,
    bytes_stored: bytes,
    bytes_copied_twice: bytes,
    rate_bytes_per_second: z.number().nullable(),
    seconds_left: z.number().nullable(),
    queue_position: count.max(queuePlaces + 1).nullable(),
    attempts: count,
    fail_reason: z.string().nullable(),
    retried_as: id.nullable(),
    result: OperationResult.optional(),
    created_at: time,
    started_at: time.nullable(),
    updated_at: time.nullable(),
    finished_at: time.nullable(),
  })
  .meta({ id: "Operation" });
export type Operation = z.infer<typeof Operation>;

/** Why it waits, or is not faster: a sentence, since when (null: nobody has noted it), and what that is about (null: the operation itself). */
export const OperationWhy = z.object({
  code: z.enum([
    "queue",
    "no_worker",
    "disabled_hosts",
    "capped_project",
    "capped_repository",
    "limited_rate",
    "backing_off",
    "taking_over",
    "no_progress",
    "waits_for",
    "ending",
    "fine",
  ]),
  text: z.string(),
  since: time.nullable(),
  subject: z.string().nullable(),
});
export type OperationWhy = z.infer<typeof OperationWhy>;

/**
 * A task of an operation; `range_length` 0: it is about no range. `try`: how often a worker has begun with it. `rate_bytes_per_second` is null where
 * nothing moved or it was begun more than once. `reason`: what its last try has come to.
 */
const OperationTask = z.object({
  kind: z.string(),
  ordinal: count,
  state: z.string(),
  range_offset: bytes,
  range_length: bytes,
  worker_id: z.string().nullable(),
  try: count,
  bytes_done: bytes,
  bytes_stored: bytes,
  rate_bytes_per_second: z.number().nullable(),
  started_at: time.nullable(),
  finished_at: time.nullable(),
  reason: z.string().nullable(),
});

/**
 * `actions`: what the caller may do about it now; where that is not allowed, `why` says why. `why` is null once nothing is left to be done. `phases`:
 * its parts, in their order. `tries`: tasks that were begun more than once, or have failed, at most a hundred. `tasks`, only where they are asked for: the
 * first 500. All three are empty a while after its end. Workers are named to those who see all projects.
 */
export const OperationDetails = Operation.extend({
  why: OperationWhy.nullable(),
  actions: z.array(z.object({ name: z.enum(["cancel", "retry"]), allowed: z.boolean(), why: z.string().nullable() })),
  phases: z.array(z.object({ name: z.string(), started_at: time.nullable(), finished_at: time.nullable() })),
  tries: z.array(OperationTask),
  tasks: z.array(OperationTask).optional(),
}).meta({ id: "OperationDetails" });
export type OperationDetails = z.infer<typeof OperationDetails>;

/**
 * How far each range of the volume is, one letter each in `states`: `d` done, `r` running, `t` taken over from a worker that is gone and running,
 * `h` handed to a worker, `.` waits, `x` failed or cancelled. `density`: a byte each in base64, what has been stored of it in 255ths of its length.
 * Workers are named to those who see all projects. Empty for operations without ranges, and a while after the end.
 */
export const OperationRanges = z
  .object({
    length_bytes: bytes,
    range_bytes: bytes,
    states: z.string().regex(/^[drth.x]*$/),
    density: z.base64(),
    running: z.array(
      z.object({ ordinal: count, worker_id: z.string().nullable(), bytes_done: bytes, try: z.number().int() }),
    ),
  })
  .meta({ id: "OperationRanges" });
export type OperationRanges = z.infer<typeof OperationRanges>;

/** A request was accepted: its progress is at `/ops/operations/{id}`. */
export const AcceptedOperation = z.object({ operation: z.object({ id }) });
