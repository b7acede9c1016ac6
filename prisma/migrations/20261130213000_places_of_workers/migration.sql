-- What a worker finds where it looks: how long that took, how much is free there, which master keys it has.
ALTER TABLE "workers" ADD COLUMN "places" JSONB NOT NULL DEFAULT '{}';
