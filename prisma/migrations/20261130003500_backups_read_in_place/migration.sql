-- AlterTable
ALTER TABLE "image_servers" ADD COLUMN     "repositories" TEXT[];

-- AlterTable
ALTER TABLE "image_transfers" ADD COLUMN     "stored_backup_id" UUID;

-- A volume is locked by the one transfer of it that has not ended; what is read of its backups locks nothing.
DROP INDEX "image_transfers_live_idx";
CREATE UNIQUE INDEX "image_transfers_live_idx" ON "image_transfers" ("volume_id") WHERE "ended_at" IS NULL AND "stored_backup_id" IS NULL;
CREATE INDEX "image_transfers_stored_idx" ON "image_transfers" ("stored_backup_id") WHERE "ended_at" IS NULL AND "stored_backup_id" IS NOT NULL;
