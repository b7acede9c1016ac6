import { randomUUID } from "node:crypto";
import { removeHidden } from "../backups/delete.ts";
import { startVerify } from "../backups/verify.ts";
import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { isLiveOperation } from "../db/live.ts";
import { ControlError, InvalidError } from "../errors.ts";
import { forgetAudit } from "../events/audit.ts";
import { forgetMessages } from "../events/messages.ts";
import { forgetNotifications } from "../events/notifications.ts";
import { forgetOvirtEvents } from "../events/ovirt-events.ts";
import { forgetImageTransfers } from "../image-transfers/abandoned.ts";
import { forgetMachineBackups } from "../machines/backup-work.ts";
import { takeSample, thinSamples } from "../overview/samples.ts";
import { retentionSchedule, runRetention } from "../policies/retention-run.ts";
import type { Principal } from "../principal.ts";
import { forgetOperations, forgetTasks } from "../queue/forget.ts";
import { forgetWorkers } from "../queue/workers.ts";
import { reapedUntil, startReap } from "../repositories/reap.ts";
import { forgetPolicyRuns } from "../rows/policy-runs.ts";
import { repairQuotas } from "../rows/quota-repair.ts";
import { forgetTokens } from "../sign-in/tokens.ts";
import { count } from "../telemetry/counters.ts";
import { events, type Logger } from "../telemetry/telemetry.ts";

/** Scheduled work: its name among the schedules, and how to begin it. */
export interface DueWork {
  name: string;
  start: () => Promise<void>;
}

/** Work is due this many hours after it was last begun, by any process, at the earliest. */
interface Schedule {
  name: string;
  hours: number;
}

/** Interval, in hours, at which quotas are compared with the totals of all rows. */
const quotasHours = 1;

/** Interval, in hours, at which a row is added to the samples: less than a minute, so that none is left out between two passes. */
const sampleHours = 50 / 3_600;

/**
 * Returns what is due now: verifications and passes of the reaper, as configured, the comparison of quotas, and the removal of expired
 * rows. Any number of processes may ask: only one of those that begin it does the work. The first run is one interval after the schedule
 * was first seen, so that a lost database can be rebuilt before it.
 */
export async function dueWork(database: Database, config: Config, log: Logger): Promise<DueWork[]> {
  const all = [...regularWork(database, config, log), ...retention(database, config)];
  const begun = await database.$queryRaw<Schedule[]>`
    SELECT name, (extract(epoch FROM now() - ran_at) / 3600)::float8 AS hours FROM schedules`;
  const ages = new Map(begun.map(({ name, hours }) => [name, hours]));
  const unseen = all.flatMap(({ name }) => (ages.has(name) ? [] : [name]));
  if (unseen.length > 0) {
    await database.$executeRaw`INSERT INTO schedules (name) SELECT unnest(${unseen}::text[]) ON CONFLICT DO NOTHING`;
  }
  return all.filter(({ name, hours }) => (ages.get(name) ?? 0) >= hours);
}

function regularWork(database: Database, config: Config, log: Logger): (DueWork & Schedule)[] {
  const { verify, reaper } = config;
  const due = (name: string, hours: number | null, work: (tx: Transaction) => Promise<void>): (DueWork & Schedule)[] =>
    hours === null ? [] : [{ name, hours, start: () => inItsTurn(database, { name, hours }, work) }];
  return [
    ...due("verify", verify.interval_hours, (tx) => verifySample(tx, config, verify.interval_hours ?? 0)),
    ...config.repositories.flatMap(({ name }) =>
      due(`reap:${name}`, reaper.interval_hours, async (tx) => {
        await startReap(tx, config, clockwork("system"), { repository: name, dryRun: false });
      }),
    ),
    ...due("quotas", quotasHours, async (tx) => {
      for (const project of await repairQuotas(tx)) {
        events.quotaRepaired(log, project);
        await count(tx, "quota_repairs", "");
      }
    }),
  ];
}

/** @returns whether it was due, and is this process's to do until it is due again */
async function takeTurn(database: Database | Transaction, { name, hours }: Schedule): Promise<boolean> {
  const mine = await database.$executeRaw`
    UPDATE schedules SET ran_at = now() WHERE name = ${name} AND ran_at <= now() - ${hours}::float8 * interval '1 hour'`;
  return mine === 1;
}

/** Does `work` if it is due, in one transaction. What is refused now is tried again in the next pass. */
async function inItsTurn(
  database: Database,
  schedule: Schedule,
  work: (tx: Transaction) => Promise<void>,
): Promise<void> {
  try {
    await inTransaction(database, async (tx) => {
      if (await takeTurn(tx, schedule)) await work(tx);
    });
  } catch (error) {
    if (!(error instanceof InvalidError)) throw error;
  }
}

