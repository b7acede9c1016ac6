import { randomUUID } from "node:crypto";
import type { Transaction } from "../db/database.ts";
import { backupColumns } from "../db/lock-row.ts";
import { type Backup, Prisma } from "../generated/client.ts";
import type { Principal } from "../principal.ts";
import { type NewOperation, operationEntry } from "../queue/operations.ts";
import { ringOnCommit } from "../queue/tasks.ts";
import type { OriginOf } from "../states.ts";

/** The row of a backup that is about to be made. */
export type NewBackupRow = Pick<
  Backup,
  | "id"
  | "projectId"
  | "userId"
  | "volumeId"
  | "snapshotId"
  | "parentId"
  | "name"
  | "description"
  | "sizeGib"
  | "repository"
  | "container"
  | "availabilityZone"
  | "policyId"
  | "dataTimestamp"
  | "createdAt"
  | "updatedAt"
> & { metadata: Record<string, string> };

/**
 * Enters a backup with the operation that makes it and its first task, in one statement. Where it is the volume that is backed up, the
 * statement also reserves the quota and marks the volume, in the lock order: what many requests of a project wait for is held for two round
 * trips only.
 *
 * @param first what has to be done before; null: it has been done
 * @returns the row, or which of the two could not be done: then nothing after it was done, either
 */
export async function acceptBackup(
  tx: Transaction,
  principal: Pick<Principal, "userId" | "requestId">,
  backup: { row: NewBackupRow; operation: NewOperation },
  first: { quota: Prisma.Sql; from: readonly OriginOf<"volume", "backing-up">[] } | null,
): Promise<Backup | "no-quota" | "no-volume"> {
  const { row, operation } = backup;
  const before = first
    ? Prisma.sql`quota AS (${first.quota} RETURNING 1), source AS (
        UPDATE volumes SET previous_status = status, status = 'backing-up', updated_at = now()
        WHERE id = ${row.volumeId}::uuid AND status = ANY(${[...first.from]}) AND EXISTS (SELECT FROM quota) RETURNING 1)`
    : Prisma.sql`quota AS (SELECT 1), source AS (SELECT 1)`;
  const [accepted] = await tx.$queryRaw<(Backup & { reserved: boolean })[]>`
    WITH ${before}, backup AS (
      INSERT INTO backups (id, project_id, user_id, volume_id, snapshot_id, parent_id, name, description, status, size_gib, repository,
        container, availability_zone, policy_id, metadata, data_timestamp, created_at, updated_at)
      SELECT ${row.id}::uuid, ${row.projectId}, ${row.userId}, ${row.volumeId}::uuid, ${row.snapshotId}::uuid, ${row.parentId}::uuid,
        ${row.name}, ${row.description}, 'creating', ${row.sizeGib}::int, ${row.repository}, ${row.container}, ${row.availabilityZone}, ${row.policyId}::uuid,
        ${JSON.stringify(row.metadata)}::jsonb, ${row.dataTimestamp}::timestamptz, ${row.createdAt}::timestamptz, ${row.updatedAt}::timestamptz
      FROM source RETURNING *
    ), ${operationEntry(principal, operation, { id: randomUUID(), where: Prisma.sql`EXISTS (SELECT FROM backup)` })}
    SELECT EXISTS (SELECT FROM quota) AS reserved, ${backupColumns} FROM (SELECT) AS one LEFT JOIN backup ON true`;
  if (!accepted?.id) return accepted?.reserved === true ? "no-volume" : "no-quota";
  ringOnCommit(tx);
  const { reserved: _, ...entered } = accepted;
  return entered;
}
