-- Policies: what is backed up when, and how long it is kept (docs/policies.md).

-- AlterTable
ALTER TABLE "backups" ADD COLUMN     "policy_id" UUID;

-- AlterTable
ALTER TABLE "operations" ADD COLUMN     "policy_id" UUID;

-- CreateTable
CREATE TABLE "policies" (
    "id" UUID NOT NULL,
    "project_id" TEXT,
    "user_id" TEXT NOT NULL,
    "name" TEXT NOT NULL,
    "description" TEXT,
    "enabled" BOOLEAN NOT NULL DEFAULT true,
    "schedule" JSONB NOT NULL,
    "kind" JSONB NOT NULL,
    "retention" JSONB,
    "squash" JSONB,
    "repository" TEXT,
    "force" BOOLEAN NOT NULL DEFAULT true,
    "target_hours" INTEGER,
    "next_at" TIMESTAMPTZ(3),
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),

    CONSTRAINT "policies_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "policy_assignments" (
    "id" UUID NOT NULL,
    "policy_id" UUID NOT NULL,
    "scope" TEXT NOT NULL,
    "project_id" TEXT NOT NULL,
    "volume_id" UUID,
    "instance_id" UUID,
    "user_id" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "policy_assignments_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "policy_runs" (
    "id" UUID NOT NULL,
    "policy_id" UUID NOT NULL,
    "due_at" TIMESTAMPTZ(3) NOT NULL,
    "scheduled" BOOLEAN NOT NULL,
    "state" TEXT NOT NULL,
    "reason" TEXT,
    "user_id" TEXT,
    "started_at" TIMESTAMPTZ(3),
    "window_end" TIMESTAMPTZ(3),
    "finished_at" TIMESTAMPTZ(3),
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "policy_runs_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "policy_run_items" (
    "id" UUID NOT NULL,
    "run_id" UUID NOT NULL,
    "policy_id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "volume_id" UUID,
    "instance_id" UUID,
    "starts_at" TIMESTAMPTZ(3) NOT NULL,
    "state" TEXT NOT NULL DEFAULT 'waiting',
    "reason" TEXT,
    "incremental" BOOLEAN,
    "backup_id" UUID,
    "operation_id" UUID,
    "started_at" TIMESTAMPTZ(3),
    "finished_at" TIMESTAMPTZ(3),

    CONSTRAINT "policy_run_items_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "volume_exclusions" (
    "volume_id" UUID NOT NULL,
    "reason" TEXT NOT NULL,
    "until" TIMESTAMPTZ(3),
    "user_id" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "volume_exclusions_pkey" PRIMARY KEY ("volume_id")
);

-- CreateIndex
CREATE UNIQUE INDEX "policies_project_id_name_key" ON "policies"("project_id", "name");
CREATE INDEX "policies_next_at_idx" ON "policies"("next_at");
CREATE UNIQUE INDEX "policies_published_name_key" ON "policies"("name") WHERE "project_id" IS NULL;

-- CreateIndex
CREATE UNIQUE INDEX "policy_assignments_volume_id_key" ON "policy_assignments"("volume_id");
CREATE UNIQUE INDEX "policy_assignments_project_id_instance_id_key" ON "policy_assignments"("project_id", "instance_id");
CREATE INDEX "policy_assignments_policy_id_idx" ON "policy_assignments"("policy_id");
CREATE UNIQUE INDEX "policy_assignments_of_project_key" ON "policy_assignments"("project_id") WHERE "scope" = 'project';

-- CreateIndex
CREATE INDEX "policy_runs_policy_id_due_at_id_idx" ON "policy_runs"("policy_id", "due_at", "id");
CREATE INDEX "policy_runs_created_at_idx" ON "policy_runs"("created_at");
-- However many processes find a policy due, its run of that time begins once.
CREATE UNIQUE INDEX "policy_runs_due_once_key" ON "policy_runs"("policy_id", "due_at") WHERE "scheduled";
CREATE INDEX "policy_runs_live_idx" ON "policy_runs"("policy_id") WHERE "finished_at" IS NULL;

-- CreateIndex
CREATE INDEX "policy_run_items_run_id_idx" ON "policy_run_items"("run_id");
CREATE INDEX "policy_run_items_waiting_idx" ON "policy_run_items"("starts_at") WHERE "state" = 'waiting';
CREATE INDEX "policy_run_items_running_idx" ON "policy_run_items"("operation_id") WHERE "state" = 'running';

-- AddForeignKey
ALTER TABLE "policy_assignments" ADD CONSTRAINT "policy_assignments_policy_id_fkey" FOREIGN KEY ("policy_id") REFERENCES "policies"("id") ON DELETE CASCADE ON UPDATE CASCADE;
ALTER TABLE "policy_assignments" ADD CONSTRAINT "policy_assignments_volume_id_fkey" FOREIGN KEY ("volume_id") REFERENCES "volumes"("id") ON DELETE CASCADE ON UPDATE CASCADE;
ALTER TABLE "policy_assignments" ADD CONSTRAINT "policy_assignments_project_id_instance_id_fkey" FOREIGN KEY ("project_id", "instance_id") REFERENCES "instances"("project_id", "id") ON DELETE CASCADE ON UPDATE CASCADE;
ALTER TABLE "policy_runs" ADD CONSTRAINT "policy_runs_policy_id_fkey" FOREIGN KEY ("policy_id") REFERENCES "policies"("id") ON DELETE CASCADE ON UPDATE CASCADE;
ALTER TABLE "policy_run_items" ADD CONSTRAINT "policy_run_items_run_id_fkey" FOREIGN KEY ("run_id") REFERENCES "policy_runs"("id") ON DELETE CASCADE ON UPDATE CASCADE;
ALTER TABLE "volume_exclusions" ADD CONSTRAINT "volume_exclusions_volume_id_fkey" FOREIGN KEY ("volume_id") REFERENCES "volumes"("id") ON DELETE CASCADE ON UPDATE CASCADE;
