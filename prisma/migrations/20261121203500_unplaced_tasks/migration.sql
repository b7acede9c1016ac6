-- AlterTable
ALTER TABLE "tasks" ADD COLUMN     "unplaced_at" TIMESTAMPTZ(3);
