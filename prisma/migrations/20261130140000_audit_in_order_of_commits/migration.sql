-- Ids are given before the commit, so rows appear out of the order of their ids. With the transaction's own number, a reader knows which rows
-- nobody can add to any more: those of transactions older than the oldest that runs. Rows from before have none; nothing is rewritten.
ALTER TABLE "audit" ADD COLUMN "xid" xid8;
ALTER TABLE "audit" ALTER COLUMN "xid" SET DEFAULT pg_current_xact_id();
