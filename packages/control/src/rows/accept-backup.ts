import { randomUUID } from "node:crypto";
import type { Database, Transaction } from "../db/database.ts";
import { backupColumns } from "../db/lock-row.ts";
import { isRetryableConflict } from "../db/outage.ts";
import { changeRows } from "../db/read.ts";
import { type Backup, Prisma, type Volume } from "../generated/client.ts";
import type { Principal } from "../principal.ts";
import { type NewOperation, operationEntry } from "../queue/operations.ts";
import { ringDispatchers, ringOnCommit } from "../queue/tasks.ts";
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

/** A backup with the operation that makes it. */
export interface BackupToAccept {
  row: NewBackupRow;
  operation: NewOperation;
}

/** The volume as it was read, the states that it may be in, and the quota to reserve (quotaReservation). */
export interface VolumeToMark {
  seen: Pick<Volume, "id" | "projectId" | "sizeBytes">;
  from: readonly OriginOf<"volume", "backing-up">[];
  quota: (said: Prisma.Sql) => Prisma.Sql;
}

/**
 * SQL: one statement that enters a backup, its operation and the first task for the only row of the query `source`, if it has one; otherwise
 * its answer has no id. `where` is evaluated in any case.
 */
const entry = (
  principal: Pick<Principal, "userId" | "requestId">,
  { row, operation }: BackupToAccept,
  { source, where = Prisma.sql`true` }: { source: Prisma.Sql; where?: Prisma.Sql },
): Prisma.Sql => Prisma.sql`
  WITH ${source}, backup AS (
    INSERT INTO backups (id, project_id, user_id, volume_id, snapshot_id, parent_id, name, description, status, size_gib, repository,
      container, availability_zone, policy_id, metadata, data_timestamp, created_at, updated_at)
    SELECT ${row.id}::uuid, ${row.projectId}, ${row.userId}, ${row.volumeId}::uuid, ${row.snapshotId}::uuid, ${row.parentId}::uuid,
      ${row.name}, ${row.description}, 'creating', ${row.sizeGib}::int, ${row.repository}, ${row.container}, ${row.availabilityZone}, ${row.policyId}::uuid,
      ${JSON.stringify(row.metadata)}::jsonb, ${row.dataTimestamp}::timestamptz, ${row.createdAt}::timestamptz, ${row.updatedAt}::timestamptz
    FROM source RETURNING *
  ), ${operationEntry(principal, operation, { id: randomUUID(), where: Prisma.sql`EXISTS (SELECT FROM backup)` })}
  SELECT ${backupColumns} FROM (SELECT WHERE ${where}) AS one LEFT JOIN backup ON true`;

/** Enters a backup, the operation that makes it and its first task. What it is made of is marked, and the quota reserved. */
export async function acceptBackup(
  tx: Transaction,
  principal: Pick<Principal, "userId" | "requestId">,
  backup: BackupToAccept,
): Promise<Backup> {
  const [accepted] = await tx.$queryRaw<Backup[]>(
    entry(principal, backup, { source: Prisma.sql`source AS (SELECT 1)` }),
  );
  if (!accepted?.id) throw new Error("a backup without conditions was not accepted");
  ringOnCommit(tx);
  return accepted;
}

/** SQLSTATE of a division by zero. */
const divided = "22012";

/**
 * Reserves the quota, marks the volume if it still is what was read, and enters the backup: all or nothing, in this order, in one statement
 * that is a transaction of its own. What many requests of a project wait for is held while the server runs it and writes its log.
 *
 * @returns null when it was not accepted, for whatever reason: then nothing was changed
 */
export async function acceptBackupAlone(
  database: Database,
  principal: Pick<Principal, "userId" | "requestId">,
  backup: BackupToAccept,
  { seen, from, quota }: VolumeToMark,
): Promise<Backup | null> {
  const statement = (said: Prisma.Sql): Prisma.Sql =>
    entry(principal, backup, {
      source: Prisma.sql`quota AS (${quota(said)} RETURNING 1), source AS (
        UPDATE volumes SET previous_status = status, status = 'backing-up', updated_at = now()
        WHERE id = ${seen.id}::uuid AND project_id = ${seen.projectId} AND size_bytes = ${seen.sizeBytes}::bigint
          AND status = ANY(${[...from]}) AND EXISTS (SELECT FROM quota) RETURNING 1)`,
      // A quota that was reserved for a volume that cannot be marked must not stay: the statement fails.
      where: Prisma.sql`NOT EXISTS (SELECT FROM quota) OR 1 / (SELECT count(*) FROM source) = 1`,
    });
  try {
    const [accepted] = await changeRows<Backup>(database, statement);
    if (!accepted?.id) return null;
    void ringDispatchers(database);
    return accepted;
  } catch (error) {
    if ((error as { code?: unknown }).code === divided || isRetryableConflict(error)) return null;
    throw error;
  }
}
