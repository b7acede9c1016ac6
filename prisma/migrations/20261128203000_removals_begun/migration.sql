-- AlterTable
ALTER TABLE "backups" ADD COLUMN     "removal_begun_at" TIMESTAMPTZ(3);

-- AlterTable
ALTER TABLE "snapshots" ADD COLUMN     "removal_begun_at" TIMESTAMPTZ(3);

-- AlterTable
ALTER TABLE "volumes" ADD COLUMN     "removal_begun_at" TIMESTAMPTZ(3);
