-- CreateTable
CREATE TABLE "image_servers" (
    "id" UUID NOT NULL,
    "host" TEXT NOT NULL,
    "pid" INTEGER NOT NULL,
    "url" TEXT NOT NULL,
    "backends" TEXT[],
    "started_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "heartbeat_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "image_servers_pkey" PRIMARY KEY ("id")
);

-- CreateTable
CREATE TABLE "image_transfers" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "request_id" TEXT NOT NULL,
    "volume_id" UUID NOT NULL,
    "backend" TEXT NOT NULL,
    "direction" TEXT NOT NULL,
    "format" TEXT NOT NULL,
    "shallow" BOOLEAN NOT NULL DEFAULT false,
    "status" TEXT NOT NULL,
    "inactivity_timeout" INTEGER NOT NULL,
    "timeout_policy" TEXT NOT NULL,
    "server_id" UUID,
    "server_host" TEXT NOT NULL,
    "claim" INTEGER NOT NULL DEFAULT 0,
    "draft" TEXT,
    "draft_server_id" UUID,
    "in_place" BOOLEAN NOT NULL DEFAULT false,
    "ticket_nonce" TEXT,
    "ticket_hash" TEXT,
    "size_bytes" BIGINT,
    "transferred" BIGINT NOT NULL DEFAULT 0,
    "active" BOOLEAN NOT NULL DEFAULT false,
    "last_active_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "fail_reason" TEXT,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updated_at" TIMESTAMPTZ(3),
    "ended_at" TIMESTAMPTZ(3),

    CONSTRAINT "image_transfers_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE UNIQUE INDEX "image_transfers_ticket_hash_key" ON "image_transfers"("ticket_hash");

-- CreateIndex
CREATE INDEX "image_transfers_project_id_created_at_id_idx" ON "image_transfers"("project_id", "created_at", "id");

-- CreateIndex
CREATE INDEX "image_transfers_server_id_idx" ON "image_transfers"("server_id");

-- CreateIndex
CREATE INDEX "image_transfers_volume_id_idx" ON "image_transfers"("volume_id");

-- A volume is locked by the one transfer of it that has not ended.
CREATE UNIQUE INDEX "image_transfers_live_idx" ON "image_transfers" ("volume_id") WHERE "ended_at" IS NULL;
CREATE INDEX "image_transfers_ended_idx" ON "image_transfers" ("ended_at") WHERE "ended_at" IS NOT NULL;

CREATE TRIGGER "image_transfers_audited" AFTER INSERT ON "image_transfers" FOR EACH ROW EXECUTE FUNCTION "audit_transition"('image_transfer', 'status');
CREATE TRIGGER "image_transfers_moved" AFTER UPDATE OF "status" ON "image_transfers" FOR EACH ROW
  WHEN (OLD."status" IS DISTINCT FROM NEW."status") EXECUTE FUNCTION "audit_transition"('image_transfer', 'status');
