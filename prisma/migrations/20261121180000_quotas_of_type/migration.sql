-- AlterTable
ALTER TABLE "quotas" ADD COLUMN     "gigabytes_of_type" INTEGER,
ADD COLUMN     "groups" INTEGER,
ADD COLUMN     "snapshots_of_type" INTEGER,
ADD COLUMN     "volumes_of_type" INTEGER;

-- AlterTable
ALTER TABLE "quota_classes" ADD COLUMN     "gigabytes_of_type" INTEGER,
ADD COLUMN     "groups" INTEGER,
ADD COLUMN     "snapshots_of_type" INTEGER,
ADD COLUMN     "volumes_of_type" INTEGER;

