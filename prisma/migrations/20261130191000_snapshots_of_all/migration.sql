-- Outside a transaction.
-- The snapshots of all projects are read in the order of this index.
DROP INDEX CONCURRENTLY IF EXISTS "snapshots_created_at_id_idx";
CREATE INDEX CONCURRENTLY "snapshots_created_at_id_idx" ON "snapshots"("created_at", "id");
