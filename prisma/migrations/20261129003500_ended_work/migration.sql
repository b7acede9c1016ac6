-- What a scrape asks for is a few entries of an index, however many tasks and operations have ended. Prisma's schema has no partial indexes.
CREATE INDEX "tasks_waiting_idx" ON "tasks"("queued_at") WHERE "state" IN ('ready', 'dispatched');
CREATE INDEX "operations_last_success_idx" ON "operations"("finished_at") WHERE "kind" = 'backup-create' AND "state" = 'succeeded';

-- The same for lists of one project, and for what the reaper asks about files that it finds.
CREATE INDEX "operations_project_id_created_at_id_idx" ON "operations"("project_id", "created_at", "id");
CREATE INDEX "operations_snapshot_id_idx" ON "operations"("snapshot_id");
CREATE INDEX "operations_temporary_snapshots_idx" ON "operations"(("plan"->'source'->>'id'))
  WHERE "kind" = 'backup-create' AND "plan"->'source'->>'temporary' = 'true';
CREATE INDEX "operations_exports_idx" ON "operations"("finished_at") WHERE "kind" = 'volume-export';

-- Bytes are counted when their task ends, whatever statement ends it, in the same transaction. It is the last thing that the transaction
-- does, so that whoever waits for a row of a counter holds nothing that others need to give that row free; and each connection has one row
-- of 64, so that there is hardly anybody to wait for.
CREATE FUNCTION "count_task_bytes"() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  share text := (pg_backend_pid() % 64)::text;
BEGIN
  INSERT INTO "counters" ("name", "label", "value")
  VALUES ('bytes_read', share, NEW."bytes_done"), ('bytes_stored', share, NEW."bytes_stored")
  ON CONFLICT ("name", "label") DO UPDATE SET "value" = "counters"."value" + EXCLUDED."value";
  RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER "tasks_counted" AFTER UPDATE OF "state" ON "tasks" DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
  WHEN (NEW."state" IN ('succeeded', 'failed', 'cancelled') AND OLD."state" NOT IN ('succeeded', 'failed', 'cancelled')
    AND (NEW."bytes_done" > 0 OR NEW."bytes_stored" > 0))
  EXECUTE FUNCTION "count_task_bytes"();

INSERT INTO "counters" ("name", "label", "value")
SELECT c.name, '0', coalesce(c.bytes, 0) FROM (
  SELECT sum("bytes_done")::bigint AS done, sum("bytes_stored")::bigint AS stored FROM "tasks"
  WHERE "state" IN ('succeeded', 'failed', 'cancelled')
) t CROSS JOIN LATERAL (VALUES ('bytes_read', t.done), ('bytes_stored', t.stored)) AS c(name, bytes);
