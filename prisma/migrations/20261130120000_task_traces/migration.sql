-- Where tracing is on: the span that added the task, as W3C's traceparent.
ALTER TABLE "tasks" ADD COLUMN "trace_parent" TEXT;
