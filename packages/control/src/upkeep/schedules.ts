import { randomUUID } from "node:crypto";
import { startVerify } from "../backups/verify.ts";
import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { ControlError, InvalidError } from "../errors.ts";
import { forgetAudit } from "../events/audit.ts";
import { forgetMessages } from "../events/messages.ts";
import { forgetNotifications } from "../events/notifications.ts";
import type { Principal } from "../principal.ts";
import { forgetOperations, forgetTasks } from "../queue/forget.ts";
import { forgetWorkers } from "../queue/workers.ts";
import { reapedUntil, startReap } from "../repositories/reap.ts";
import { repairQuotas } from "../rows/quota-repair.ts";
import { count } from "../telemetry/counters.ts";
import { events, type Logger } from "../telemetry/telemetry.ts";

/** What is begun by the clock: its name among the schedules, and how to begin it. */
export interface DueWork {
  name: string;
  start: () => Promise<void>;
}

/** When something is due: at least so many hours after it was last begun, by whatever process. */
interface Schedule {
  name: string;
  hours: number;
}

/** Sums of all rows are compared with the quotas so often. */
const quotasHours = 1;

/**
 * What is due now of verifications and passes of the reaper, as configured, of the comparison of quotas, and of what is removed because of
 * its age. Any number of processes may ask: of those that begin it one does it. The first time is one interval after the schedule was first
 * seen, so that a database that was lost can be rebuilt before.
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

/** Does `work` if it is due, in one transaction. What is refused now is asked for again with the next pass. */
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
 * What is too old is removed so often. A pass, which has others to heal, begins so many batches of each kind at most, and none after so long:
 * where there is more, the next pass goes on.
 */
const retentionHours = 1;
const batchesMax = 5;
const batchesMsMax = 250;

/** Tasks of an operation that has ended are kept so long. */
const tasksKeptDays = 7;

/** Whatever is removed because of its age. Each statement or transaction removes one batch, and keeps nobody waiting. */
function retention(database: Database, config: Config): (DueWork & Schedule)[] {
  const { retention_days: days } = config.operations;
  const graceDays = config.reaper.grace_minutes / (24 * 60);
  const forget = (name: string, batch: () => Promise<boolean>): DueWork & Schedule => {
    const schedule = { name, hours: retentionHours };
    return { ...schedule, start: () => inBatches(database, schedule, batch) };
  };
  return [
    forget("forget-workers", () => forgetWorkers(database)),
    forget("forget-messages", () => forgetMessages(database, config)),
    forget("forget-notifications", () => forgetNotifications(database)),
    forget("forget-audit", () => forgetAudit(database, config)),
    forget("forget-tasks", () => forgetTasks(database, Math.min(tasksKeptDays, days))),
    forget("forget-operations", async () =>
      forgetOperations(database, {
        days: Math.max(days, graceDays),
        reapedAt: await reapedUntil(database, config),
      }),
    ),
  ];
}

/** @param batch returns whether there may be more */
async function inBatches(database: Database, schedule: Schedule, batch: () => Promise<boolean>): Promise<void> {
  if (!(await takeTurn(database, schedule))) return;
  const began = performance.now();
  for (let batches = 0; batches < batchesMax && performance.now() - began < batchesMsMax; batches += 1) {
    if (!(await batch())) return;
  }
  await database.$executeRaw`
    UPDATE schedules SET ran_at = ran_at - ${schedule.hours}::float8 * interval '1 hour' WHERE name = ${schedule.name}`;
}

/** Nobody has asked: it is the clock. */
const clockwork = (projectId: string): Principal => ({
  userId: "system",
  projectId,
  roles: ["admin"],
  isAdmin: true,
  requestId: `req-${randomUUID()}`,
});

/**
 * Of all available backups this share, those whose verification was not even tried for the longest time, and that were not verified for the
 * interval at least: one whose verification always fails takes nobody else's turn.
 */
async function verifySample(tx: Transaction, config: Config, hours: number): Promise<void> {
  const { sample_percent: percent, mode } = config.verify;
  const sample = await tx.$queryRaw<{ id: string; projectId: string; volumeBytes: bigint | null }[]>`
    SELECT b.id, b.project_id AS "projectId", b.volume_bytes AS "volumeBytes" FROM backups b
    WHERE b.status = 'available' AND b.deleted_at IS NULL AND b.container IS NOT NULL
      AND coalesce(b.verified_at, b.created_at) <= now() - ${hours}::float8 * interval '1 hour'
      AND NOT EXISTS (SELECT 1 FROM operations o WHERE o.backup_id = b.id AND o.kind = 'backup-verify'
        AND o.state IN ('queued', 'running'))
    ORDER BY GREATEST(coalesce(b.verified_at, b.created_at),
      (SELECT max(o.created_at) FROM operations o WHERE o.backup_id = b.id AND o.kind = 'backup-verify')), b.id
    LIMIT (SELECT ceil(count(*) * ${percent}::float8 / 100) FROM backups WHERE status = 'available' AND deleted_at IS NULL)`;
  for (const backup of sample) {
    try {
      await startVerify(tx, config, clockwork(backup.projectId), { backup, mode });
    } catch (error) {
      // One that cannot be verified, of a repository that is no longer configured say, is not the others' affair.
      if (!(error instanceof ControlError)) throw error;
    }
  }
}
