-- CreateSchema
CREATE SCHEMA IF NOT EXISTS "public";

-- CreateTable
CREATE TABLE "quotas" (
    "project_id" TEXT NOT NULL,
    "volumes" INTEGER,
    "snapshots" INTEGER,
    "gigabytes" INTEGER,
    "backups" INTEGER,
    "backup_gigabytes" INTEGER,
    "volumes_used" INTEGER NOT NULL DEFAULT 0,
    "snapshots_used" INTEGER NOT NULL DEFAULT 0,
    "gigabytes_used" INTEGER NOT NULL DEFAULT 0,
    "backups_used" INTEGER NOT NULL DEFAULT 0,
    "backup_gigabytes_used" INTEGER NOT NULL DEFAULT 0,

    CONSTRAINT "quotas_pkey" PRIMARY KEY ("project_id")
);

-- CreateTable
CREATE TABLE "volumes" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "name" TEXT,
    "description" TEXT,
    "status" TEXT NOT NULL,
    "previous_status" TEXT,
    "size_gib" INTEGER NOT NULL,
    "size_bytes" BIGINT NOT NULL,
    "backend" TEXT NOT NULL,
    "availability_zone" TEXT NOT NULL,
    "bootable" BOOLEAN NOT NULL DEFAULT false,
    "metadata" JSONB NOT NULL DEFAULT '{}',
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),
    "launched_at" TIMESTAMPTZ(3),

    CONSTRAINT "volumes_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "attachments" (
    "id" UUID NOT NULL,
    "volume_id" UUID NOT NULL,
    "server_id" TEXT,
    "host_name" TEXT,
    "device" TEXT,
    "attached_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "attachments_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "snapshots" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "volume_id" UUID NOT NULL,
    "name" TEXT,
    "description" TEXT,
    "status" TEXT NOT NULL,
    "size_gib" INTEGER NOT NULL,
    "size_bytes" BIGINT NOT NULL,
    "metadata" JSONB NOT NULL DEFAULT '{}',
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),

    CONSTRAINT "snapshots_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "backups" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "volume_id" UUID NOT NULL,
    "snapshot_id" UUID,
    "parent_id" UUID,
    "name" TEXT,
    "description" TEXT,
    "status" TEXT NOT NULL,
    "fail_reason" VARCHAR(255),
    "damage" TEXT,
    "size_gib" INTEGER NOT NULL,
    "volume_bytes" BIGINT,
    "stored_bytes" BIGINT,
    "object_count" INTEGER NOT NULL DEFAULT 0,
    "block_bytes" INTEGER,
    "repository" TEXT NOT NULL,
    "container" TEXT,
    "service_metadata" TEXT,
    "service" TEXT,
    "host" TEXT,
    "availability_zone" TEXT,
    "metadata" JSONB NOT NULL DEFAULT '{}',
    "encryption_key_id" TEXT,
    "restore_volume_id" UUID,
    "data_timestamp" TIMESTAMPTZ(3) NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),
    "deleted_at" TIMESTAMPTZ(3),

    CONSTRAINT "backups_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "operations" (
    "id" UUID NOT NULL,
    "kind" TEXT NOT NULL,
    "state" TEXT NOT NULL DEFAULT 'queued',
    "project_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "request_id" TEXT NOT NULL,
    "backup_id" UUID,
    "volume_id" UUID,
    "snapshot_id" UUID,
    "input" JSONB NOT NULL DEFAULT '{}',
    "plan" JSONB,
    "remaining" INTEGER NOT NULL DEFAULT 0,
    "bytes_total" BIGINT NOT NULL DEFAULT 0,
    "bytes_stored" BIGINT NOT NULL DEFAULT 0,
    "fail_reason" TEXT,
    "cancel_requested" BOOLEAN NOT NULL DEFAULT false,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "started_at" TIMESTAMPTZ(3),
    "updated_at" TIMESTAMPTZ(3),
    "finished_at" TIMESTAMPTZ(3),

    CONSTRAINT "operations_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "tasks" (
    "id" UUID NOT NULL,
    "operation_id" UUID NOT NULL,
    "kind" TEXT NOT NULL,
    "ordinal" INTEGER NOT NULL,
    "state" TEXT NOT NULL DEFAULT 'ready',
    "rank" INTEGER NOT NULL,
    "project_id" TEXT NOT NULL,
    "queued_at" TIMESTAMPTZ(3) NOT NULL,
    "needs" TEXT[],
    "queue" TEXT,
    "dispatch" INTEGER NOT NULL DEFAULT 0,
    "dispatched_at" TIMESTAMPTZ(3),
    "run_after" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "claim" INTEGER NOT NULL DEFAULT 0,
    "attempts" INTEGER NOT NULL DEFAULT 0,
    "lease_until" TIMESTAMPTZ(3),
    "worker_id" TEXT,
    "range_offset" BIGINT NOT NULL DEFAULT 0,
    "range_length" BIGINT NOT NULL DEFAULT 0,
    "bytes_done" BIGINT NOT NULL DEFAULT 0,
    "bytes_best" BIGINT NOT NULL DEFAULT 0,
    "bytes_stored" BIGINT NOT NULL DEFAULT 0,
    "bytes_twice" BIGINT NOT NULL DEFAULT 0,
    "input" JSONB NOT NULL DEFAULT '{}',
    "report" JSONB,
    "fail_reason" TEXT,
    "started_at" TIMESTAMPTZ(3),
    "finished_at" TIMESTAMPTZ(3),

    CONSTRAINT "tasks_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "workers" (
    "id" TEXT NOT NULL,
    "host" TEXT NOT NULL,
    "pid" INTEGER NOT NULL,
    "queue" TEXT NOT NULL,
    "reaches" TEXT[],
    "unreachable" JSONB NOT NULL DEFAULT '{}',
    "slots" INTEGER NOT NULL,
    "started_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "heartbeat_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "workers_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "volumes_project_id_created_at_id_idx" ON "volumes"("project_id", "created_at", "id");

