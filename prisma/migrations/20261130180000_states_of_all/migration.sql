-- Outside a transaction.
-- How protected all volumes are is read in the order of this index, without their backups' rows.
DROP INDEX CONCURRENTLY IF EXISTS "backups_whole_idx";
CREATE INDEX CONCURRENTLY "backups_whole_idx" ON "backups"("volume_id", "project_id", "data_timestamp" DESC) INCLUDE ("id")
  WHERE "deleted_at" IS NULL AND "status" IN ('available', 'restoring');
-- Volumes that name a policy in their metadata.
DROP INDEX CONCURRENTLY IF EXISTS "volumes_named_policy_idx";
CREATE INDEX CONCURRENTLY "volumes_named_policy_idx" ON "volumes"("id") WHERE "metadata" ? 'tephra:policy';
-- What has failed lately.
DROP INDEX CONCURRENTLY IF EXISTS "operations_failed_idx";
CREATE INDEX CONCURRENTLY "operations_failed_idx" ON "operations"("finished_at") WHERE "state" = 'failed';
