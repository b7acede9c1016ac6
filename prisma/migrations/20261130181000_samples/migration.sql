-- One row a minute of what the installation does, thinned with age: the charts of the console. Bytes and ends only grow.
CREATE TABLE "samples" (
    "at" TIMESTAMPTZ(3) NOT NULL,
    "bytes_read" BIGINT NOT NULL,
    "bytes_stored" BIGINT NOT NULL,
    "succeeded" BIGINT NOT NULL,
    "failed" BIGINT NOT NULL,
    "cancelled" BIGINT NOT NULL,
    "waiting" INTEGER NOT NULL,
    "running" INTEGER NOT NULL,
    "oldest_seconds" INTEGER NOT NULL,
    "workers" INTEGER NOT NULL,
    "slots" INTEGER NOT NULL,
    "volumes" JSONB,
    "stored" JSONB,

    CONSTRAINT "samples_pkey" PRIMARY KEY ("at")
);
