-- AlterTable
ALTER TABLE "volumes" ADD COLUMN     "image_id" UUID NOT NULL DEFAULT gen_random_uuid();

-- AlterTable
ALTER TABLE "attachments" ADD COLUMN     "interface" TEXT NOT NULL DEFAULT 'virtio',
ADD COLUMN     "plugged" BOOLEAN NOT NULL DEFAULT true;

-- AlterTable
ALTER TABLE "group_snapshots" ADD COLUMN     "ovf" TEXT;

-- CreateTable
CREATE TABLE "machines" (
    "project_id" TEXT NOT NULL,
    "instance_id" UUID NOT NULL,
    "configuration" JSONB NOT NULL,
    "content" TEXT,

    CONSTRAINT "machines_pkey" PRIMARY KEY ("project_id","instance_id")
);

-- CreateTable
CREATE TABLE "machine_nics" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "instance_id" UUID NOT NULL,
    "name" TEXT NOT NULL,
    "mac" TEXT NOT NULL,
    "network" TEXT,
    "interface" TEXT NOT NULL DEFAULT 'virtio',
    "linked" BOOLEAN NOT NULL DEFAULT true,
    "plugged" BOOLEAN NOT NULL DEFAULT true,

    CONSTRAINT "machine_nics_pkey" PRIMARY KEY ("project_id","id")
);

-- CreateTable
CREATE TABLE "snapshot_attachments" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "instance_id" UUID NOT NULL,
    "volume_id" UUID NOT NULL,
    "group_snapshot_id" UUID NOT NULL,
    "snapshot_id" UUID NOT NULL,
    "plugged" BOOLEAN NOT NULL DEFAULT false,
    "interface" TEXT NOT NULL DEFAULT 'virtio',
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "snapshot_attachments_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "machine_nics_project_id_mac_idx" ON "machine_nics"("project_id", "mac");

-- CreateIndex
CREATE UNIQUE INDEX "machine_nics_project_id_instance_id_name_key" ON "machine_nics"("project_id", "instance_id", "name");

-- CreateIndex
CREATE INDEX "snapshot_attachments_group_snapshot_id_idx" ON "snapshot_attachments"("group_snapshot_id");

-- CreateIndex
CREATE INDEX "snapshot_attachments_volume_id_idx" ON "snapshot_attachments"("volume_id");

-- CreateIndex
CREATE UNIQUE INDEX "snapshot_attachments_project_id_instance_id_volume_id_key" ON "snapshot_attachments"("project_id", "instance_id", "volume_id");

-- AddForeignKey
ALTER TABLE "machines" ADD CONSTRAINT "machines_project_id_instance_id_fkey" FOREIGN KEY ("project_id", "instance_id") REFERENCES "instances"("project_id", "id") ON DELETE CASCADE ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "machine_nics" ADD CONSTRAINT "machine_nics_project_id_instance_id_fkey" FOREIGN KEY ("project_id", "instance_id") REFERENCES "machines"("project_id", "instance_id") ON DELETE CASCADE ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "snapshot_attachments" ADD CONSTRAINT "snapshot_attachments_volume_id_fkey" FOREIGN KEY ("volume_id") REFERENCES "volumes"("id") ON DELETE RESTRICT ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "snapshot_attachments" ADD CONSTRAINT "snapshot_attachments_group_snapshot_id_fkey" FOREIGN KEY ("group_snapshot_id") REFERENCES "group_snapshots"("id") ON DELETE RESTRICT ON UPDATE CASCADE;
