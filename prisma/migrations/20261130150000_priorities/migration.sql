-- Restores that an older release has begun keep the rank that they have.
ALTER TABLE "operations" ADD COLUMN "priority" TEXT NOT NULL DEFAULT 'normal';
ALTER TABLE "policies" ADD COLUMN "priority" TEXT NOT NULL DEFAULT 'normal';
-- Whether any task of high priority is ready, whatever else waits.
CREATE INDEX "tasks_high_idx" ON "tasks"("rank") WHERE "state" = 'ready' AND "rank" < 0;
