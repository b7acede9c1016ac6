import { z } from "zod";
import { bytes, id, time } from "./fields.ts";

const count = z.number().int().nonnegative();

/** Backups that can be restored, by when they were last verified: within 7 days, within 30, before, never; and those that are damaged. */
export const Proof = z.object({ week: count, month: count, older: count, never: count, damaged: count });
export type Proof = z.infer<typeof Proof>;

/** `state`: whether a live worker can write to it. Bytes of volumes, and what is stored of them. */
export const RepositorySummary = z.object({
  name: z.string(),
  state: z.enum(["up", "down"]),
  backups: count,
  bytes,
  stored_bytes: bytes,
});
export type RepositorySummary = z.infer<typeof RepositorySummary>;

const Pass = z.object({ operation_id: id, state: z.string(), at: time }).nullable();

/**
 * `reached_by`: ids of the live workers that can write to it. `stored_per_day`: by how many bytes it grows, over the last thirty days; null before
 * there are two. `free_bytes`: what can still be stored, by the file system or a quota (null: nothing says), and `full_at`: when that is used up at that growth; null
 * also where it does not grow, or not within ten years. `probe_ms`: how long a live worker waited for its answer at most. `max_running_tasks`: as configured; null: any number.
 * `key_versions`: of its master keys, those that a live worker has. `last_reap`, `last_rescan`: the newest of each.
 */
export const Repository = RepositorySummary.extend({
  driver: z.enum(["posix", "nfs", "s3", "swift"]),
  default: z.boolean(),
  zone: z.string(),
  encrypted: z.boolean(),
  reached_by: z.array(z.string()),
  unreachable_from: z.array(z.object({ worker: z.string(), why: z.string() })),
  stored_per_day: z.number().nullable(),
  free_bytes: bytes.nullable(),
  full_at: time.nullable(),
  probe_ms: z.number().nonnegative().nullable(),
  max_running_tasks: z.number().int().positive().nullable(),
  key_versions: z.array(z.string()),
  proof: Proof,
  last_reap: Pass,
  last_rescan: Pass,
}).meta({ id: "Repository" });
export type Repository = z.infer<typeof Repository>;

/** With the ten projects that store most in it. */
export const RepositoryDetails = Repository.extend({
  projects: z.array(z.object({ project_id: z.string(), backups: count, stored_bytes: bytes })),
}).meta({ id: "RepositoryDetails" });
export type RepositoryDetails = z.infer<typeof RepositoryDetails>;
