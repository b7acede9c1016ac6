import type { Transaction } from "../db/database.ts";
import { isLiveOperation, isStoredBackup } from "../db/live.ts";
import { lockQuotas } from "./quotas.ts";

/** The totals of a project's rows, beside the usage recorded in its quota. */
interface Usage {
  project_id: string;
  volumes: number;
  snapshots: number;
  gigabytes: number;
  backups: number;
  backup_gigabytes: number;
  groups: number;
}

/**
 * Projects whose quota differs from the totals of their rows; of all, or of `projects`. Both are read in one statement, and so at the same
 * instant. A volume's growth counts from the request on; instance groups never count.
 */
async function readDifferences(tx: Transaction, projects: readonly string[] | null): Promise<Usage[]> {
  return tx.$queryRaw<Usage[]>`
    WITH rows AS (
      SELECT project_id, 1 AS volumes, 0 AS snapshots, size_gib AS gigabytes, 0 AS backups, 0 AS backup_gigabytes, 0 AS groups FROM volumes
      UNION ALL SELECT project_id, 0, 1, size_gib, 0, 0, 0 FROM snapshots
      UNION ALL SELECT project_id, 0, 0, (input ->> 'addedGib')::int, 0, 0, 0 FROM operations
        WHERE kind = 'volume-extend' AND ${isLiveOperation("operations")}
      UNION ALL SELECT project_id, 0, 0, 0, 1, size_gib, 0 FROM backups WHERE ${isStoredBackup("backups")}
      UNION ALL SELECT project_id, 0, 0, 0, 0, 0, 1 FROM groups WHERE instance_id IS NULL
    ), used AS (
      SELECT project_id, sum(volumes)::int AS volumes, sum(snapshots)::int AS snapshots, sum(gigabytes)::int AS gigabytes,
        sum(backups)::int AS backups, sum(backup_gigabytes)::int AS backup_gigabytes, sum(groups)::int AS groups
      FROM rows WHERE ${projects === null} OR project_id = ANY(${[...(projects ?? [])]}::text[]) GROUP BY project_id
    )
    SELECT project_id, coalesce(u.volumes, 0) AS volumes, coalesce(u.snapshots, 0) AS snapshots, coalesce(u.gigabytes, 0) AS gigabytes,
      coalesce(u.backups, 0) AS backups, coalesce(u.backup_gigabytes, 0) AS backup_gigabytes, coalesce(u.groups, 0) AS groups
    FROM used u FULL JOIN (SELECT * FROM quotas q WHERE ${projects === null} OR q.project_id = ANY(${[...(projects ?? [])]}::text[])) q
      USING (project_id)
    WHERE (coalesce(u.volumes, 0), coalesce(u.snapshots, 0), coalesce(u.gigabytes, 0), coalesce(u.backups, 0),
        coalesce(u.backup_gigabytes, 0), coalesce(u.groups, 0)) IS DISTINCT FROM
      (coalesce(q.volumes_used, 0), coalesce(q.snapshots_used, 0), coalesce(q.gigabytes_used, 0), coalesce(q.backups_used, 0),
        coalesce(q.backup_gigabytes_used, 0), coalesce(q.groups_used, 0))`;
}

/**
 * Corrects the differences. Every change of rows holds the lock of its project's quota, so what still differs under the lock is wrong.
 *
 * @returns the projects whose quota was wrong
 */
export async function repairQuotas(tx: Transaction): Promise<string[]> {
  const seen = (await readDifferences(tx, null)).map((usage) => usage.project_id);
  if (seen.length === 0) return [];
  await lockQuotas(tx, seen);
  const wrong = await readDifferences(tx, seen);
  for (const usage of wrong) {
    await tx.$executeRaw`
      UPDATE quotas SET volumes_used = ${usage.volumes}, snapshots_used = ${usage.snapshots}, gigabytes_used = ${usage.gigabytes},
        backups_used = ${usage.backups}, backup_gigabytes_used = ${usage.backup_gigabytes}, groups_used = ${usage.groups}
      WHERE project_id = ${usage.project_id}`;
  }
  return wrong.map((usage) => usage.project_id);
}
