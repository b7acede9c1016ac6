-- Whether backups of machines may ask what has changed in a volume.
ALTER TABLE "volumes" ADD COLUMN "tracks_changes" BOOLEAN NOT NULL DEFAULT false;
