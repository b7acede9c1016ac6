-- A squash makes a full backup of an incremental one. What it was merged of is deleted when nothing needs it any more.
ALTER TABLE "backups" ADD COLUMN "former_metadata" TEXT,
  ADD COLUMN "squashed_at" TIMESTAMPTZ(3),
  ADD COLUMN "squashed_into" UUID;

CREATE INDEX "backups_squashed_into_idx" ON "backups"("squashed_into");
