-- CreateTable
CREATE TABLE "ovirt_events" (
    "id" BIGSERIAL NOT NULL,
    "at" TIMESTAMPTZ(3) NOT NULL DEFAULT clock_timestamp(),
    "project_id" TEXT NOT NULL,
    "kind" TEXT NOT NULL,
    "user_id" TEXT,
    "request_id" TEXT,
    "instance_id" UUID,
    "volume_id" UUID,
    "details" JSONB NOT NULL DEFAULT '{}',
    "origin" TEXT,
    "custom_id" INTEGER,
    "severity" TEXT,
    "description" TEXT,

    CONSTRAINT "ovirt_events_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "ovirt_events_project_id_id_idx" ON "ovirt_events"("project_id", "id");

-- CreateIndex
CREATE INDEX "ovirt_events_at_idx" ON "ovirt_events"("at");

-- CreateIndex
CREATE UNIQUE INDEX "ovirt_events_project_id_origin_custom_id_key" ON "ovirt_events"("project_id", "origin", "custom_id");

-- What happens to machines, disks, their snapshots and image transfers leaves an event, whatever statement makes it, in the same
-- transaction. Who acts is said as for the audit log (`tephra.actor`); where a worker does, the row (`request`) or the operation knows by
-- which request.
CREATE FUNCTION "tell_ovirt_event"(kind text, project text, owner text, instance uuid, volume uuid, details jsonb,
  request text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  actor jsonb := coalesce(nullif(current_setting('tephra.actor', true), ''), '{}')::jsonb;
  asked record;
BEGIN
  IF actor->>'request' IS NOT NULL THEN
    SELECT actor->>'user' AS "user_id", actor->>'request' AS "request_id" INTO asked;
  ELSIF request IS NOT NULL THEN
    SELECT owner AS "user_id", request AS "request_id" INTO asked;
  ELSE
    SELECT o."user_id", o."request_id" INTO asked FROM "operations" o
    WHERE o."project_id" = project AND CASE WHEN actor->>'operation' IS NOT NULL THEN o."id" = (actor->>'operation')::uuid
      WHEN volume IS NOT NULL THEN o."volume_id" = volume
      ELSE o."group_id" = (SELECT g."id" FROM "groups" g WHERE g."project_id" = project AND g."instance_id" = instance) END
    ORDER BY o."created_at" DESC LIMIT 1;
  END IF;
  INSERT INTO "ovirt_events" ("project_id", "kind", "user_id", "request_id", "instance_id", "volume_id", "details")
  VALUES (project, kind, coalesce(asked."user_id", owner), asked."request_id", instance, volume, jsonb_strip_nulls(details));
END
$$;

CREATE FUNCTION "ovirt_volume_event"() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  subject "volumes" := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
  kind text;
BEGIN
  IF TG_OP = 'INSERT' THEN
    kind := CASE WHEN NEW."status" = 'creating' THEN 'disk-add' END;
  ELSIF TG_OP = 'DELETE' THEN
    kind := CASE WHEN OLD."status" = 'deleting' THEN 'disk-removed' END;
  ELSE
    kind := CASE WHEN OLD."status" = 'creating' AND NEW."status" = 'available' THEN 'disk-added'
      WHEN OLD."status" = 'creating' AND NEW."status" LIKE 'error%' THEN 'disk-add-failed'
      WHEN OLD."status" = 'deleting' AND NEW."status" LIKE 'error%' THEN 'disk-remove-failed' END;
  END IF;
  IF kind IS NOT NULL THEN
    PERFORM "tell_ovirt_event"(kind, subject."project_id", subject."user_id", NULL, subject."id",
      jsonb_build_object('disk', coalesce(subject."name", subject."id"::text), 'domain', subject."backend"));
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER "volumes_told" AFTER INSERT OR DELETE ON "volumes" FOR EACH ROW EXECUTE FUNCTION "ovirt_volume_event"();
CREATE TRIGGER "volumes_moved_told" AFTER UPDATE OF "status" ON "volumes" FOR EACH ROW
  WHEN (OLD."status" IN ('creating', 'deleting') AND OLD."status" <> NEW."status") EXECUTE FUNCTION "ovirt_volume_event"();

CREATE FUNCTION "ovirt_snapshot_event"() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  subject "group_snapshots" := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
  before text := CASE WHEN TG_OP = 'INSERT' THEN '' ELSE OLD."status" END;
  after text := CASE WHEN TG_OP = 'DELETE' THEN 'deleted' ELSE NEW."status" END;
  kind text := CASE
    WHEN TG_OP = 'INSERT' THEN 'snapshot-create'
    WHEN before = 'creating' AND after = 'available' THEN 'snapshot-created'
    WHEN before = 'creating' THEN 'snapshot-create-failed'
    WHEN before = 'deleting' AND after = 'deleted' THEN 'snapshot-removed'
    WHEN before = 'deleting' THEN 'snapshot-remove-failed'
    WHEN after = 'deleting' THEN 'snapshot-remove' END;
BEGIN
  IF kind IS NOT NULL THEN
    PERFORM "tell_ovirt_event"(kind, subject."project_id", subject."user_id", subject."instance_id", NULL,
      jsonb_build_object('snapshot', subject."description", 'machine',
        (SELECT "name" FROM "instances" WHERE "project_id" = subject."project_id" AND "id" = subject."instance_id")));
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER "group_snapshots_added_told" AFTER INSERT ON "group_snapshots" FOR EACH ROW
  WHEN (NEW."ovf" IS NOT NULL) EXECUTE FUNCTION "ovirt_snapshot_event"();
CREATE TRIGGER "group_snapshots_removed_told" AFTER DELETE ON "group_snapshots" FOR EACH ROW
  WHEN (OLD."ovf" IS NOT NULL) EXECUTE FUNCTION "ovirt_snapshot_event"();
CREATE TRIGGER "group_snapshots_moved_told" AFTER UPDATE OF "status" ON "group_snapshots" FOR EACH ROW
  WHEN (OLD."ovf" IS NOT NULL AND OLD."status" <> NEW."status") EXECUTE FUNCTION "ovirt_snapshot_event"();

CREATE FUNCTION "ovirt_transfer_event"() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  kind text := CASE WHEN TG_OP = 'INSERT' THEN 'transfer-begun' ELSE CASE NEW."status"
    WHEN 'finished_success' THEN 'transfer-succeeded' WHEN 'finished_failure' THEN 'transfer-failed'
    WHEN 'finished_cleanup' THEN 'transfer-cancelled' WHEN 'paused_system' THEN 'transfer-paused' END END;
BEGIN
  IF kind IS NOT NULL THEN
    PERFORM "tell_ovirt_event"(kind, NEW."project_id", NEW."user_id", NULL, NEW."volume_id",
      jsonb_build_object('direction', NEW."direction", 'transfer', NEW."id", 'reason', NEW."fail_reason",
        'disk', coalesce((SELECT "name" FROM "volumes" WHERE "id" = NEW."volume_id"), NEW."volume_id"::text)), NEW."request_id");
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER "image_transfers_told" AFTER INSERT ON "image_transfers" FOR EACH ROW EXECUTE FUNCTION "ovirt_transfer_event"();
CREATE TRIGGER "image_transfers_moved_told" AFTER UPDATE OF "status" ON "image_transfers" FOR EACH ROW
  WHEN (OLD."status" <> NEW."status") EXECUTE FUNCTION "ovirt_transfer_event"();

CREATE FUNCTION "ovirt_instance_event"() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  subject "instances" := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
  kind text := CASE TG_OP WHEN 'INSERT' THEN 'machine-added' WHEN 'DELETE' THEN 'machine-removed' ELSE
    CASE NEW."power_state" WHEN 'ACTIVE' THEN 'machine-started' WHEN 'SHUTOFF' THEN 'machine-stopped' END END;
BEGIN
  IF kind IS NOT NULL THEN
    PERFORM "tell_ovirt_event"(kind, subject."project_id", subject."user_id", subject."id", NULL,
      jsonb_build_object('machine', subject."name"));
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER "instances_told" AFTER INSERT OR DELETE ON "instances" FOR EACH ROW EXECUTE FUNCTION "ovirt_instance_event"();
CREATE TRIGGER "instances_moved_told" AFTER UPDATE OF "power_state" ON "instances" FOR EACH ROW
  WHEN (OLD."power_state" <> NEW."power_state") EXECUTE FUNCTION "ovirt_instance_event"();

-- Of a machine's own disks (`attachments`, whose server may be no machine of ours) and of disks of snapshots (`snapshot_attachments`).
CREATE FUNCTION "ovirt_attachment_event"() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  subject jsonb := CASE WHEN TG_OP = 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END;
  server text := coalesce(subject->>'instance_id', subject->>'server_id');
  machine "instances";
  disk uuid := (subject->>'volume_id')::uuid;
BEGIN
  IF server !~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN
    RETURN NULL;
  END IF;
  SELECT * INTO machine FROM "instances" WHERE "project_id" = subject->>'project_id' AND "id" = server::uuid;
  IF FOUND THEN
    PERFORM "tell_ovirt_event"(CASE WHEN TG_OP = 'INSERT' THEN 'disk-attached' ELSE 'disk-detached' END, machine."project_id", NULL,
      machine."id", disk, jsonb_build_object('machine', machine."name",
        'disk', coalesce((SELECT "name" FROM "volumes" WHERE "id" = disk), disk::text)));
  END IF;
  RETURN NULL;
END
$$;
CREATE TRIGGER "attachments_added_told" AFTER INSERT ON "attachments" FOR EACH ROW
  WHEN (NEW."server_id" IS NOT NULL) EXECUTE FUNCTION "ovirt_attachment_event"();
CREATE TRIGGER "attachments_removed_told" AFTER DELETE ON "attachments" FOR EACH ROW
  WHEN (OLD."server_id" IS NOT NULL) EXECUTE FUNCTION "ovirt_attachment_event"();
CREATE TRIGGER "snapshot_attachments_told" AFTER INSERT OR DELETE ON "snapshot_attachments" FOR EACH ROW
  EXECUTE FUNCTION "ovirt_attachment_event"();
