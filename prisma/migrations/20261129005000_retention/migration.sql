-- AlterTable
ALTER TABLE "operations" ADD COLUMN     "past_attempts" INTEGER NOT NULL DEFAULT 0,
ADD COLUMN     "past_bytes_done" BIGINT NOT NULL DEFAULT 0,
ADD COLUMN     "past_bytes_stored" BIGINT NOT NULL DEFAULT 0,
ADD COLUMN     "past_bytes_twice" BIGINT NOT NULL DEFAULT 0,
ADD COLUMN     "past_tasks" INTEGER NOT NULL DEFAULT 0,
ADD COLUMN     "past_tasks_done" INTEGER NOT NULL DEFAULT 0,
ADD COLUMN     "tasks_removed_at" TIMESTAMPTZ(3);

-- What is old enough to be forgotten is found by its age: first the tasks go, then the operation.
CREATE INDEX "operations_with_tasks_idx" ON "operations"("finished_at")
  WHERE "tasks_removed_at" IS NULL AND "state" IN ('succeeded', 'failed', 'cancelled');
CREATE INDEX "operations_without_tasks_idx" ON "operations"("finished_at") WHERE "tasks_removed_at" IS NOT NULL;
CREATE INDEX "operations_reaps_idx" ON "operations"("finished_at") WHERE "kind" = 'repository-reap';
