-- Which backups are damaged is asked for all volumes at once: there are few.
CREATE INDEX "backups_damaged_idx" ON "backups"("id") WHERE "damage" IS NOT NULL AND "deleted_at" IS NULL;
