import { randomUUID } from "node:crypto";
import type { Config } from "../config.ts";
import { type Database, inTransaction, Prisma, type Transaction } from "../db/database.ts";
import { isLiveWorker } from "../db/live.ts";
import { notifyPolicy } from "../events/notifications.ts";
import type { Principal } from "../principal.ts";
import { findPolicy, lockPolicy, type Policy, readClock } from "../rows/policies.ts";
import { addItems, addRun, type NewRun, type RunState, realignRuns, skipRun } from "../rows/policy-runs.ts";
import { count } from "../telemetry/counters.ts";
import { candidatesOf, policyKey } from "./applies.ts";
import { type PolicyRow, readPolicy } from "./policies.ts";
import { nextTime } from "./schedule.ts";

/** A run that begins this long after its time is late. */
const lateMs = 5 * 60_000;
/** So many of the times that nobody was there for are looked through, and so many are written down. */
const missedMax = 1_000;
const missedWritten = 100;

const nobody = "No worker was alive at that time, or no process that could begin the run.";
const unended = "The backups of an earlier run have not ended.";

/** The next time is written down before anything begins: whoever finds the row due after that has to wait for it. */
const moveNext = (tx: Transaction, id: string, nextAt: Date | null) =>
  tx.policy.update({ where: { id }, data: { nextAt } });

/** Whether anybody can do what a run asks for. */
export async function hasWorkers(database: Database | Transaction, config: Config): Promise<boolean> {
  const [row] = await database.$queryRaw<{ alive: boolean }[]>`
    SELECT EXISTS (SELECT FROM workers WHERE ${isLiveWorker("workers", config.worker.down_ms)}) AS alive`;
  return row?.alive === true;
}

/** All times of the schedule from `due` to `now`. */
function timesSince({ schedule }: PolicyRow, due: Date, now: Date): Date[] {
  const times: Date[] = [];
  for (let at: Date | null = due; at !== null && at <= now && times.length < missedMax; ) {
    times.push(at);
    at = nextTime(schedule, at);
  }
  return times;
}

/**
 * SQL: what a policy applies to: volumes one by one, and machines as a whole. Not what is excluded on purpose. A disk of a machine that has
 * a policy of its own does not count, and a machine none of whose disks counts is left alone.
 */
function subjectsOf({ id, name, projectId }: Policy): Prisma.Sql {
  const concerned = Prisma.sql`
    (v.id IN (SELECT volume_id FROM policy_assignments WHERE policy_id = ${id}::uuid AND scope = 'volume')
      OR v.metadata->>${policyKey} = ${name}
      OR v.group_id IN (SELECT g.id FROM groups g JOIN policy_assignments a ON a.project_id = g.project_id AND a.instance_id = g.instance_id
        WHERE a.policy_id = ${id}::uuid)
      OR v.project_id IN (SELECT project_id FROM policy_assignments WHERE policy_id = ${id}::uuid AND scope = 'project'))
    AND coalesce(v.project_id = ${projectId}, true)`;
  return Prisma.sql`
    SELECT DISTINCT project_id, CASE WHEN source = 'machine' THEN NULL ELSE volume_id END AS volume_id, instance_id
    FROM (SELECT DISTINCT ON (volume_id) * FROM (${candidatesOf(concerned)}) candidates ORDER BY volume_id, place) applied
    WHERE policy_id = ${id}::uuid AND NOT EXISTS (
      SELECT FROM volume_exclusions e WHERE e.volume_id = applied.volume_id AND (e.until IS NULL OR e.until > now()))`;
}

/** What every event about a run says. */
const toldOf = (policy: Policy, run: Pick<NewRun, "id" | "dueAt"> & { state: RunState; reason?: string | null }) => ({
  policy_id: policy.id,
  policy_name: policy.name,
  tenant_id: policy.projectId,
  run_id: run.id,
  due_at: run.dueAt.toISOString(),
  state: run.state,
  reason: run.reason ?? null,
});

/** Which share of the run's backups is verified; counts the runs of which none is. */
async function shareVerified(tx: Transaction, { id, verify, unverified }: PolicyRow & Policy): Promise<number> {
  const due = verify !== null && unverified + 1 >= verify.every;
  await tx.policy.update({ where: { id }, data: { unverified: due ? 0 : unverified + 1 } });
  return due ? verify.sample / 100 : 0;
}

