import type { Config } from "../config.ts";
import { Prisma } from "../generated/client.ts";
import { besideIn } from "../volume-backends.ts";
import type { Database } from "./database.ts";

/** Smaller differences can come from a slow response on a busy machine, or from clock slewing. */
const stepMinMs = 2_000;

export interface DatabaseClock {
  /** By how much PostgreSQL's clock was stepped since the last call, in ms; 0 when it was not. Measured by the monotonic clock. */
  measure(): Promise<number>;
}

export function watchClock(database: Database): DatabaseClock {
  let before: number | null = null;
  return {
    async measure() {
      const askedAt = performance.now();
      const [row] = await database.$queryRaw<{ ms: number }[]>`
        SELECT (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS ms`;
      const answeredAt = performance.now();
      if (!row) return 0;
      const apart = row.ms - (askedAt + answeredAt) / 2;
      const stepMs = before === null ? 0 : apart - before;
      before = apart;
      return Math.abs(stepMs) > stepMinMs + (answeredAt - askedAt) ? Math.round(stepMs) : 0;
    },
  };
}

/** Whatever other processes have configured, no lease and no silence of a worker lasts longer than this many times ours. */
const leasesMax = 10;
const leastMs = 60_000;

/**
 * Deadlines further in the future than the longest wait of their kind were written before the clock was set back: their wait ends now, or
 * starts over. A row is changed only once, so that any number of processes may do this.
 *
 * @returns how many there were
 */
export async function mendTimes(database: Database, config: Config): Promise<number> {
  const { tasks, worker, notifications } = config;
  const leaseMs = Math.max(leastMs, leasesMax * worker.lease_ms);
  const downMs = Math.max(leastMs, worker.down_ms);
  // The first task of a restore waits for its request (prepareRestore).
  const prepareMs = (besideIn(config.volume_backends)?.wait.prepare_seconds ?? 0) * 1000;
  const retryMs = Math.max(leastMs, 2 * tasks.backoff_ms * 2 ** tasks.attempts_max, prepareMs);
  const dispatchMs = Math.max(leastMs, tasks.dispatch_timeout_ms);
  const unplacedMs = Math.max(leastMs, tasks.unplaced_timeout_ms);
  const takenMs = Math.max(leastMs, 2 * notifications.timeout_ms);
  const { backoff_ms: backoffMs, backoff_ms_max: backoffMaxMs } = notifications;
  /** Later than this many ms from now. */
  const after = (waitMs: number): Prisma.Sql => Prisma.sql`now() + ${waitMs}::float8 * interval '1 millisecond'`;
  const wait = Prisma.sql`GREATEST(${takenMs}::float8, LEAST(${backoffMaxMs}::float8, ${backoffMs}::float8 * power(2, LEAST(attempts, 40))))`;
  const mended = [
    await database.$executeRaw`
      UPDATE tasks SET run_after = now() WHERE state IN ('ready', 'dispatched') AND run_after > ${after(retryMs)}`,
    await database.$executeRaw`
      UPDATE tasks SET lease_until = now() - interval '1 millisecond' WHERE state = 'running' AND lease_until > ${after(leaseMs)}`,
    await database.$executeRaw`
      UPDATE machine_backups SET lease_until = now() - interval '1 millisecond'
      WHERE (ended_at IS NULL OR leftovers) AND lease_until > ${after(leaseMs)}`,
    await database.$executeRaw`
      UPDATE tasks SET dispatched_at = now() WHERE state = 'dispatched' AND dispatched_at > ${after(dispatchMs)}`,
    await database.$executeRaw`
      UPDATE tasks SET unplaced_at = now()
      WHERE state IN ('ready', 'dispatched', 'running') AND unplaced_at > ${after(unplacedMs)}`,
    await database.$executeRaw`
      UPDATE workers SET heartbeat_at = now() - ${downMs}::float8 * interval '1 millisecond' WHERE heartbeat_at > ${after(downMs)}`,
    await database.$executeRaw`
      UPDATE deliveries SET run_after = now()
      WHERE state = 'pending' AND run_after > now() + ${wait} * interval '1 millisecond'`,
    await database.$executeRaw`UPDATE schedules SET ran_at = now() WHERE ran_at > ${after(leastMs)}`,
  ];
  return mended.reduce((sum, rows) => sum + rows, 0);
}

/** Restarts the period for which tasks have been without a capable worker, since the clock that measured it was just set. */
export async function forgetUnplaced(database: Database): Promise<void> {
  await database.$executeRaw`
    UPDATE tasks SET unplaced_at = now() WHERE state IN ('ready', 'dispatched', 'running') AND unplaced_at IS NOT NULL`;
}
