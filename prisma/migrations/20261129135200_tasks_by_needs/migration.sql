-- A pass of the reconciler asks which lists of needs there are among ready tasks, and which tasks no live worker is able to run.
CREATE INDEX "tasks_ready_needs_idx" ON "tasks"("needs") WHERE "state" = 'ready';
CREATE INDEX "tasks_unplaced_idx" ON "tasks"("id") WHERE "unplaced_at" IS NOT NULL AND "state" IN ('ready', 'dispatched', 'running');
