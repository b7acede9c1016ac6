-- Alerts that admins know of, and need not be told of for a while. The subject is empty where an alert has none.
CREATE TABLE "alert_snoozes" (
    "code" TEXT NOT NULL,
    "subject" TEXT NOT NULL,
    "id" UUID NOT NULL DEFAULT gen_random_uuid(),
    "until" TIMESTAMPTZ(3) NOT NULL,
    "reason" TEXT NOT NULL,
    "user_id" TEXT NOT NULL,
    "created_at" TIMESTAMPTZ(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,

    CONSTRAINT "alert_snoozes_pkey" PRIMARY KEY ("code", "subject")
);
