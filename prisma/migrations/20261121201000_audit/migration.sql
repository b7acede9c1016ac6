-- CreateTable
CREATE TABLE "audit" (
    "id" BIGSERIAL NOT NULL,
    "at" TIMESTAMPTZ(3) NOT NULL DEFAULT clock_timestamp(),
    "resource" TEXT NOT NULL,
    "resource_id" UUID NOT NULL,
    "project_id" TEXT NOT NULL,
    "from_status" TEXT,
    "to_status" TEXT NOT NULL,
    "actor" TEXT NOT NULL,
    "user_id" TEXT,
    "user_project_id" TEXT,
    "worker_id" TEXT,
    "request_id" TEXT,
    "operation_id" UUID,
    "reason" TEXT,

    CONSTRAINT "audit_pkey" PRIMARY KEY ("id")
);

-- CreateIndex
CREATE INDEX "audit_at_idx" ON "audit"("at");

-- CreateIndex
CREATE INDEX "audit_resource_id_id_idx" ON "audit"("resource_id", "id");

-- CreateIndex
CREATE INDEX "audit_request_id_idx" ON "audit"("request_id");


-- Every transition of a status leaves a row, whatever statement makes it, in the same transaction. Who acts is said once per transaction
-- (`tephra.actor`, a JSON object local to it: packages/control/src/actor.ts); an operation knows besides who asked for it.
CREATE FUNCTION "audit_transition"() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  actor jsonb := coalesce(nullif(current_setting('tephra.actor', true), ''), '{"kind": "database"}')::jsonb;
  before jsonb := CASE WHEN TG_OP = 'INSERT' THEN '{}'::jsonb ELSE to_jsonb(OLD) END;
  after jsonb := CASE WHEN TG_OP = 'DELETE' THEN '{}'::jsonb ELSE to_jsonb(NEW) END;
  subject jsonb := before || after;
  asked jsonb := CASE TG_ARGV[0] WHEN 'operation' THEN subject ELSE '{}'::jsonb END;
BEGIN
  -- A tombstone is removed: what it stood for has gone before.
  IF TG_OP = 'DELETE' AND before->>TG_ARGV[1] = 'deleted' THEN
    RETURN NULL;
  END IF;
  INSERT INTO "audit" ("resource", "resource_id", "project_id", "from_status", "to_status", "actor", "user_id", "user_project_id",
    "worker_id", "request_id", "operation_id", "reason")
  VALUES (TG_ARGV[0], (subject->>'id')::uuid, subject->>'project_id', before->>TG_ARGV[1], coalesce(after->>TG_ARGV[1], 'deleted'),
    actor->>'kind', coalesce(actor->>'user', asked->>'user_id'), actor->>'project', actor->>'worker',
    coalesce(actor->>'request', asked->>'request_id'), coalesce(asked->>'id', actor->>'operation')::uuid,
    coalesce(nullif(after->>'fail_reason', before->>'fail_reason'), actor->>'reason'));
  RETURN NULL;
END
$$;

CREATE TRIGGER "backups_audited" AFTER INSERT OR DELETE ON "backups" FOR EACH ROW EXECUTE FUNCTION "audit_transition"('backup', 'status');
CREATE TRIGGER "backups_moved" AFTER UPDATE OF "status" ON "backups" FOR EACH ROW
  WHEN (OLD."status" IS DISTINCT FROM NEW."status") EXECUTE FUNCTION "audit_transition"('backup', 'status');

CREATE TRIGGER "volumes_audited" AFTER INSERT OR DELETE ON "volumes" FOR EACH ROW EXECUTE FUNCTION "audit_transition"('volume', 'status');
CREATE TRIGGER "volumes_moved" AFTER UPDATE OF "status" ON "volumes" FOR EACH ROW
  WHEN (OLD."status" IS DISTINCT FROM NEW."status") EXECUTE FUNCTION "audit_transition"('volume', 'status');

CREATE TRIGGER "snapshots_audited" AFTER INSERT OR DELETE ON "snapshots" FOR EACH ROW EXECUTE FUNCTION "audit_transition"('snapshot', 'status');
CREATE TRIGGER "snapshots_moved" AFTER UPDATE OF "status" ON "snapshots" FOR EACH ROW
  WHEN (OLD."status" IS DISTINCT FROM NEW."status") EXECUTE FUNCTION "audit_transition"('snapshot', 'status');

CREATE TRIGGER "operations_audited" AFTER INSERT ON "operations" FOR EACH ROW EXECUTE FUNCTION "audit_transition"('operation', 'state');
CREATE TRIGGER "operations_moved" AFTER UPDATE OF "state" ON "operations" FOR EACH ROW
  WHEN (OLD."state" IS DISTINCT FROM NEW."state") EXECUTE FUNCTION "audit_transition"('operation', 'state');

CREATE TRIGGER "groups_audited" AFTER INSERT OR DELETE ON "groups" FOR EACH ROW EXECUTE FUNCTION "audit_transition"('group', 'status');
CREATE TRIGGER "groups_moved" AFTER UPDATE OF "status" ON "groups" FOR EACH ROW
  WHEN (OLD."status" IS DISTINCT FROM NEW."status") EXECUTE FUNCTION "audit_transition"('group', 'status');

CREATE TRIGGER "group_snapshots_audited" AFTER INSERT OR DELETE ON "group_snapshots" FOR EACH ROW EXECUTE FUNCTION "audit_transition"('group_snapshot', 'status');
CREATE TRIGGER "group_snapshots_moved" AFTER UPDATE OF "status" ON "group_snapshots" FOR EACH ROW
  WHEN (OLD."status" IS DISTINCT FROM NEW."status") EXECUTE FUNCTION "audit_transition"('group_snapshot', 'status');
