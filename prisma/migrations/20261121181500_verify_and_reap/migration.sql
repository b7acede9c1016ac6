-- AlterTable
ALTER TABLE "backups" ADD COLUMN     "verified_at" TIMESTAMPTZ(3),
ADD COLUMN     "verified_mode" TEXT;

-- CreateTable
CREATE TABLE "schedules" (
    "name" TEXT NOT NULL,
    "ran_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "schedules_pkey" PRIMARY KEY ("name")
);

-- CreateTable
CREATE TABLE "condemned_places" (
    "container" TEXT NOT NULL,
    "prefix" TEXT NOT NULL,
    "operation_id" UUID NOT NULL,

    CONSTRAINT "condemned_places_pkey" PRIMARY KEY ("container","prefix")
);

-- CreateIndex
CREATE INDEX "condemned_places_operation_id_idx" ON "condemned_places"("operation_id");
