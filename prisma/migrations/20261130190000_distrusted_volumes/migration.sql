-- Volumes of another service, whose storage was found to report not all changes: "volumes"."distrusted_at" of those that are no rows.
CREATE TABLE "distrusted_volumes" (
    "volume_id" UUID NOT NULL,
    "at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "distrusted_volumes_pkey" PRIMARY KEY ("volume_id")
);
