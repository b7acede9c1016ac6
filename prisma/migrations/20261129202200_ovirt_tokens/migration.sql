-- Tokens of the API in oVirt's form: only their hashes.
CREATE TABLE "ovirt_tokens" (
    "digest" TEXT NOT NULL,
    "user_name" TEXT NOT NULL,
    "credential" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "expires_at" TIMESTAMPTZ(3) NOT NULL,

    CONSTRAINT "ovirt_tokens_pkey" PRIMARY KEY ("digest")
);

CREATE INDEX "ovirt_tokens_expires_at_idx" ON "ovirt_tokens"("expires_at");
