-- Which backups a policy has verified.
ALTER TABLE "policies" ADD COLUMN "verify" JSONB, ADD COLUMN "unverified" INTEGER NOT NULL DEFAULT 0;
ALTER TABLE "policy_run_items" ADD COLUMN "verify" TEXT;
CREATE INDEX "policy_run_items_verify_idx" ON "policy_run_items"("finished_at") WHERE "verify" = 'wanted' AND "state" = 'succeeded';
