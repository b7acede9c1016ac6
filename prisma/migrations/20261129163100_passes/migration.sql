-- A pass of the reconciler examines a few live operations after another, whether they have tasks left, and ready tasks that have been claimed
-- before. The first index also tells an operation's position among those that wait.
CREATE INDEX "operations_live_idx" ON "operations"("created_at", "id", "state") WHERE "state" IN ('queued', 'running');
DROP INDEX "operations_queued_idx";
CREATE INDEX "tasks_live_idx" ON "tasks"("operation_id") WHERE "state" IN ('ready', 'dispatched', 'running', 'blocked');
CREATE INDEX "tasks_retried_idx" ON "tasks"("attempts") WHERE "state" = 'ready' AND "attempts" > 0;