/**
 * Interval, in hours, at which expired rows are removed. A pass of the reconciler has other work to do: of each kind it removes one batch,
 * and then a limited number of further batches, until all of them together have taken a certain time; the next pass continues.
 */
const retentionHours = 1;
const batchesMax = 5;
const batchesMsMax = 100;

/** Retention of the tasks of ended operations. */
const tasksKeptDays = 7;

/** Everything that is removed because of its age. Each statement or transaction removes one batch, and blocks nobody. */
function retention(database: Database, config: Config): (DueWork & Schedule)[] {
  const { retention_days: days } = config.operations;
  const graceDays = config.reaper.grace_minutes / (24 * 60);
  const spent = { ms: 0 };
  const forget = (name: string, batch: () => Promise<boolean>, hours = retentionHours): DueWork & Schedule => {
    const schedule = { name, hours };
    return { ...schedule, start: () => inBatches(database, schedule, { batch, spent }) };
  };
  return [
    forget("forget-workers", () => forgetWorkers(database)),
    forget("forget-messages", () => forgetMessages(database, config)),
    forget("forget-tokens", () => forgetTokens(database)),
    forget("forget-notifications", () => forgetNotifications(database)),
    forget("forget-audit", () => forgetAudit(database, config)),
    forget("forget-ovirt-events", () => forgetOvirtEvents(database, config)),
    forget("forget-image-transfers", () => forgetImageTransfers(database, config)),
    forget("forget-machine-backups", () => forgetMachineBackups(database, config)),
    forget(retentionSchedule.name, () => runRetention(database, config, clockwork), retentionSchedule.hours),
    forget("remove-deleted-backups", () => removeHidden(database, clockwork), hiddenHours),
    forget("sample", () => takeSample(database, config).then(() => false), sampleHours),
    forget("thin-samples", () => thinSamples(database)),
    forget("forget-policy-runs", () => forgetPolicyRuns(database, days)),
    forget("forget-tasks", () => forgetTasks(database, Math.min(tasksKeptDays, days))),
    forget("forget-operations", async () =>
      forgetOperations(database, {
        days: Math.max(days, graceDays),
        reapedAt: await reapedUntil(database, config),
      }),
    ),
  ];
}

/**
 * @param batch returns whether there may be more
 * @param spent by all batches of this pass so far
 */
async function inBatches(
  database: Database,
  schedule: Schedule,
  { batch, spent }: { batch: () => Promise<boolean>; spent: { ms: number } },
): Promise<void> {
  if (!(await takeTurn(database, schedule))) return;
  for (let batches = 0; batches === 0 || (batches < batchesMax && spent.ms < batchesMsMax); batches += 1) {
    const began = performance.now();
    const more = await batch();
    spent.ms += performance.now() - began;
    if (!more) return;
  }
  await database.$executeRaw`
    UPDATE schedules SET ran_at = ran_at - ${schedule.hours}::float8 * interval '1 hour' WHERE name = ${schedule.name}`;
}

/** Interval, in hours, at which deleted backups are looked for whose delay is over. */
const hiddenHours = 1 / 60;

/** The principal of scheduled work: no user has asked for it. */
const clockwork = (projectId: string): Principal => ({
  userId: "system",
  projectId,
  roles: ["admin"],
  isAdmin: true,
  requestId: `req-${randomUUID()}`,
});

/**
 * Verifies this share of all available backups: those whose last attempted verification is the oldest, and that were not verified within
 * the interval. Attempts count so that a backup whose verification always fails does not crowd out others.
 */
async function verifySample(tx: Transaction, config: Config, hours: number): Promise<void> {
  const { sample_percent: percent, mode } = config.verify;
  const sample = await tx.$queryRaw<{ id: string; projectId: string; volumeBytes: bigint | null }[]>`
    SELECT b.id, b.project_id AS "projectId", b.volume_bytes AS "volumeBytes" FROM backups b
    WHERE b.status = 'available' AND b.deleted_at IS NULL AND b.container IS NOT NULL
      AND coalesce(b.verified_at, b.created_at) <= now() - ${hours}::float8 * interval '1 hour'
      AND NOT EXISTS (SELECT 1 FROM operations o WHERE o.backup_id = b.id AND o.kind = 'backup-verify'
        AND ${isLiveOperation("o")})
    ORDER BY GREATEST(coalesce(b.verified_at, b.created_at),
      (SELECT max(o.created_at) FROM operations o WHERE o.backup_id = b.id AND o.kind = 'backup-verify')), b.id
    LIMIT (SELECT ceil(count(*) * ${percent}::float8 / 100) FROM backups WHERE status = 'available' AND deleted_at IS NULL)`;
  for (const backup of sample) {
    try {
      await startVerify(tx, config, clockwork(backup.projectId), { backup, mode });
    } catch (error) {
      // A backup that cannot be verified, say of a repository that is no longer configured, must not block the others.
      if (!(error instanceof ControlError)) throw error;
    }
  }
}
