ALTER TABLE "image_transfers" ADD COLUMN "snapshot_id" UUID;

-- A volume, or a snapshot, is locked by the one transfer of it that has not ended.
DROP INDEX "image_transfers_live_idx";
CREATE UNIQUE INDEX "image_transfers_live_idx" ON "image_transfers" ("volume_id")
  WHERE "ended_at" IS NULL AND "snapshot_id" IS NULL AND "stored_backup_id" IS NULL;
CREATE UNIQUE INDEX "image_transfers_live_snapshot_idx" ON "image_transfers" ("snapshot_id") WHERE "ended_at" IS NULL;
