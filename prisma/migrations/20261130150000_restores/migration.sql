-- Outside a transaction.
-- How long a restore takes is estimated from the newest ones: they are few among all that have succeeded.
DROP INDEX CONCURRENTLY IF EXISTS "operations_restores_idx";
CREATE INDEX CONCURRENTLY "operations_restores_idx" ON "operations"("created_at") WHERE "kind" = 'backup-restore' AND "state" = 'succeeded';
