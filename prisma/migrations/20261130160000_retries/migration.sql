-- The operation that does again what this one, which has failed, did not.
ALTER TABLE "operations" ADD COLUMN "retried_as" UUID;
