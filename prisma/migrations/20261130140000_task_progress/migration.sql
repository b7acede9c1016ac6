-- When a running task last had more bytes than at the heartbeat before; null: it was claimed by an older release.
ALTER TABLE "tasks" ADD COLUMN "progressed_at" TIMESTAMPTZ(3);
