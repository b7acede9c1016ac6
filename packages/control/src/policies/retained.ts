import { type Database, Prisma, type Transaction } from "../db/database.ts";
import { isLiveOperation, isStoredBackup } from "../db/live.ts";
import { type RetainedBackup, type RetentionPlan, type RetentionRules as Rules, retain } from "./retention.ts";
import { durationMs, type RetentionRules, type SquashRules } from "./rules.ts";

/** What of a policy decides which backups are kept. */
export interface RetentionPolicy {
  retention: RetentionRules;
  squash: SquashRules | null;
  timezone: string;
}

/** A volume's backups as they are in their rows, with the stored bytes of each. */
export interface VolumeBackups {
  volumeId: string;
  backups: (RetainedBackup & { storedBytes: number })[];
}

type Row = Omit<RetainedBackup, "foreign"> & { volumeId: string; storedBytes: number };

/**
 * The backups of these volumes, and those of others that they build on.
 *
 * @param now decides which holds are over
 */
export async function readRetained(
  tx: Database | Transaction,
  volumeIds: readonly string[],
  now: Date,
): Promise<VolumeBackups[]> {
  const own = await readRows(tx, { volumeIds, ids: [] }, now);
  const byVolume = new Map<string, VolumeBackups>(volumeIds.map((id) => [id, { volumeId: id, backups: [] }]));
  for (const row of own) byVolume.get(row.volumeId)?.backups.push({ ...row, foreign: false });
  for (const volume of byVolume.values()) await addForeign(tx, volume, now);
  return [...byVolume.values()];
}

/** Adds what the volume's backups build on that is not the volume's: as far as it goes, which is seldom far. */
async function addForeign(tx: Database | Transaction, { backups }: VolumeBackups, now: Date): Promise<void> {
  const known = new Set(backups.map(({ id }) => id));
  for (;;) {
    const ids = backups.flatMap(({ parentId }) => (parentId === null || known.has(parentId) ? [] : [parentId]));
    if (ids.length === 0) return;
    for (const id of ids) known.add(id);
    const rows = await readRows(tx, { volumeIds: [], ids }, now);
    backups.push(...rows.map((row) => ({ ...row, foreign: true })));
  }
}

/** SQL: the project of the volume `v` of the backup `b`; of one that is gone, that of its newest backup. */
const ownerOf = Prisma.sql`coalesce(v.project_id, (SELECT n.project_id FROM backups n
  WHERE n.volume_id = b.volume_id AND n.policy_id IS NOT NULL AND n.deleted_at IS NULL ORDER BY n.data_timestamp DESC, n.id LIMIT 1))`;

async function readRows(
  tx: Database | Transaction,
  { volumeIds, ids }: { volumeIds: readonly string[]; ids: readonly string[] },
  now: Date,
): Promise<Row[]> {
  return tx.$queryRaw<Row[]>`
    SELECT b.id, b.volume_id AS "volumeId", b.parent_id AS "parentId", b.data_timestamp AS at, b.created_at AS "createdAt",
      coalesce(b.stored_bytes, 0)::float8 AS "storedBytes", b.policy_id IS NULL AS manual,
      coalesce(b.hold_until > ${now}::timestamptz, false) AS held,
      CASE WHEN b.deleted_at IS NOT NULL OR b.status = 'deleting' THEN 'hidden' WHEN b.status = 'creating' THEN 'unfinished'
        WHEN b.status NOT IN ('available', 'restoring', 'error_restoring') THEN 'failed'
        WHEN b.damage IS NOT NULL OR b.status = 'error_restoring' THEN 'damaged' ELSE 'good' END AS state,
      b.status = 'restoring'
        OR EXISTS (SELECT FROM operations o WHERE o.backup_id = b.id AND ${isLiveOperation("o")})
        OR EXISTS (SELECT FROM image_transfers t WHERE t.stored_backup_id = b.id AND t.ended_at IS NULL) AS "inUse",
      EXISTS (SELECT FROM backups c WHERE c.parent_id = b.id AND ${isStoredBackup("c")}
        AND (c.volume_id <> b.volume_id OR c.project_id <> b.project_id)) AS "neededElsewhere"
    FROM backups b LEFT JOIN volumes v ON v.id = b.volume_id
    WHERE ${isStoredBackup("b")}
      AND ((b.volume_id = ANY(${[...volumeIds]}::uuid[]) AND b.project_id = ${ownerOf}) OR b.id = ANY(${[...ids]}::uuid[]))`;
}

const rulesOf = ({ retention, squash }: RetentionPolicy): Rules => ({
  ...(retention.keep_last !== undefined && { last: retention.keep_last }),
  ...(retention.keep_within !== undefined && { withinMs: durationMs(retention.keep_within) ?? 0 }),
  periods: {
    hourly: retention.keep_hourly ?? 0,
    daily: retention.keep_daily ?? 0,
    weekly: retention.keep_weekly ?? 0,
    monthly: retention.keep_monthly ?? 0,
    yearly: retention.keep_yearly ?? 0,
  },
  minGood: retention.min_good,
  manual: retention.manual,
  squashLongerThan: squash?.when_chain_longer_than ?? null,
});

/** What the policy makes of the backups of one volume. */
export const decide = (policy: RetentionPolicy, backups: readonly RetainedBackup[], now: Date): RetentionPlan =>
  retain(backups, rulesOf(policy), { now, timeZone: policy.timezone });
