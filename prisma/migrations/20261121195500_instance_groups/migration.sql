-- AlterTable
ALTER TABLE "volumes" ADD COLUMN     "group_id" UUID;

-- AlterTable
ALTER TABLE "snapshots" ADD COLUMN     "group_snapshot_id" UUID;

-- AlterTable
ALTER TABLE "backups" ADD COLUMN     "group_snapshot_id" UUID;

-- AlterTable
ALTER TABLE "operations" ADD COLUMN     "group_id" UUID,
ADD COLUMN     "group_snapshot_id" UUID,
ADD COLUMN     "parent_id" UUID;

-- CreateTable
CREATE TABLE "instances" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "name" TEXT NOT NULL,
    "power_state" TEXT NOT NULL,
    "driver" TEXT NOT NULL,
    "qmp_socket" TEXT,
    "agent_socket" TEXT,
    "boot_volume_id" UUID,
    "configuration" JSONB NOT NULL DEFAULT '{}',
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),

    CONSTRAINT "instances_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "group_types" (
    "id" UUID NOT NULL,
    "name" TEXT NOT NULL,
    "description" TEXT,
    "is_public" BOOLEAN NOT NULL DEFAULT true,
    "group_specs" JSONB NOT NULL DEFAULT '{}',
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),

    CONSTRAINT "group_types_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "groups" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "name" TEXT,
    "description" TEXT,
    "status" TEXT NOT NULL,
    "group_type_id" UUID NOT NULL,
    "availability_zone" TEXT NOT NULL,
    "instance_id" UUID,
    "operation_id" UUID,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),

    CONSTRAINT "groups_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "group_snapshots" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "group_id" UUID NOT NULL,
    "group_type_id" UUID NOT NULL,
    "instance_id" UUID,
    "name" TEXT,
    "description" TEXT,
    "status" TEXT NOT NULL,
    "taken_at" TIMESTAMPTZ(3),
    "frozen_ms" INTEGER,
    "consistency" TEXT,
    "instance" JSONB,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),

    CONSTRAINT "group_snapshots_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "instances_project_id_created_at_id_idx" ON "instances"("project_id", "created_at", "id");

-- CreateIndex
CREATE UNIQUE INDEX "group_types_name_key" ON "group_types"("name");

-- CreateIndex
CREATE UNIQUE INDEX "groups_instance_id_key" ON "groups"("instance_id");

-- CreateIndex
CREATE INDEX "groups_project_id_created_at_id_idx" ON "groups"("project_id", "created_at", "id");

-- CreateIndex
CREATE INDEX "group_snapshots_group_id_created_at_id_idx" ON "group_snapshots"("group_id", "created_at", "id");

-- CreateIndex
CREATE INDEX "group_snapshots_project_id_created_at_id_idx" ON "group_snapshots"("project_id", "created_at", "id");

-- CreateIndex
CREATE INDEX "volumes_group_id_idx" ON "volumes"("group_id");

-- CreateIndex
CREATE INDEX "attachments_server_id_idx" ON "attachments"("server_id");

-- CreateIndex
CREATE INDEX "snapshots_group_snapshot_id_idx" ON "snapshots"("group_snapshot_id");

-- CreateIndex
CREATE INDEX "backups_group_snapshot_id_idx" ON "backups"("group_snapshot_id");

-- CreateIndex
CREATE INDEX "operations_group_id_idx" ON "operations"("group_id");

-- CreateIndex
CREATE INDEX "operations_parent_id_idx" ON "operations"("parent_id");

-- AddForeignKey
ALTER TABLE "volumes" ADD CONSTRAINT "volumes_group_id_fkey" FOREIGN KEY ("group_id") REFERENCES "groups"("id") ON DELETE SET NULL ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "groups" ADD CONSTRAINT "groups_group_type_id_fkey" FOREIGN KEY ("group_type_id") REFERENCES "group_types"("id") ON DELETE RESTRICT ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "groups" ADD CONSTRAINT "groups_instance_id_fkey" FOREIGN KEY ("instance_id") REFERENCES "instances"("id") ON DELETE SET NULL ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "group_snapshots" ADD CONSTRAINT "group_snapshots_group_id_fkey" FOREIGN KEY ("group_id") REFERENCES "groups"("id") ON DELETE RESTRICT ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "snapshots" ADD CONSTRAINT "snapshots_group_snapshot_id_fkey" FOREIGN KEY ("group_snapshot_id") REFERENCES "group_snapshots"("id") ON DELETE SET NULL ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "backups" ADD CONSTRAINT "backups_group_snapshot_id_fkey" FOREIGN KEY ("group_snapshot_id") REFERENCES "group_snapshots"("id") ON DELETE SET NULL ON UPDATE CASCADE;

-- The type of every instance group. Its id is the same everywhere, so that a list of types does not differ between installations.
INSERT INTO "group_types" ("id", "name", "description", "group_specs") VALUES
    ('ef1322a1-7c55-4a1f-9c86-3f5b8f0d6a11', 'instance_group_type', 'The volumes of one virtual machine',
     '{"consistent_group_snapshot_enabled": "<is> True"}');
