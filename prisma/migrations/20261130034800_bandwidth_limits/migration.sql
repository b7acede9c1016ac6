-- How fast volumes may be read, and bytes may go into repositories and come from them. The clocks are of those that share a limit.
CREATE TABLE "bandwidth_limits" (
    "traffic" TEXT NOT NULL,
    "scope" TEXT NOT NULL,
    "name" TEXT NOT NULL,
    "bytes_per_second" BIGINT,
    "windows" JSONB NOT NULL DEFAULT '[]',
    "changed_by" TEXT NOT NULL,
    "changed_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "paced_rate" BIGINT,
    "clocks" DOUBLE PRECISION[] NOT NULL DEFAULT '{0,0,0}',

    CONSTRAINT "bandwidth_limits_pkey" PRIMARY KEY ("traffic","scope","name")
);
