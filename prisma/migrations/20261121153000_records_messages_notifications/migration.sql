-- DropForeignKey
ALTER TABLE "backups" DROP CONSTRAINT "backups_parent_id_fkey";

-- AlterTable
ALTER TABLE "operations" ADD COLUMN     "result" JSONB;

-- CreateTable
CREATE TABLE "messages" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "request_id" TEXT NOT NULL,
    "event_id" TEXT NOT NULL,
    "user_message" TEXT NOT NULL,
    "message_level" TEXT NOT NULL,
    "resource_type" TEXT NOT NULL,
    "resource_uuid" UUID NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "messages_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "notifications" (
    "id" UUID NOT NULL,
    "sequence" BIGSERIAL NOT NULL,
    "event_type" TEXT NOT NULL,
    "host" TEXT NOT NULL,
    "payload" JSONB NOT NULL,
    "spread" BOOLEAN NOT NULL DEFAULT false,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "notifications_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "deliveries" (
    "id" UUID NOT NULL,
    "notification_id" UUID NOT NULL,
    "target" TEXT NOT NULL,
    "state" TEXT NOT NULL DEFAULT 'pending',
    "attempts" INTEGER NOT NULL DEFAULT 0,
    "run_after" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "last_error" TEXT,

    CONSTRAINT "deliveries_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "backups_service_metadata_idx" ON "backups"("service_metadata");

-- CreateIndex
CREATE INDEX "messages_project_id_created_at_id_idx" ON "messages"("project_id", "created_at", "id");

-- CreateIndex
CREATE INDEX "messages_created_at_idx" ON "messages"("created_at");

-- CreateIndex
CREATE INDEX "notifications_spread_sequence_idx" ON "notifications"("spread", "sequence");

-- CreateIndex
CREATE INDEX "deliveries_state_run_after_idx" ON "deliveries"("state", "run_after");

-- CreateIndex
CREATE UNIQUE INDEX "deliveries_notification_id_target_key" ON "deliveries"("notification_id", "target");

-- AddForeignKey
ALTER TABLE "deliveries" ADD CONSTRAINT "deliveries_notification_id_fkey" FOREIGN KEY ("notification_id") REFERENCES "notifications"("id") ON DELETE CASCADE ON UPDATE CASCADE;
