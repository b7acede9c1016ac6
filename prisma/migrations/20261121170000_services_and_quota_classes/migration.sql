-- AlterTable
ALTER TABLE "quotas" ADD COLUMN     "per_volume_gigabytes" INTEGER;

-- CreateTable
CREATE TABLE "quota_classes" (
    "name" TEXT NOT NULL,
    "volumes" INTEGER,
    "snapshots" INTEGER,
    "gigabytes" INTEGER,
    "backups" INTEGER,
    "backup_gigabytes" INTEGER,
    "per_volume_gigabytes" INTEGER,

    CONSTRAINT "quota_classes_pkey" PRIMARY KEY ("name")
);

-- CreateTable
CREATE TABLE "disabled_services" (
    "binary" TEXT NOT NULL,
    "host" TEXT NOT NULL,
    "reason" TEXT,
    "disabled_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "disabled_services_pkey" PRIMARY KEY ("binary","host")
);
