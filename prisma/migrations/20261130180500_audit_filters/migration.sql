-- Outside a transaction.
-- What was done by an operation, and in a project that has few entries, is found without reading all of them.
DROP INDEX CONCURRENTLY IF EXISTS "audit_operation_id_id_idx";
CREATE INDEX CONCURRENTLY "audit_operation_id_id_idx" ON "audit"("operation_id", "id");
DROP INDEX CONCURRENTLY IF EXISTS "audit_project_id_id_idx";
CREATE INDEX CONCURRENTLY "audit_project_id_id_idx" ON "audit"("project_id", "id");
