-- Outside a transaction.
-- What somebody looks for begins with these letters, whatever the capitals and the collation.
DROP INDEX CONCURRENTLY IF EXISTS "backups_name_idx";
CREATE INDEX CONCURRENTLY "backups_name_idx" ON "backups"(lower("name") text_pattern_ops) WHERE "deleted_at" IS NULL;
DROP INDEX CONCURRENTLY IF EXISTS "volumes_name_idx";
CREATE INDEX CONCURRENTLY "volumes_name_idx" ON "volumes"(lower("name") text_pattern_ops);
DROP INDEX CONCURRENTLY IF EXISTS "snapshots_name_idx";
CREATE INDEX CONCURRENTLY "snapshots_name_idx" ON "snapshots"(lower("name") text_pattern_ops);
