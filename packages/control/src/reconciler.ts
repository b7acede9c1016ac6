import { actAs } from "./actor.ts";
import { forgetAudit } from "./audit.ts";
import type { Config } from "./config.ts";
import type { Database } from "./database.ts";
import { failOperation } from "./failures.ts";
import { forgetMessages } from "./messages.ts";
import { hinders } from "./operations.ts";
import { startDueWork } from "./schedules.ts";
import { backupBinary } from "./services.ts";
import { ringDispatchers } from "./tasks.ts";
import { events, type Logger } from "./telemetry.ts";
import { whyUnreachable } from "./workers.ts";

/** Cards of workers that were not heard of for so long are thrown away. */
const forgetWorkersAfter = "1 hour";

interface Expired {
  id: string;
  operation_id: string;
  kind: string;
  attempts: number;
  fail_reason: string | null;
}

/**
 * Rule one: a task whose lease is dead, or which was dispatched long ago and never claimed, becomes ready again: by its own
 * timestamps, never by asking Redis. After an outage of Postgres such expiries cost no attempt.
 */
async function releaseDead(database: Database, config: Config, afterOutage: boolean): Promise<Expired[]> {
  return database.$queryRaw<Expired[]>`
    UPDATE tasks t SET state = CASE WHEN t.kind <> 'tidy' AND o.state NOT IN ('queued', 'running') THEN 'cancelled' ELSE 'ready' END,
      lease_until = NULL, worker_id = NULL, run_after = now(),
      attempts = CASE WHEN ${afterOutage} THEN GREATEST(0, t.attempts - 1) ELSE t.attempts END
    FROM operations o
    WHERE o.id = t.operation_id AND ((t.state = 'running' AND t.lease_until < now())
      OR (t.state = 'dispatched' AND t.dispatched_at < now() - ${config.tasks.dispatch_timeout_ms} * interval '1 millisecond'))
    RETURNING t.id, t.operation_id, t.kind, t.attempts, t.fail_reason`;
}

/** Too many claims came to nothing: the operation ends, with a reason that a person can act on. */
async function failPoisoned(
  database: Database,
  config: Config,
  expired: readonly Expired[],
  log: Logger,
): Promise<void> {
  for (const task of expired.filter((t) => t.kind !== "tidy" && t.attempts >= config.tasks.attempts_max)) {
    const last = task.fail_reason ? ` The last error was: ${task.fail_reason}` : "";
    const reason = `Gave up after ${task.attempts} workers were lost at task ${task.kind} without progress.${last}`;
    const failed = await failOperation(database, task.operation_id, { reason });
    if (failed) events.operationFailed(log, { id: failed.id, kind: failed.kind, reason, requestId: failed.requestId });
  }
}

/**
 * Rule two: what waits for nothing goes on. A tidy task blocked behind running ones is freed when they are gone, and so is a removal
 * behind those of whatever it cancelled; a live operation with no unfinished task cannot come from any commit of ours, so somebody
 * took its tasks away: it ends with a reason.
 */
async function advanceStalled(database: Database, config: Config, log: Logger): Promise<number> {
  const freed = await database.$executeRaw`
    UPDATE tasks t SET state = 'ready', run_after = now() FROM operations o
    WHERE o.id = t.operation_id AND t.state = 'blocked' AND t.kind IN ('tidy', 'remove-backup', 'remove-volume', 'remove-snapshot')
      AND NOT EXISTS (SELECT 1 FROM tasks r WHERE r.operation_id = t.operation_id AND r.state = 'running')
      AND (t.kind = 'tidy' OR NOT EXISTS (SELECT 1 FROM operations p JOIN tasks r ON r.operation_id = p.id
        WHERE r.state = 'running' AND r.kind <> 'tidy' AND ${hinders("p", "o")}))`;
  const stuck = await database.$queryRaw<{ id: string }[]>`
    SELECT o.id FROM operations o WHERE o.state IN ('queued', 'running')
      AND coalesce(o.updated_at, o.created_at) < now() - ${config.tasks.unplaced_timeout_ms} * interval '1 millisecond'
      AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.operation_id = o.id
        AND (t.state IN ('ready', 'dispatched', 'running') OR (t.state = 'blocked' AND t.kind IN ('remove-backup', 'remove-volume', 'remove-snapshot'))))
      AND NOT EXISTS (SELECT 1 FROM operations p WHERE p.parent_id = o.id AND p.state IN ('queued', 'running'))`;
  for (const { id } of stuck) {
    const reason = "The operation has no task left to run.";
    const failed = await failOperation(database, id, { reason });
    if (failed) events.operationFailed(log, { id, kind: failed.kind, reason, requestId: failed.requestId });
  }
  return freed + stuck.length;
}

const noService: Readonly<Record<string, string>> = {
  "backup-create": "Service not found for creating backup.",
};

