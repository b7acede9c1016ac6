import { type Database, Prisma, type Transaction } from "../db/database.ts";
import { type Principal, seesAll } from "../principal.ts";
import { findPolicy, type Policy, readClock } from "../rows/policies.ts";
import { candidatesOf } from "./applies.ts";
import { refusalOf } from "./check.ts";
import { decide, type RetentionPolicy, readRetained, type VolumeBackups } from "./retained.ts";
import type { GoReason, KeepRule, RetentionPlan } from "./retention.ts";
import { RetentionRules, Schedule, SquashRules } from "./rules.ts";

/** How a policy's row decides; null: it deletes nothing. */
export function retentionOf(policy: Pick<Policy, "retention" | "squash" | "schedule">): RetentionPolicy | null {
  if (policy.retention === null) return null;
  return {
    retention: RetentionRules.parse(policy.retention),
    squash: policy.squash === null ? null : SquashRules.parse(policy.squash),
    timezone: Schedule.parse(policy.schedule).timezone,
  };
}

/** A preview looks at so many volumes at most. */
const volumesMax = 1_000;
const volumesAtOnce = 100;

/** Volumes to which the policy applies and that have backups, by id; of one project, unless `projectId` is null. */
async function appliedVolumes(
  tx: Database | Transaction,
  { policyId, projectId, volumeId }: { policyId: string; projectId: string | null; volumeId?: string | undefined },
): Promise<string[]> {
  const concerned = Prisma.sql`coalesce(v.project_id = ${projectId}, true) AND coalesce(v.id = ${volumeId ?? null}::uuid, true)
    AND EXISTS (SELECT FROM backups b WHERE b.volume_id = v.id AND b.project_id = v.project_id AND b.deleted_at IS NULL)`;
  const rows = await tx.$queryRaw<{ id: string }[]>`
    SELECT volume_id AS id FROM (
      SELECT DISTINCT ON (volume_id) * FROM (${candidatesOf(concerned)}) candidates ORDER BY volume_id, place) applied
    WHERE policy_id = ${policyId}::uuid ORDER BY volume_id LIMIT ${volumesMax + 1}`;
  return rows.map(({ id }) => id);
}

export interface PreviewRequest {
  /** Another time than now; the backups are those of now. */
  asOf?: Date | undefined;
  /** What the policy would say instead. */
  change?: {
    retention?: RetentionRules | null | undefined;
    squash?: SquashRules | null | undefined;
    timezone?: string | undefined;
  };
  volumeId?: string | undefined;
}

export interface RetentionPreview {
  asOf: Date;
  volumes: number;
  /** There are more volumes than a preview looks at. */
  truncated: boolean;
  keep: { volumeId: string; id: string; rules: KeepRule[] }[];
  go: { volumeId: string; id: string; reason: GoReason }[];
  squash: string[][];
  blocked: { volumeId: string; id: string; because: string[] }[];
  /** Stored bytes of what goes, and about as many as squashes free. */
  freesBytes: number;
}

/**
 * What retention would do now, or at another time, or by other rules; nothing is changed. Of a published policy, others than admins see
 * what becomes of their own project's volumes.
 *
 * @throws NotFoundError
 */
export async function previewRetention(
  database: Database,
  principal: Principal,
  policyId: string,
  { asOf, change = {}, volumeId }: PreviewRequest,
): Promise<RetentionPreview> {
  const policy = await findPolicy(database, principal, policyId);
  const projectId = seesAll(principal) ? null : principal.projectId;
  const now = asOf ?? (await readClock(database));
  const found = await appliedVolumes(database, { policyId: policy.id, projectId, volumeId });
  const stands = retentionOf(policy);
  const retention = change.retention === undefined ? (stands?.retention ?? null) : change.retention;
  const rules = retention && {
    retention,
    squash:
      change.squash === undefined ? (stands?.squash ?? SquashRules.nullable().parse(policy.squash)) : change.squash,
    timezone: change.timezone ?? Schedule.parse(policy.schedule).timezone,
  };
  const ids = found.slice(0, volumesMax);
  const preview: RetentionPreview = {
    ...{ asOf: now, volumes: ids.length, truncated: found.length > volumesMax },
    ...{ keep: [], go: [], squash: [], blocked: [], freesBytes: 0 },
  };
  for (let from = 0; rules && from < ids.length; from += volumesAtOnce) {
    for (const volume of await readRetained(database, ids.slice(from, from + volumesAtOnce), now)) {
      addPlan(preview, volume, decide(rules, volume.backups, now));
    }
  }
  return preview;
}

function addPlan(preview: RetentionPreview, { volumeId, backups }: VolumeBackups, plan: RetentionPlan): void {
  const bytes = new Map(backups.map(({ id, storedBytes }) => [id, storedBytes]));
  const of = <T extends object>(entry: T) => ({ volumeId, ...entry });
  preview.keep.push(...plan.keep.map(of));
  preview.go.push(...plan.go.map(of));
  preview.squash.push(...plan.squash);
  preview.blocked.push(...plan.blocked.map(of));
  // A full backup stays about as large when incrementals are merged into it.
  const freed = [...plan.go.map(({ id }) => id), ...plan.squash.flatMap((ids) => ids.slice(1))];
  for (const id of freed) preview.freesBytes += bytes.get(id) ?? 0;
}

/**
 * Called when a policy was changed, or assigned to more, in the same transaction: its first run must not delete more than half of what is
 * there without somebody having said that this is meant. Looks at the first thousand volumes that it applies to.
 *
 * @throws InvalidError with key `confirm`
 */
export async function refuseMassDeletion(
  tx: Transaction,
  policy: Policy,
  { confirmed }: { confirmed: boolean },
): Promise<void> {
  const rules = retentionOf(policy);
  if (confirmed || rules === null || !policy.enabled) return;
  const now = await readClock(tx);
  const ids = (await appliedVolumes(tx, { policyId: policy.id, projectId: null })).slice(0, volumesMax);
  let [all, gone] = [0, 0];
  for (let from = 0; from < ids.length; from += volumesAtOnce) {
    for (const { backups } of await readRetained(tx, ids.slice(from, from + volumesAtOnce), now)) {
      const plan = decide(rules, backups, now);
      const merged = plan.squash.reduce((sum, members) => sum + members.length - 1, 0);
      gone += plan.go.length + merged;
      all += plan.go.length + merged + plan.keep.length + plan.blocked.length;
    }
  }
  if (gone * 2 <= all) return;
  const problem = `the first run would delete ${gone} of ${all} backups: look at a preview, and say confirm: true if that is meant`;
  throw refusalOf([{ key: "confirm", problem }]);
}
