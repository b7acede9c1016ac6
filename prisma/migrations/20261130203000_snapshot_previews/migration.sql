-- A machine that is shown as it was at a snapshot has another one of how it was before.
ALTER TABLE "group_snapshots" ADD COLUMN "preview_of_id" UUID;

CREATE INDEX "group_snapshots_preview_of_id_idx" ON "group_snapshots"("preview_of_id");

ALTER TABLE "group_snapshots" ADD CONSTRAINT "group_snapshots_preview_of_id_fkey" FOREIGN KEY ("preview_of_id") REFERENCES "group_snapshots"("id") ON DELETE SET NULL ON UPDATE CASCADE;
