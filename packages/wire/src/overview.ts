import { z } from "zod";
import { bytes, id, time } from "./fields.ts";
import { Operation } from "./operations.ts";
import { Proof, RepositorySummary } from "./repositories.ts";

const count = z.number().int().nonnegative();

/** What asks for somebody. Further codes may come. */
export const alertCode = z.enum([
  "no_workers",
  "repository_down",
  "operation_stuck",
  "damage_found",
  "key_missing",
  "volumes_never",
  "volumes_late",
  "worker_silent",
  "operation_failed",
  "schedule_missed",
  "queue_old",
  "queue_drift",
  "disk_low",
  "quota_near",
  "notifications_dead",
  "versions_mixed",
]);

/**
 * `subject`: a worker's id, a repository's name, a backend on a host, a project's id; null: the installation, or the volumes and operations that
 * the caller sees. `href`: the console's page for it, below `/console`. `since` null: nobody has noted it. `snoozed_until`: until then it need not
 * be told, for the reason that the user gave; null: it is not snoozed. Only those who see all projects see snoozes.
 */
export const Alert = z
  .object({
    code: alertCode,
    severity: z.enum(["critical", "warning"]),
    subject: z.string().nullable(),
    text: z.string(),
    since: time.nullable(),
    count,
    href: z.string(),
    snoozed_until: time.nullable(),
    snoozed_by: z.string().nullable(),
    snoozed_reason: z.string().nullable(),
  })
  .meta({ id: "Alert" });
export type Alert = z.infer<typeof Alert>;

/**
 * What can be restored, what needs somebody, what runs: of the caller's project; an admin sees all projects, and `repositories`, which are
 * empty for others. At most ten operations: those that take longest still. `failed_24h` counts neither those that were retried since nor
 * parts of others. `as_of`: it may be two seconds old.
 */
export const Overview = z
  .object({
    as_of: time,
    alerts: z.array(Alert),
    protection: z.object({ protected: count, late: count, at_risk: count, never: count, excluded: count }),
    proof: Proof,
    queue: z.object({ ready: count, dispatched: count, running: count, oldest_seconds: z.number().nonnegative() }),
    workers: z.object({ live: count, silent: count, disabled: count, slots: count, busy: count }),
    operations: z.object({ running: z.array(Operation), failed_24h: count }),
    repositories: z.array(RepositorySummary),
    last_success_at: time.nullable(),
  })
  .meta({ id: "Overview" });
export type Overview = z.infer<typeof Overview>;

/** What a worker is doing. */
const WorkerTask = z.object({
  operation_id: id,
  operation_kind: z.string(),
  kind: z.string(),
  ordinal: z.number().int(),
  project_id: z.string(),
  volume_id: id.nullable(),
  backup_id: id.nullable(),
  bytes_done: bytes,
  rate_bytes_per_second: z.number().nullable(),
  started_at: time.nullable(),
});

/**
 * A worker process that was heard of within the last hour. `silent`: not within `worker.down_ms`; `disabled`: its host takes no new tasks.
 * `reaches`: what tasks may need, as `repository:main`; `unreachable`: why not, by the same names; `places`: how long each took to answer, what can be stored
 * there (null: nothing says), and versions of its master keys, the current one first. `rate_bytes_per_second`: of all its tasks together; null: nothing moves. `version` and `rss_bytes` are null while an
 * older release runs.
 */
export const WorkerCard = z
  .object({
    id: z.string(),
    host: z.string(),
    pid: z.number().int(),
    version: z.string().nullable(),
    state: z.enum(["live", "silent", "disabled"]),
    disabled_reason: z.string().nullable(),
    started_at: time,
    heartbeat_at: time,
    queue: z.string(),
    slots: count,
    tasks: z.array(WorkerTask),
    reaches: z.array(z.string()),
    unreachable: z.record(z.string(), z.string()),
    free_bytes: z.record(z.string(), bytes),
    places: z.record(
      z.string(),
      z.object({
        ms: z.number().nonnegative(),
        free_bytes: bytes.nullish(),
        keys: z.array(z.string()).optional(),
      }),
    ),
    rate_bytes_per_second: z.number().nullable(),
    rss_bytes: bytes.nullable(),
  })
  .meta({ id: "Worker" });
export type WorkerCard = z.infer<typeof WorkerCard>;
