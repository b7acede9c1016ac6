-- AlterTable
ALTER TABLE "volumes" ADD COLUMN     "admin_metadata" JSONB NOT NULL DEFAULT '{}',
ADD COLUMN     "snapshot_id" UUID,
ADD COLUMN     "source_volume_id" UUID;

