-- Which release a worker is, and the memory that it uses; null where an older release runs.
ALTER TABLE "workers" ADD COLUMN "version" TEXT, ADD COLUMN "rss_bytes" BIGINT;
