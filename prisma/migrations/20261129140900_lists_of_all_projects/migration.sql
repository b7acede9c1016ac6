-- Pages of all projects, newest first, and an operation's position among those that wait.
CREATE INDEX "backups_deleted_at_created_at_id_idx" ON "backups"("deleted_at", "created_at", "id");
CREATE INDEX "volumes_created_at_id_idx" ON "volumes"("created_at", "id");
CREATE INDEX "operations_queued_idx" ON "operations"("created_at", "id") WHERE "state" = 'queued';
