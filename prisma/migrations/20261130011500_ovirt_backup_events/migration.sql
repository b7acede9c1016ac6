-- What becomes of backups of machines, and checkpoints that are lost, leave events as what happens to machines does.
CREATE FUNCTION "ovirt_backup_event"() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  kind text := CASE NEW."status" WHEN 'ready' THEN 'backup-started' WHEN 'succeeded' THEN 'backup-finalized'
    WHEN 'failed' THEN CASE WHEN NEW."taken_at" IS NULL THEN 'backup-start-failed' ELSE 'backup-failed' END END;
BEGIN
  IF kind IS NOT NULL THEN
    PERFORM "tell_ovirt_event"(kind, NEW."project_id", NEW."user_id", NEW."instance_id", NULL,
      jsonb_build_object('backup', NEW."id", 'reason', NEW."fail_reason", 'machine',
        (SELECT "name" FROM "instances" WHERE "project_id" = NEW."project_id" AND "id" = NEW."instance_id")), NEW."request_id");
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER "machine_backups_told" AFTER UPDATE OF "status" ON "machine_backups" FOR EACH ROW
  WHEN (OLD."status" <> NEW."status") EXECUTE FUNCTION "ovirt_backup_event"();

CREATE FUNCTION "ovirt_checkpoint_event"() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM "tell_ovirt_event"('checkpoint-invalid', NEW."project_id", NULL, NEW."instance_id", NULL,
    jsonb_build_object('checkpoint', NEW."id", 'machine',
      (SELECT "name" FROM "instances" WHERE "project_id" = NEW."project_id" AND "id" = NEW."instance_id")));
  RETURN NULL;
END
$$;
CREATE TRIGGER "machine_checkpoints_told" AFTER UPDATE OF "status" ON "machine_checkpoints" FOR EACH ROW
  WHEN (OLD."status" <> NEW."status" AND NEW."status" = 'invalid') EXECUTE FUNCTION "ovirt_checkpoint_event"();
