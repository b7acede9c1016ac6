-- The doorbell is rung after the commit: a transaction with a pending NOTIFY holds a lock of the whole server until it is flushed.
DROP TRIGGER "tasks_ready" ON "tasks";
DROP FUNCTION "ring_tasks_ready"();
