-- AlterTable
ALTER TABLE "attachments" ADD COLUMN     "connector" JSONB,
ADD COLUMN     "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
ADD COLUMN     "mode" TEXT,
ADD COLUMN     "project_id" TEXT,
ADD COLUMN     "status" TEXT NOT NULL DEFAULT 'attached',
ALTER COLUMN "attached_at" DROP NOT NULL;

UPDATE "attachments" a SET "project_id" = v."project_id", "created_at" = a."attached_at" FROM "volumes" v WHERE v."id" = a."volume_id";
ALTER TABLE "attachments" ALTER COLUMN "project_id" SET NOT NULL;

-- AlterTable
ALTER TABLE "snapshots" ADD COLUMN     "progress" TEXT;

-- CreateTable
CREATE TABLE "transfers" (
    "id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "volume_id" UUID NOT NULL,
    "name" TEXT,
    "status" TEXT NOT NULL DEFAULT 'pending',
    "salt" TEXT NOT NULL,
    "key_hash" TEXT NOT NULL,
    "no_snapshots" BOOLEAN NOT NULL DEFAULT false,
    "destination_project_id" TEXT,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "transfers_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "transfers_volume_id_idx" ON "transfers"("volume_id");

-- CreateIndex
CREATE INDEX "transfers_project_id_created_at_id_idx" ON "transfers"("project_id", "created_at", "id");

-- CreateIndex
CREATE INDEX "attachments_project_id_created_at_id_idx" ON "attachments"("project_id", "created_at", "id");

-- AddForeignKey
ALTER TABLE "transfers" ADD CONSTRAINT "transfers_volume_id_fkey" FOREIGN KEY ("volume_id") REFERENCES "volumes"("id") ON DELETE CASCADE ON UPDATE CASCADE;


CREATE TRIGGER "attachments_audited" AFTER INSERT OR DELETE ON "attachments" FOR EACH ROW EXECUTE FUNCTION "audit_transition"('attachment', 'status');
CREATE TRIGGER "attachments_moved" AFTER UPDATE OF "status" ON "attachments" FOR EACH ROW
  WHEN (OLD."status" IS DISTINCT FROM NEW."status") EXECUTE FUNCTION "audit_transition"('attachment', 'status');

CREATE TRIGGER "transfers_audited" AFTER INSERT OR DELETE ON "transfers" FOR EACH ROW EXECUTE FUNCTION "audit_transition"('transfer', 'status');
CREATE TRIGGER "transfers_moved" AFTER UPDATE OF "status" ON "transfers" FOR EACH ROW
  WHEN (OLD."status" IS DISTINCT FROM NEW."status") EXECUTE FUNCTION "audit_transition"('transfer', 'status');
