-- Outside a transaction.
DROP INDEX CONCURRENTLY IF EXISTS "audit_xid_id_idx";
CREATE INDEX CONCURRENTLY "audit_xid_id_idx" ON "audit"("xid", "id");
