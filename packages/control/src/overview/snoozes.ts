import type { Config } from "../config.ts";
import { type Database, inTransaction } from "../db/database.ts";
import { NotFoundError } from "../errors.ts";
import { noteAudit } from "../events/audit.ts";
import { refusalOf } from "../policies/check.ts";
import { countProtection } from "../policies/protection.ts";
import type { Principal } from "../principal.ts";
import { readClock } from "../rows/policies.ts";
import { type Alert, findAlerts, snoozeSubject } from "./alerts.ts";

/** Longer ones would be forgotten. */
const daysMax = 90;

export interface AlertKey {
  code: string;
  /** Null: of an alert without one. */
  subject: string | null;
}

const nameOf = ({ code, subject }: AlertKey): string => (subject === null ? code : `${code} of ${subject}`);

/**
 * Nobody is told of the alert until then, though it is shown as snoozed. It stays so when it goes and comes back meanwhile. An earlier
 * snooze is replaced.
 *
 * @throws NotFoundError where there is no such alert now; InvalidError
 */
export async function snoozeAlert(
  database: Database,
  config: Config,
  principal: Principal,
  key: AlertKey,
  { until, reason }: { until: Date; reason: string },
): Promise<Alert> {
  const volumes = await countProtection(database, config);
  const alerts = await findAlerts({ database, config, projectId: null, volumes });
  const alert = alerts.find(({ code, subject }) => code === key.code && subject === key.subject);
  if (!alert) throw new NotFoundError("Alert", nameOf(key));
  await inTransaction(database, async (tx) => {
    const now = await readClock(tx);
    if (until <= now) throw refusalOf([{ key: "until", problem: "is in the past" }]);
    if (until.getTime() > now.getTime() + daysMax * 86_400_000) {
      throw refusalOf([{ key: "until", problem: `is more than ${daysMax} days ahead` }]);
    }
    // Whatever has ended is of no use.
    await tx.alertSnooze.deleteMany({ where: { until: { lte: now } } });
    const id = { code: key.code, subject: snoozeSubject(key.subject) };
    const snooze = { until, reason, userId: principal.userId };
    const row = await tx.alertSnooze.upsert({
      where: { code_subject: id },
      create: { ...id, ...snooze },
      update: { ...snooze, createdAt: now },
    });
    await noteAudit(tx, principal, {
      resource: "alert",
      resourceId: row.id,
      projectId: principal.projectId,
      to: "snoozed",
      reason: `${nameOf(key)}, until ${until.toISOString()}: ${reason}`,
    });
  });
  return { ...alert, snoozed: { until, reason, userId: principal.userId } };
}

/** It is told again, at once. @throws NotFoundError where it is not snoozed */
export async function endSnooze(database: Database, principal: Principal, key: AlertKey): Promise<void> {
  await inTransaction(database, async (tx) => {
    const id = { code: key.code, subject: snoozeSubject(key.subject) };
    const rows = await tx.$queryRaw<{ id: string }[]>`
      DELETE FROM alert_snoozes WHERE code = ${id.code} AND subject = ${id.subject} AND until > now() RETURNING id`;
    const [row] = rows;
    if (!row) throw new NotFoundError("Snooze", nameOf(key));
    await noteAudit(tx, principal, {
      resource: "alert",
      resourceId: row.id,
      projectId: principal.projectId,
      to: "told",
      reason: nameOf(key),
    });
  });
}
