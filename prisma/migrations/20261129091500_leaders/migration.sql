-- CreateTable
CREATE TABLE "leaders" (
    "role" TEXT NOT NULL,
    "holder" TEXT NOT NULL,
    "held_until" TIMESTAMPTZ(3) NOT NULL,
    "members" INTEGER NOT NULL DEFAULT 0,

    CONSTRAINT "leaders_pkey" PRIMARY KEY ("role")
);
