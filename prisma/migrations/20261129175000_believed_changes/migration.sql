-- Incremental backups that read only what the storage says has changed since the snapshot of their parent.
ALTER TABLE "backups" ADD COLUMN "base_snapshot_id" UUID, ADD COLUMN "believed_in_row" INTEGER NOT NULL DEFAULT 0;
ALTER TABLE "volumes" ADD COLUMN "distrusted_at" TIMESTAMPTZ(3);
