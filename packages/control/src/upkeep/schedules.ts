import { randomUUID } from "node:crypto";
import { startVerify } from "../backups/verify.ts";
import type { Config } from "../config.ts";
import { type Database, inTransaction, type Transaction } from "../db/database.ts";
import { ControlError, InvalidError } from "../errors.ts";
import type { Principal } from "../principal.ts";
import { startReap } from "../repositories/reap.ts";
import { repairQuotas } from "../rows/quota-repair.ts";
import { count } from "../telemetry/counters.ts";
import { events, type Logger } from "../telemetry/telemetry.ts";

/** What is begun by the clock: its name among the schedules, and how to look whether it is due and to begin it. */
export interface DueWork {
  name: string;
  start: () => Promise<void>;
}

/** Sums of all rows are compared with the quotas so often. */
const quotasHours = 1;

/** Verifications and passes of the reaper, as configured, and the comparison of quotas. Any number of processes may ask. */
export function dueWork(database: Database, config: Config, log: Logger): DueWork[] {
  const { verify, reaper } = config;
  const due = (name: string, hours: number | null, work: (tx: Transaction) => Promise<void>): DueWork[] =>
    hours === null ? [] : [{ name, start: () => whenDue(database, { name, hours }, work) }];
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

/**
 * Does `work` if it was last done at least so many hours ago, once over all processes; the first time is one interval after the schedule was
 * first seen, so that a database that was lost can be rebuilt before. What is refused now is asked for again at the next look.
 */
async function whenDue(
  database: Database,
  schedule: { name: string; hours: number },
  work: (tx: Transaction) => Promise<void>,
): Promise<void> {
  const { name, hours } = schedule;
  const [known] = await database.$queryRaw<{ due: boolean }[]>`
    SELECT ran_at <= now() - ${hours}::float8 * interval '1 hour' AS due FROM schedules WHERE name = ${name}`;
  if (!known) await database.$executeRaw`INSERT INTO schedules (name) VALUES (${name}) ON CONFLICT DO NOTHING`;
  if (!known?.due) return;
  try {
    await inTransaction(database, async (tx) => {
      const mine = await tx.$executeRaw`
        UPDATE schedules SET ran_at = now() WHERE name = ${name} AND ran_at <= now() - ${hours}::float8 * interval '1 hour'`;
      if (mine === 1) await work(tx);
    });
  } catch (error) {
    if (!(error instanceof InvalidError)) throw error;
  }
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
