-- AlterTable
ALTER TABLE "workers" ADD COLUMN     "free_bytes" JSONB NOT NULL DEFAULT '{}';

-- AlterTable
ALTER TABLE "instances" ADD COLUMN     "freeze_mountpoints" JSONB;
