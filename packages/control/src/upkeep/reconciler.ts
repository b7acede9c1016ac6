import { letGoOfMerged } from "../backups/delete.ts";
import type { Config } from "../config.ts";
import { actAs } from "../db/actor.ts";
import { forgetUnplaced, mendTimes, watchClock } from "../db/clock.ts";
import type { Database } from "../db/database.ts";
import { isDatabaseOutage, mayPass } from "../db/outage.ts";
import { releaseImageTransfers } from "../image-transfers/abandoned.ts";
import { releaseMachineBackups } from "../machines/backup-work.ts";
import { realignPolicies } from "../policies/due-runs.ts";
import { runPolicies } from "../policies/work.ts";
import { freeBlocked } from "../queue/blocked.ts";
import type { Election } from "../queue/election.ts";
import { releaseDead, ringDispatchers } from "../queue/tasks.ts";
import { count } from "../telemetry/counters.ts";
import { events, type Logger } from "../telemetry/telemetry.ts";
import { type Failure, failOperation } from "./failing.ts";
import { endBluntly, failPoisoned, failStuck, failUnplaced, type Place } from "./healing.ts";
import { type DueWork, dueWork } from "./schedules.ts";

/**
 * After an operation's regular ending has thrown this many times, the operation is ended without it. By then, processes of a newer release,
 * which may know more about its kind, have had their turn.
 */
const endingsMax = 3;

export interface ReconcilerPass {
  database: Database;
  config: Config;
  log: Logger;
  /** Expiries cost no attempt: during an outage of Postgres nobody could renew. */
  afterOutage: boolean;
  term: Term;
}

/** What a process remembers from pass to pass while it is the one that reconciles. */
export interface Term {
  /** Operation id → how often its ending has thrown. */
  thrown: Map<string, number>;
  /** Where the next pass goes on to look for operations without tasks. */
  walkedTo: Place | null;
  /** When deadlines are next looked through, in ms of the monotonic clock. */
  timesDueAt: number;
  /** The same of backups that were merged into others and are still there. */
  mergedDueAt: number;
}

export const beginTerm = (): Term => ({ thrown: new Map(), walkedTo: null, timesDueAt: 0, mergedDueAt: 0 });

/**
 * Interval at which deadlines are looked for that lie too far in the future, among everything that waits. Only a clock that was set back
 * leaves any, and after a step, an outage or a change of the process that reconciles the next pass looks at once.
 */
const timesMs = 30_000;

/** Interval at which backups are looked for that a squash could not let go of at once: somebody read them. */
const mergedMs = 30_000;

async function tell(
  { database, log }: ReconcilerPass,
  failure: { step: string; error: unknown; operation?: string },
): Promise<void> {
  events.stepFailed(log, failure);
  await count(database, "reconciler_failures", failure.step);
}

/** Ends an operation. One whose ending throws does not keep others from ending, and is ended without it after a while. */
async function endOne(pass: ReconcilerPass, step: string, id: string, failure: Failure): Promise<void> {
  const { database, log } = pass;
  const { thrown } = pass.term;
  try {
    const failed = await failOperation(database, id, failure);
    thrown.delete(id);
    const { reason } = failure;
    if (failed) events.operationFailed(log, { id, kind: failed.kind, reason, requestId: failed.requestId });
  } catch (error) {
    if (isDatabaseOutage(error)) throw error;
    await tell(pass, { step, error, operation: id });
    if (mayPass(error)) return;
    const times = (thrown.get(id) ?? 0) + 1;
    thrown.set(id, times);
    if (times < endingsMax) return;
    thrown.delete(id);
    const reason = `${failure.reason} Its ending failed, too: ${(error as Error).message}`;
    await endBluntly(database, id, reason).catch(async (fault: unknown) => {
      if (isDatabaseOutage(fault)) throw fault;
      await tell(pass, { step, error: fault, operation: id });
    });
  }
}

/** Runs one step. Its errors are logged and counted, and the other steps go on; only an outage of the database ends the pass. */
async function runStep(pass: ReconcilerPass, step: string, work: () => Promise<unknown>): Promise<number> {
  try {
    const done = await work();
    return typeof done === "number" ? done : 0;
  } catch (error) {
    if (isDatabaseOutage(error)) throw error;
    await tell(pass, { step, error });
    return 0;
  }
}

