-- AlterTable
ALTER TABLE "volumes" ADD COLUMN     "restored_at" TIMESTAMPTZ(3),
ADD COLUMN     "restored_from_id" UUID;
