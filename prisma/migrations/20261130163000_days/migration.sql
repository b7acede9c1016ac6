-- Outside a transaction.
-- What runs of policies have skipped is told for each volume and day.
DROP INDEX CONCURRENTLY IF EXISTS "policy_run_items_skipped_idx";
CREATE INDEX CONCURRENTLY "policy_run_items_skipped_idx" ON "policy_run_items"((coalesce("volume_id", "instance_id")), "starts_at") WHERE "state" = 'skipped';