/** One pass. Every statement changes a row only once, so any number of processes may run it side by side. */
export async function reconcile(pass: ReconcilerPass): Promise<void> {
  const { database, config, log, afterOutage, term } = pass;
  const step = (name: string, work: () => Promise<unknown>) => runStep(pass, name, work);
  const ending = (name: string) => (id: string, failure: Failure) => endOne(pass, name, id, failure);
  if (afterOutage || performance.now() >= term.timesDueAt) {
    await step("mend-times", async () => {
      await mendTimes(database, config);
      term.timesDueAt = performance.now() + timesMs;
    });
  }
  const expired = await step("release-dead", () => releaseDead(database, config, afterOutage));
  const poisoned = await step("fail-poisoned", () => failPoisoned(database, config, ending("fail-poisoned")));
  const freed = await step("free-blocked", () => freeBlocked(database));
  const stuck = await step("fail-stuck", async () => {
    const { ended, next } = await failStuck(database, config, term.walkedTo, ending("fail-stuck"));
    term.walkedTo = next;
    return ended;
  });
  const unplaced = await step("fail-unplaced", () => failUnplaced(database, config, ending("fail-unplaced")));
  if (afterOutage) await step("realign-policies", () => realignPolicies(database));
  await step("policies", () => runPolicies(database, config));
  await step("release-machine-backups", () => releaseMachineBackups(database));
  await step("release-image-transfers", () => releaseImageTransfers(database, config));
  if (performance.now() >= term.mergedDueAt) {
    await step("let-go-of-merged", async () => {
      await letGoOfMerged(database, config);
      term.mergedDueAt = performance.now() + mergedMs;
    });
  }
  let due: DueWork[] = [];
  await step("schedules", async () => {
    due = await dueWork(database, config, log);
  });
  for (const { name, start } of due) await step(`schedule ${name}`, start);
  const advanced = freed + stuck;
  if (expired + poisoned + advanced + unplaced === 0) return;
  events.reconciled(log, { expired, advanced, unplaced });
  await ringDispatchers(database);
}

export interface Reconciler {
  stop(): Promise<void>;
}

/** A pass that takes longer has another process reconcile meanwhile. */
const passMsMax = 10_000;

/**
 * Repairs what a crash, a lost Redis or a removed job left behind. Runs in workers and in the API, so that an operation ends even when no
 * worker is alive, and works in the one process that is elected. After an outage of Postgres it waits for one lease, so that live holders
 * can renew first.
 */
export function startReconciler(options: {
  database: Database;
  config: Config;
  log: Logger;
  /** Without one, this process always reconciles. */
  election?: Election;
}): Reconciler {
  const { database, config, log, election } = options;
  const leaseMs = config.worker.lease_ms;
  let clock = watchClock(database);
  let stopped = false;
  let timer: NodeJS.Timeout | undefined;
  let outage = false;
  let term = beginTerm();
  let quietUntil = 0;
  let running: Promise<void> = Promise.resolve();
  const work = async (): Promise<void> => {
    if (outage) {
      await database.$queryRaw`SELECT 1`;
      outage = false;
      quietUntil = performance.now() + leaseMs;
    }
    const stepMs = await clock.measure();
    if (stepMs !== 0) {
      // Every lease looks expired, or valid for too long: live holders get the time to renew first.
      quietUntil = performance.now() + leaseMs;
      events.clockStepped(log, stepMs);
      await count(database, "clock_steps", "");
      await forgetUnplaced(database);
    }
    if (performance.now() < quietUntil) return;
    const afterOutage = quietUntil > 0;
    quietUntil = 0;
    await actAs({ kind: "reconciler" }, () => reconcile({ database, config, log, afterOutage, term }));
  };
  const pass = async (): Promise<void> => {
    if (election?.holds("reconciler") === false) return;
    try {
      await (election ? election.during("reconciler", passMsMax, work) : work());
    } catch (error) {
      outage = isDatabaseOutage(error);
      log.warn({ err: error }, outage ? "reconciler cannot reach the database" : "a pass of the reconciler failed");
    }
  };
  election?.onChange((role, holds) => {
    if (role !== "reconciler" || !holds) return;
    // What was measured or counted in an earlier term is out of date. Its predecessor may have ended with PostgreSQL.
    clock = watchClock(database);
    term = beginTerm();
    if (performance.now() - election.troubledAt() < leaseMs) quietUntil = performance.now() + leaseMs;
  });
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
