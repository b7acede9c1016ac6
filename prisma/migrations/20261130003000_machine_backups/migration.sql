-- CreateTable
CREATE TABLE "machine_backups" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "request_id" TEXT NOT NULL,
    "instance_id" UUID NOT NULL,
    "description" TEXT,
    "status" TEXT NOT NULL,
    "from_checkpoint_id" UUID,
    "to_checkpoint_id" UUID,
    "require_consistency" BOOLEAN NOT NULL DEFAULT false,
    "abandoned" BOOLEAN NOT NULL DEFAULT false,
    "worker_id" TEXT NOT NULL,
    "worker_host" TEXT NOT NULL,
    "lease_until" TIMESTAMPTZ(3) NOT NULL,
    "daemon_pid" INTEGER,
    "daemon_start_ticks" BIGINT,
    "daemon_folder" TEXT,
    "leftovers" BOOLEAN NOT NULL DEFAULT false,
    "taken_at" TIMESTAMPTZ(3),
    "consistency" TEXT,
    "frozen_ms" INTEGER,
    "fail_reason" TEXT,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),
    "ended_at" TIMESTAMPTZ(3),

    CONSTRAINT "machine_backups_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "machine_backup_disks" (
    "backup_id" UUID NOT NULL,
    "volume_id" UUID NOT NULL,
    "position" INTEGER NOT NULL,
    "since_id" UUID,
    "recorded" BOOLEAN NOT NULL,
    "size_bytes" BIGINT,
    "export_socket" TEXT,
    "export_name" TEXT,
    "changes" TEXT,

    CONSTRAINT "machine_backup_disks_pkey" PRIMARY KEY ("backup_id","volume_id")
);

-- CreateTable
CREATE TABLE "machine_checkpoints" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "instance_id" UUID NOT NULL,
    "parent_id" UUID,
    "description" TEXT,
    "status" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),

    CONSTRAINT "machine_checkpoints_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "machine_checkpoint_disks" (
    "checkpoint_id" UUID NOT NULL,
    "volume_id" UUID NOT NULL,
    "position" INTEGER NOT NULL,

    CONSTRAINT "machine_checkpoint_disks_pkey" PRIMARY KEY ("checkpoint_id","volume_id")
);

-- AlterTable
ALTER TABLE "volumes" ADD COLUMN     "machine_backup_id" UUID;

-- AlterTable
ALTER TABLE "image_transfers" ADD COLUMN     "backup_id" UUID;

-- CreateIndex
CREATE INDEX "machine_backups_project_id_instance_id_created_at_id_idx" ON "machine_backups"("project_id", "instance_id", "created_at", "id");

-- CreateIndex
CREATE INDEX "machine_checkpoints_project_id_instance_id_created_at_id_idx" ON "machine_checkpoints"("project_id", "instance_id", "created_at", "id");

-- AddForeignKey
ALTER TABLE "machine_backup_disks" ADD CONSTRAINT "machine_backup_disks_backup_id_fkey" FOREIGN KEY ("backup_id") REFERENCES "machine_backups"("id") ON DELETE CASCADE ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "machine_checkpoint_disks" ADD CONSTRAINT "machine_checkpoint_disks_checkpoint_id_fkey" FOREIGN KEY ("checkpoint_id") REFERENCES "machine_checkpoints"("id") ON DELETE CASCADE ON UPDATE CASCADE;

-- A machine is locked by the one backup of it that has not ended. Workers look for theirs twice a second.
CREATE UNIQUE INDEX "machine_backups_live_idx" ON "machine_backups" ("project_id", "instance_id") WHERE "ended_at" IS NULL;
CREATE INDEX "machine_backups_leftovers_idx" ON "machine_backups" ("worker_host") WHERE "leftovers";

CREATE TRIGGER "machine_backups_audited" AFTER INSERT ON "machine_backups" FOR EACH ROW EXECUTE FUNCTION "audit_transition"('machine_backup', 'status');
CREATE TRIGGER "machine_backups_moved" AFTER UPDATE OF "status" ON "machine_backups" FOR EACH ROW
  WHEN (OLD."status" IS DISTINCT FROM NEW."status") EXECUTE FUNCTION "audit_transition"('machine_backup', 'status');