-- CreateIndex
CREATE INDEX "attachments_volume_id_idx" ON "attachments"("volume_id");

-- CreateIndex
CREATE INDEX "snapshots_project_id_created_at_id_idx" ON "snapshots"("project_id", "created_at", "id");

-- CreateIndex
CREATE INDEX "snapshots_volume_id_idx" ON "snapshots"("volume_id");

-- CreateIndex
CREATE INDEX "backups_project_id_deleted_at_created_at_id_idx" ON "backups"("project_id", "deleted_at", "created_at", "id");

-- CreateIndex
CREATE INDEX "backups_volume_id_project_id_idx" ON "backups"("volume_id", "project_id");

-- CreateIndex
CREATE INDEX "backups_parent_id_idx" ON "backups"("parent_id");

-- CreateIndex
CREATE INDEX "backups_status_idx" ON "backups"("status");

-- CreateIndex
CREATE INDEX "operations_state_created_at_idx" ON "operations"("state", "created_at");

-- CreateIndex
CREATE INDEX "operations_backup_id_idx" ON "operations"("backup_id");

-- CreateIndex
CREATE INDEX "operations_volume_id_idx" ON "operations"("volume_id");

-- CreateIndex
CREATE INDEX "operations_created_at_id_idx" ON "operations"("created_at", "id");

-- CreateIndex
CREATE INDEX "tasks_state_project_id_rank_queued_at_ordinal_idx" ON "tasks"("state", "project_id", "rank", "queued_at", "ordinal");

-- CreateIndex
CREATE INDEX "tasks_state_lease_until_idx" ON "tasks"("state", "lease_until");

-- CreateIndex
CREATE INDEX "tasks_worker_id_state_idx" ON "tasks"("worker_id", "state");

-- CreateIndex
CREATE UNIQUE INDEX "tasks_operation_id_kind_ordinal_key" ON "tasks"("operation_id", "kind", "ordinal");

-- CreateIndex
CREATE INDEX "workers_heartbeat_at_idx" ON "workers"("heartbeat_at");

-- AddForeignKey
ALTER TABLE "attachments" ADD CONSTRAINT "attachments_volume_id_fkey" FOREIGN KEY ("volume_id") REFERENCES "volumes"("id") ON DELETE CASCADE ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "snapshots" ADD CONSTRAINT "snapshots_volume_id_fkey" FOREIGN KEY ("volume_id") REFERENCES "volumes"("id") ON DELETE RESTRICT ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "backups" ADD CONSTRAINT "backups_parent_id_fkey" FOREIGN KEY ("parent_id") REFERENCES "backups"("id") ON DELETE SET NULL ON UPDATE CASCADE;

-- AddForeignKey
ALTER TABLE "tasks" ADD CONSTRAINT "tasks_operation_id_fkey" FOREIGN KEY ("operation_id") REFERENCES "operations"("id") ON DELETE CASCADE ON UPDATE CASCADE;



-- The doorbell: whoever makes a task ready wakes the dispatchers at commit. Nothing depends on it being heard.
CREATE FUNCTION "ring_tasks_ready"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('tephra_tasks_ready', '');
  RETURN NULL;
END
$$;

CREATE TRIGGER "tasks_ready" AFTER INSERT ON "tasks" FOR EACH STATEMENT EXECUTE FUNCTION "ring_tasks_ready"();
