-- AlterTable
ALTER TABLE "operations" ADD COLUMN     "rounds" INTEGER NOT NULL DEFAULT 0;

-- CreateTable
CREATE TABLE "counters" (
    "name" TEXT NOT NULL,
    "label" TEXT NOT NULL,
    "value" BIGINT NOT NULL DEFAULT 0,

    CONSTRAINT "counters_pkey" PRIMARY KEY ("name","label")
);
