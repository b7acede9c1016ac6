-- Tasks that wait for another service give their slot back: since when, and how many of their claims ended so.
ALTER TABLE "tasks" ADD COLUMN "waiting_since" TIMESTAMPTZ(3), ADD COLUMN "waits" INTEGER NOT NULL DEFAULT 0;

-- Of a volume that another service has, one operation at a time: there is no row of it that could be marked.
CREATE UNIQUE INDEX "operations_beside_idx" ON "operations"("volume_id")
  WHERE "state" IN ('queued', 'running') AND "snapshot_id" IS NULL AND jsonb_exists("input", 'volume')
    AND "kind" IN ('backup-create', 'backup-restore');
