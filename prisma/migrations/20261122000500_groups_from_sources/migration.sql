-- AlterTable
ALTER TABLE "groups" ADD COLUMN     "group_snapshot_id" UUID,
ADD COLUMN     "source_group_id" UUID;

-- AlterTable
ALTER TABLE "quotas" ADD COLUMN     "groups_used" INTEGER NOT NULL DEFAULT 0;

-- Groups that came with an instance are not counted.
INSERT INTO "quotas" ("project_id", "groups_used")
SELECT "project_id", count(*) FROM "groups" WHERE "instance_id" IS NULL GROUP BY "project_id"
ON CONFLICT ("project_id") DO UPDATE SET "groups_used" = EXCLUDED."groups_used";