/** Enters a run with all that it has to do. @returns its id; null when there is one of that time already */
async function enterRun(
  tx: Transaction,
  config: Config,
  policy: PolicyRow & Policy,
  begin: Pick<NewRun, "dueAt" | "state" | "reason" | "userId"> & { now: Date },
): Promise<string | null> {
  const { window_minutes: windowMinutes, jitter_minutes: jitterMinutes } = policy.schedule;
  // What is late, or run by hand, has its window from now on.
  const from = begin.state === "late" || begin.userId !== null ? begin.now : begin.dueAt;
  const { dueAt, reason, state, userId } = begin;
  const windowEnd = new Date(from.getTime() + windowMinutes * 60_000);
  const run: NewRun = { id: randomUUID(), policyId: policy.id, dueAt, state, reason, userId, windowEnd };
  if (!(await addRun(tx, run))) return null;
  const jitterMs = userId === null ? jitterMinutes * 60_000 : 0;
  const verified = await shareVerified(tx, policy);
  const { items, skipped } = await addItems(tx, { run, subjects: subjectsOf(policy), from, jitterMs, verified });
  const host = config.hostName;
  if (items > 0 && items === skipped) {
    await skipRun(tx, run.id, unended);
    await count(tx, "policy_runs", "skipped");
    const payload = toldOf(policy, { ...run, state: "skipped", reason: unended });
    await notifyPolicy(tx, "policy.run.skipped", { host, payload });
    return run.id;
  }
  await notifyPolicy(tx, "policy.run.start", { host, payload: { ...toldOf(policy, run), volumes: items, skipped } });
  return run.id;
}

/**
 * Begins the run of a policy that is due, in the transaction that moves the time of the next one. Of the times that nobody was there for,
 * the last is made up for, and counts as late; the others are missed.
 *
 * @returns the run; null when another process was faster, or no worker is alive: then it stays due
 */
export async function beginDueRun(database: Database, config: Config, policyId: string): Promise<string | null> {
  return inTransaction(database, async (tx) => {
    const row = await lockPolicy(tx, policyId);
    const now = await readClock(tx);
    if (row.nextAt === null || row.nextAt > now || !(await hasWorkers(tx, config))) return null;
    const policy = { ...row, ...readPolicy(row) };
    const times = timesSince(policy, row.nextAt, now);
    const last = times.pop() ?? row.nextAt;
    await moveNext(tx, policy.id, nextTime(policy.schedule, now));
    if (times.length > 0) await noteMissed(tx, config, policy, times);
    const late = now.getTime() - last.getTime() > lateMs;
    const reason = late ? nobody : null;
    return enterRun(tx, config, policy, { dueAt: last, state: late ? "late" : "ran", reason, userId: null, now });
  });
}

async function noteMissed(tx: Transaction, config: Config, policy: Policy, times: readonly Date[]): Promise<void> {
  const written: NewRun[] = times.slice(-missedWritten).map((dueAt) => ({
    ...{ id: randomUUID(), policyId: policy.id, dueAt, state: "missed" as const, reason: nobody },
    ...{ userId: null, windowEnd: null },
  }));
  let missed = times.length - written.length;
  for (const run of written) if (await addRun(tx, run)) missed += 1;
  const newest = written.at(-1);
  if (missed === 0 || !newest) return;
  await count(tx, "policy_runs", "missed", missed);
  await notifyPolicy(tx, "policy.missed", {
    host: config.hostName,
    payload: { ...toldOf(policy, newest), runs: missed },
  });
}

/** Begins a run now, whether the policy is enabled or not. Its schedule stays as it is. @throws NotFoundError */
export async function runPolicy(
  database: Database,
  config: Config,
  principal: Principal,
  policyId: string,
): Promise<string> {
  return inTransaction(database, async (tx) => {
    const { id } = await findPolicy(tx, principal, policyId);
    const row = await lockPolicy(tx, id);
    const now = await readClock(tx);
    const begin = { dueAt: now, state: "ran" as const, reason: null, userId: principal.userId, now };
    const run = await enterRun(tx, config, { ...row, ...readPolicy(row) }, begin);
    if (run === null) throw new Error("a run by hand has no time of its own");
    return run;
  });
}

/**
 * After PostgreSQL's clock was set: what is due next is looked up again, since it may have been written by a clock that was ahead. No run
 * begins twice for that: there is one at most for each time.
 */
export async function realignPolicies(database: Database): Promise<void> {
  const rows = await database.policy.findMany({ where: { nextAt: { not: null } } });
  const now = await readClock(database);
  for (const row of rows) {
    const nextAt = nextTime(readPolicy(row).schedule, now);
    if (row.nextAt === null || nextAt === null || nextAt >= row.nextAt) continue;
    await database.policy.updateMany({ where: { id: row.id, nextAt: row.nextAt }, data: { nextAt } });
  }
  await realignRuns(database);
}
