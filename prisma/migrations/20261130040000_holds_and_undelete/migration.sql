-- AlterTable
ALTER TABLE "backups" ADD COLUMN     "hold_reason" TEXT,
ADD COLUMN     "hold_until" TIMESTAMPTZ(3),
ADD COLUMN     "undelete_until" TIMESTAMPTZ(3);

-- Of all deleted backups, those that can be brought back are few.
CREATE INDEX "backups_undelete_idx" ON "backups"("undelete_until") WHERE "undelete_until" IS NOT NULL;

-- Who holds a backup, and who lets go of it, is in the audit log as changes of status are.
CREATE TRIGGER "backups_held" AFTER UPDATE OF "hold_until", "hold_reason" ON "backups" FOR EACH ROW
  WHEN (OLD."status" IS NOT DISTINCT FROM NEW."status"
    AND (OLD."hold_until" IS DISTINCT FROM NEW."hold_until" OR OLD."hold_reason" IS DISTINCT FROM NEW."hold_reason"))
  EXECUTE FUNCTION "audit_transition"('backup', 'status');
