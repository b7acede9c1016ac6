import { readdirSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { type DestinationStream, type Logger, type LoggerOptions, pino, stdSerializers } from "pino";
import { Counter, Gauge, Registry } from "prom-client";
import type { Config } from "../config.ts";
import type { Database } from "../db/database.ts";
import { isLiveWorker } from "../db/live.ts";
import { type ByteCounter, type CounterName, readCounters } from "./counters.ts";
import { rarely } from "./rarely.ts";
import { traceFields } from "./tracing.ts";

export type { Logger };

/**
 * JSON lines, by default on stdout, each with the program's name. Secrets are removed wherever a request or URL is logged; of an error,
 * only what `describeError` returns is logged.
 */
export function openLog(
  config: Pick<Config, "log_level" | "hostName"> & Partial<Pick<Config, "tracing">>,
  program: string,
  destination: DestinationStream = pino.destination(),
): Logger {
  const options: LoggerOptions = {
    level: config.log_level,
    base: { program, host: config.hostName, pid: process.pid },
    redact: {
      paths: ["req.headers['x-auth-token']", "req.headers.authorization", "req.headers.cookie"],
      censor: "***",
    },
    serializers: { err: describeError },
    ...(config.tracing ? { mixin: traceFields } : {}),
  };
  return pino(options, destination);
}

/**
 * Type, message, stack (both with causes) and code of an error, and no other property: client libraries attach what they were doing to
 * their errors, such as the arguments of a command that Redis refused, which include its password.
 */
function describeError(error: unknown): object {
  if (!(error instanceof Error)) return { message: String(error) };
  const { type, message, stack } = stdSerializers.err(error);
  const code = "code" in error ? String(error.code) : undefined;
  const errors = error instanceof AggregateError ? error.errors.map(describeError) : undefined;
  return { type, message, stack, code, errors };
}

/** Ends the process on an uncaught error, as Node would, but logs it like every other error. */
export function logCrash(log: Logger): void {
  process.on("uncaughtException", (error) => {
    log.fatal({ event: "crashed", err: error }, "crashed");
    process.exit(1);
  });
}

/** One function per business event: the log line and nothing else, so that its fields are the same wherever it happens. */
export const events = {
  taskClaimed: (
    log: Logger,
    task: { id: string; kind: string; operationId: string; claim: number; requestId: string },
  ) => log.info({ event: "task.claimed", ...fields(task) }, "task claimed"),
  taskFinished: (
    log: Logger,
    task: { id: string; kind: string; operationId: string; claim: number; requestId: string },
    ms: number,
  ) => log.info({ event: "task.finished", ...fields(task), ms }, "task finished"),
  taskDropped: (
    log: Logger,
    task: { id: string; kind: string; operationId: string; claim: number; requestId: string },
    why: string,
  ) => log.warn({ event: "task.dropped", ...fields(task), why }, "task dropped"),
  taskLeft: (log: Logger, task: { id: string; kind: string; operationId: string }) =>
    log.warn(
      { event: "task.left", task: task.id, kind: task.kind, operation: task.operationId },
      "left for workers of a newer release, whose plan or kind of task this one does not know",
    ),
  taskRetried: (
    log: Logger,
    task: { id: string; kind: string; operationId: string; claim: number; requestId: string },
    retry: { delayMs: number; reason: string },
  ) => log.warn({ event: "task.retried", ...fields(task), ...retry }, "task will be tried again"),
  operationFailed: (log: Logger, operation: { id: string; kind: string; reason: string; requestId: string }) =>
    log.error(
      {
        event: "operation.failed",
        operation: operation.id,
        kind: operation.kind,
        reason: operation.reason,
        request_id: operation.requestId,
      },
      "operation failed",
    ),
  stepFailed: (log: Logger, failure: { step: string; error: unknown; operation?: string }) =>
    log.error(
      { event: "reconciler.failed", step: failure.step, operation: failure.operation, err: failure.error },
      "a step of the reconciler failed; the others go on",
    ),
  quotaRepaired: (log: Logger, project: string) =>
    log.error({ event: "quota.repaired", project }, "a quota did not say what the rows add up to"),
  clockStepped: (log: Logger, stepMs: number) =>
    log.warn(
      { event: "database.clock-stepped", ms: stepMs },
      `the clock of PostgreSQL was set ${stepMs < 0 ? "back" : "forth"} by ${Math.round(Math.abs(stepMs) / 1_000)} s`,
    ),
  reconciled: (log: Logger, healed: Record<string, number>) => log.warn({ event: "reconciled", ...healed }, "healed"),
};

const fields = (task: { id: string; kind: string; operationId: string; claim: number; requestId: string }) => ({
  task: task.id,
  kind: task.kind,
  operation: task.operationId,
  claim: task.claim,
  request_id: task.requestId,
});

const MiB = 1024 * 1024;
/** Sampling interval of the event-loop delay: how late a timer of this length fires. */
const loopResolutionMs = 10;

/** Memory and descriptors of a process, and how long its event loop has delayed timers since the last line. */
export interface Vitals {
  rss_mib: number;
  /** JavaScript's own objects. */
  heap_mib: number;
  /** Buffers, which are outside the heap. */
  external_mib: number;
  /** Open files and connections; null where the system does not report them. */
  descriptors: number | null;
  loop_delay_p99_ms: number;
  loop_delay_max_ms: number;
}

/** Logs `process.vitals` at this interval, for as long as the process lives. */
export function logVitals(log: Logger, everyMs: number): void {
  const delays = monitorEventLoopDelay({ resolution: loopResolutionMs });
  delays.enable();
  const lateMs = (nanoseconds: number): number => Math.max(0, Math.round(nanoseconds / 1e5) / 10 - loopResolutionMs);
  const tell = (): void => {
    const { rss, heapUsed, external } = process.memoryUsage();
    const vitals: Vitals = {
      rss_mib: Math.round(rss / MiB),
      heap_mib: Math.round(heapUsed / MiB),
      external_mib: Math.round(external / MiB),
      descriptors: countDescriptors(),
      loop_delay_p99_ms: lateMs(delays.percentile(99)),
      loop_delay_max_ms: lateMs(delays.max),
    };
    delays.reset();
    log.info({ event: "process.vitals", ...vitals }, "vitals");
  };
  setInterval(tell, everyMs).unref();
}

function countDescriptors(): number | null {
  try {
    return readdirSync("/proc/self/fd").length;
  } catch {
    return null;
  }
}

interface Figures {
  ready: number;
  dispatched: number;
  running: number;
  oldest_ready_seconds: number;
  oldest_creating_seconds: number;
  last_success_age_seconds: number | null;
  workers: number;
  slots: number;
  notifications_pending: number;
  notifications_dead: number;
  policy_next_run: number | null;
}

/** Up to so many ready tasks are counted at every scrape; more, at most once in this time. */
const readyMax = 1_000;
const readyMs = 10_000;

async function countReady(database: Database): Promise<number> {
  const [row] = await database.$queryRaw<{ ready: number }[]>`
    SELECT count(*)::int AS ready FROM tasks WHERE state = 'ready'`;
  return row?.ready ?? 0;
}

/**
 * Each reads a few index entries only: rows that have ended are not examined, except the last successful backup. `ready` is at most
 * `readyMax` + 1.
 */
async function readFigures(database: Database, downMs: number): Promise<Figures> {
  const rows = await database.$queryRaw<Figures[]>`
    WITH up AS (SELECT slots FROM workers WHERE ${isLiveWorker("workers", downMs)})
    SELECT
      (SELECT count(*) FROM (SELECT FROM tasks WHERE state = 'ready' LIMIT ${readyMax + 1}) AS first)::int AS ready,
      (SELECT count(*) FROM tasks WHERE state = 'dispatched')::int AS dispatched,
      (SELECT count(*) FROM tasks WHERE state = 'running')::int AS running,
      coalesce((SELECT extract(epoch FROM now() - min(queued_at)) FROM tasks WHERE state IN ('ready', 'dispatched')), 0)::float AS oldest_ready_seconds,
      coalesce((SELECT extract(epoch FROM now() - min(created_at)) FROM backups WHERE status = 'creating' AND deleted_at IS NULL), 0)::float AS oldest_creating_seconds,
      (SELECT extract(epoch FROM now() - max(finished_at)) FROM operations WHERE kind = 'backup-create' AND state = 'succeeded')::float AS last_success_age_seconds,
      (SELECT count(*) FROM up)::int AS workers,
      (SELECT coalesce(sum(slots), 0) FROM up)::int AS slots,
      (SELECT count(*) FROM deliveries WHERE state = 'pending')::int AS notifications_pending,
      (SELECT count(*) FROM deliveries WHERE state = 'dead')::int AS notifications_dead,
      (SELECT extract(epoch FROM min(next_at)) FROM policies)::float AS policy_next_run`;
  const row = rows[0];
  if (!row) throw new Error("no figures");
  return row;
}

const policyOutcomes = ["succeeded", "late", "failed", "skipped", "missed"] as const;

/** Volumes are counted at most once in this time, however often a process is scraped: that reads all of them. */
const volumesMs = 60_000;

/** The same of alerts: each is a few index entries. */
const alertsMs = 10_000;

/**
 * The contents of `/metrics`. Figures are read from Postgres at the moment of the scrape, but for volumes, alerts and a long queue; labels are
 * bounded.
 *
 * @param countVolumes how many volumes are in each state of protection
 * @param countAlerts how many alerts there are of each code, with these volumes
 */
export function openMetrics<State extends string>(
  database: Database,
  config: Pick<Config, "worker">,
  countVolumes: () => Promise<Record<State, number>> = async () => ({}) as Record<State, number>,
  countAlerts: (
    volumes: Record<State, number>,
  ) => Promise<Readonly<Record<string, { told: number; snoozed: number }>>> = async () => ({}),
) {
  const registry = new Registry();
  const gauge = (name: string, help: string) => new Gauge({ name, help, registers: [registry] });
  const gauges = {
    ready: gauge(
      "tephra_tasks_ready",
      "Tasks that wait to be dispatched (queue depth); more than 1,000 are counted at most every ten seconds",
    ),
    dispatched: gauge("tephra_tasks_dispatched", "Tasks handed to the queue and not yet claimed"),
    running: gauge("tephra_tasks_running", "Tasks running under a lease"),
    oldest_ready_seconds: gauge("tephra_queue_age_seconds", "Age of the oldest task that has not started"),
    oldest_creating_seconds: gauge(
      "tephra_oldest_creating_backup_seconds",
      "Age of the oldest backup that is still being created",
    ),
    last_success_age_seconds: gauge(
      "tephra_last_success_age_seconds",
      "Seconds since a backup last became available; NaN before the first",
    ),
    workers: gauge("tephra_workers", "Worker processes heard of within worker.down_ms"),
    slots: gauge("tephra_worker_slots", "Tasks that those workers can run at once"),
    notifications_pending: gauge("tephra_notifications_pending", "Notifications on their way, counted once per target"),
    notifications_dead: gauge("tephra_notifications_dead", "Notifications that a target never took"),
    policy_next_run: gauge(
      "tephra_policy_next_run_timestamp",
      "When a policy is due next, in seconds since 1970; NaN without one",
    ),
  } as const;
  const counter = (name: string, help: string, labelNames: readonly string[] = []) =>
    new Counter({ name, help, labelNames, registers: [registry] });
  const counted: Record<CounterName | ByteCounter, Counter> = {
    bytes_read: counter(
      "tephra_bytes_in_total",
      "Bytes of volumes and backups that tasks have read, counted as they end",
    ),
    bytes_stored: counter("tephra_bytes_out_total", "Bytes that tasks have stored, counted as they end"),
    reconciler_failures: counter(
      "tephra_reconciler_failures_total",
      "Steps of reconcilers, and operations in them, that threw something other than an outage of the database",
      ["step"],
    ),
    quota_repairs: counter(
      "tephra_quota_repairs_total",
      "Quotas that did not say what the rows add up to, and were put right; stays 0",
    ),
    clock_steps: counter(
      "tephra_database_clock_steps_total",
      "How often the clock of PostgreSQL was seen to have been set",
    ),
    policy_runs: counter(
      "tephra_policy_runs_total",
      "Runs of policies that have ended: succeeded, late (begun after its time), failed (of some volume), skipped (the one before went on) or missed (never begun)",
      ["outcome"],
    ),
  };
  const readyNow = rarely(readyMs, () => countReady(database));
  const volumesNow = rarely(volumesMs, countVolumes);
  const volumes = new Gauge({
    name: "tephra_volumes",
    help: "Volumes by how protected they are, counted at most once a minute",
    labelNames: ["state"],
    registers: [registry],
  });
  const alertsNow = rarely(alertsMs, async () => countAlerts(await volumesNow()));
  const alerts = new Gauge({
    name: "tephra_alerts",
    help: "What asks for somebody, by code (docs/console.md): 0 when nothing does, or it is snoozed",
    labelNames: ["code"],
    registers: [registry],
  });
  const snoozed = new Gauge({
    name: "tephra_alerts_snoozed",
    help: "What would ask for somebody, and is snoozed, by code",
    labelNames: ["code"],
    registers: [registry],
  });
  const requests = new Counter({
    name: "tephra_http_requests_total",
    help: "Answers by status class",
    labelNames: ["status"],
    registers: [registry],
  });
  return {
    contentType: registry.contentType,
    countRequest: (status: number) => requests.inc({ status: `${Math.floor(status / 100)}xx` }),
    async render(): Promise<string> {
      const figures = await readFigures(database, config.worker.down_ms);
      if (figures.ready > readyMax) figures.ready = Math.max(figures.ready, await readyNow());
      for (const [state, number] of Object.entries<number>(await volumesNow())) volumes.set({ state }, number);
      for (const [code, count] of Object.entries(await alertsNow())) {
        alerts.set({ code }, count.told);
        snoozed.set({ code }, count.snoozed);
      }
      const counts = await readCounters(database);
      // Their totals are in rows: each is told anew. A series is there from the start, at 0, so that its first increase is seen as one.
      for (const each of Object.values(counted)) each.reset();
      for (const outcome of policyOutcomes) counted.policy_runs.inc({ outcome }, 0);
      for (const { name, label, value } of counts) {
        const labelName = name === "policy_runs" ? "outcome" : "step";
        counted[name]?.inc(label === "" ? {} : { [labelName]: label }, value);
      }
      for (const [key, value] of Object.entries(figures)) gauges[key as keyof Figures].set(value ?? Number.NaN);
      return registry.metrics();
    },
  };
}
