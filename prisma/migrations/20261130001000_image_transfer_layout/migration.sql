-- Of an image that is made while it is read.
ALTER TABLE "image_transfers" ADD COLUMN "layout" TEXT;