/**
 * A task that no live worker can reach fails after a while, as Cinder fails it, with what workers say about it. Disabled workers do not
 * count, but what they had begun waits for them. The while begins when a reconciler first sees that there is none, so that a task that has
 * waited long for its turn outlives a restart of the workers, or of everything.
 */
async function failUnplaced(database: Database, config: Config, log: Logger): Promise<number> {
  const downMs = config.worker.down_ms;
  await database.$executeRaw`
    WITH looked AS (
      SELECT t.id, t.state = 'ready' AND t.kind <> 'tidy' AND t.run_after <= now() AND o.state IN ('queued', 'running')
        AND NOT EXISTS (SELECT 1 FROM workers w WHERE t.needs <@ w.reaches
          AND w.heartbeat_at > now() - ${downMs} * interval '1 millisecond'
          AND (o.state = 'running' OR NOT EXISTS (
            SELECT 1 FROM disabled_services d WHERE d.binary = ${backupBinary} AND d.host = w.host))) AS unplaced
      FROM tasks t JOIN operations o ON o.id = t.operation_id
      WHERE t.state = 'ready' OR (t.unplaced_at IS NOT NULL AND t.state IN ('dispatched', 'running'))
    ), changed AS (
      SELECT t.id, looked.unplaced FROM tasks t JOIN looked ON looked.id = t.id
      WHERE looked.unplaced <> (t.unplaced_at IS NOT NULL) FOR UPDATE OF t SKIP LOCKED
    )
    UPDATE tasks t SET unplaced_at = CASE WHEN changed.unplaced THEN now() END FROM changed WHERE t.id = changed.id`;
  const rows = await database.$queryRaw<{ operation_id: string; kind: string; needs: string[] }[]>`
    SELECT DISTINCT t.operation_id, o.kind, t.needs FROM tasks t JOIN operations o ON o.id = t.operation_id
    WHERE t.state = 'ready' AND o.state IN ('queued', 'running')
      AND t.unplaced_at < now() - ${config.tasks.unplaced_timeout_ms} * interval '1 millisecond' LIMIT 100`;
  for (const row of rows) {
    const why = await whyUnreachable(database, row.needs, downMs);
    const base = noService[row.kind] ?? "No worker reaches what the operation needs.";
    const reason = why.length > 0 ? `${base} ${why.join(" ")}` : base;
    const failed = await failOperation(database, row.operation_id, { reason, unplaced: true });
    if (failed) events.operationFailed(log, { id: failed.id, kind: failed.kind, reason, requestId: failed.requestId });
  }
  return rows.length;
}

/** One pass. Every statement changes a row only once, so any number of processes may run it side by side. */
async function reconcile(database: Database, config: Config, log: Logger, afterOutage: boolean): Promise<void> {
  const expired = await releaseDead(database, config, afterOutage);
  await failPoisoned(database, config, expired, log);
  const advanced = await advanceStalled(database, config, log);
  const unplaced = await failUnplaced(database, config, log);
  await database.$executeRaw`DELETE FROM workers WHERE heartbeat_at < now() - ${forgetWorkersAfter}::interval`;
  await forgetMessages(database, config);
  await forgetAudit(database, config);
  await startDueWork(database, config);
  if (expired.length + advanced + unplaced === 0) return;
  events.reconciled(log, { expired: expired.length, advanced, unplaced });
  await ringDispatchers(database);
}

export interface Reconciler {
  stop(): Promise<void>;
}

/**
 * Heals what a crash, a lost Redis or a removed job left behind. Runs in workers and in the API, so that an operation ends even
 * when no worker is alive. After an outage of Postgres it waits one lease: holders that live renew first.
 */
export function startReconciler(options: { database: Database; config: Config; log: Logger }): Reconciler {
  const { database, config, log } = options;
  let stopped = false;
  let timer: NodeJS.Timeout | undefined;
  let outage = false;
  let quietUntil = 0;
  let running: Promise<void> = Promise.resolve();
  const pass = async (): Promise<void> => {
    try {
      if (outage) {
        await database.$queryRaw`SELECT 1`;
        outage = false;
        quietUntil = performance.now() + config.worker.lease_ms;
      }
      const waiting = performance.now() < quietUntil;
      if (!waiting) {
        await actAs({ kind: "reconciler" }, () => reconcile(database, config, log, quietUntil > 0));
        quietUntil = 0;
      }
    } catch (error) {
      outage = true;
      log.warn({ err: error }, "reconciler cannot reach the database");
    }
  };
  const next = (): void => {
    if (stopped) return;
    const jitter = 0.75 + Math.random() / 2;
    timer = setTimeout(() => {
      running = pass().then(next);
    }, config.tasks.reconcile_ms * jitter);
  };
  next();
  return {
    async stop() {
      stopped = true;
      clearTimeout(timer);
      await running;
    },
  };
}
