import type { Database, Transaction } from "../db/database.ts";
import { forgottenAtOnce } from "../db/listing.ts";
import type { PolicyRun, PolicyRunItem, Prisma } from "../generated/client.ts";

export type { PolicyRun, PolicyRunItem };

/** `ran`; `late`: begun after its time; `missed`: never begun; `skipped`: the run before it had not ended. */
export type RunState = "ran" | "late" | "missed" | "skipped";

export interface NewRun {
  id: string;
  policyId: string;
  dueAt: Date;
  state: RunState;
  reason: string | null;
  /** Whoever asked for it; null: it was due. */
  userId: string | null;
  /** Null: it was missed. */
  windowEnd: Date | null;
}

/** Enters a run that begins now, or was missed. @returns false when there is one of that time already */
export async function addRun(tx: Transaction, run: NewRun): Promise<boolean> {
  const begun = run.state !== "missed";
  const added = await tx.$executeRaw`
    INSERT INTO policy_runs (id, policy_id, due_at, scheduled, state, reason, user_id, started_at, window_end, finished_at)
    VALUES (${run.id}::uuid, ${run.policyId}::uuid, ${run.dueAt}::timestamptz, ${run.userId === null}, ${run.state}, ${run.reason}, ${run.userId},
      CASE WHEN ${begun} THEN now() END, ${run.windowEnd}::timestamptz, CASE WHEN ${begun} THEN NULL ELSE now() END)
    ON CONFLICT (policy_id, due_at) WHERE scheduled DO NOTHING`;
  return added === 1;
}

/**
 * Enters what a run has to do: `subjects` is a query of `project_id, volume_id, instance_id`. Starts are spread over `jitterMs` from `from`,
 * by the run and the subject alone; so is the share of them that is verified. What an earlier run has not ended is skipped.
 *
 * @returns how many there are, and how many of them are skipped
 */
export async function addItems(
  tx: Transaction,
  {
    run,
    subjects,
    from,
    jitterMs,
    verified,
  }: { run: NewRun; subjects: Prisma.Sql; from: Date; jitterMs: number; verified: number },
): Promise<{ items: number; skipped: number }> {
  const [added] = await tx.$queryRaw<{ items: number; skipped: number }[]>`
    WITH subject AS (${subjects}), judged AS (
      SELECT s.*, ('x' || left(md5(${run.id} || coalesce(s.volume_id, s.instance_id)::text), 8))::bit(32)::bigint / 4294967296.0 AS part,
        ('x' || right(md5(${run.id} || coalesce(s.volume_id, s.instance_id)::text), 8))::bit(32)::bigint / 4294967296.0 AS lot,
        EXISTS (SELECT FROM policy_run_items i WHERE i.state IN ('waiting', 'running') AND i.volume_id = s.volume_id) OR
        EXISTS (SELECT FROM policy_run_items i WHERE i.state IN ('waiting', 'running') AND i.instance_id = s.instance_id
          AND i.project_id = s.project_id) AS busy
      FROM subject s
    ), added AS (
      INSERT INTO policy_run_items (id, run_id, policy_id, project_id, volume_id, instance_id, starts_at, verify, state, reason, finished_at)
      SELECT gen_random_uuid(), ${run.id}::uuid, ${run.policyId}::uuid, project_id, volume_id, instance_id,
        ${from}::timestamptz + part * ${jitterMs}::float8 * interval '1 millisecond',
        CASE WHEN lot < ${verified}::float8 THEN 'wanted' END, CASE WHEN busy THEN 'skipped' ELSE 'waiting' END,
        CASE WHEN busy THEN 'The backup of an earlier run has not ended.' END, CASE WHEN busy THEN now() END
      FROM judged RETURNING state
    )
    SELECT count(*)::int AS items, (count(*) FILTER (WHERE state = 'skipped'))::int AS skipped FROM added`;
  return added ?? { items: 0, skipped: 0 };
}

/** All that the run has to do is skipped: so is the run. */
export async function skipRun(tx: Transaction, id: string, reason: string): Promise<void> {
  await tx.$executeRaw`UPDATE policy_runs SET state = 'skipped', reason = ${reason}, finished_at = now() WHERE id = ${id}::uuid`;
}

/** An item that is to begin now, with what its run says. */
export interface DueItem {
  id: string;
  runId: string;
  policyId: string;
  projectId: string;
  volumeId: string | null;
  instanceId: string | null;
  reason: string | null;
  dueAt: Date;
  userId: string | null;
  /** Whether the run's window is over. */
  over: boolean;
}

/** Those that have waited longest first. */
export async function dueItems(database: Database, limit: number): Promise<DueItem[]> {
  return database.$queryRaw<DueItem[]>`
    SELECT i.id, i.run_id AS "runId", i.policy_id AS "policyId", i.project_id AS "projectId", i.volume_id AS "volumeId",
      i.instance_id AS "instanceId", i.reason, r.due_at AS "dueAt", r.user_id AS "userId", r.window_end < now() AS over
    FROM policy_run_items i JOIN policy_runs r ON r.id = i.run_id
    WHERE i.state = 'waiting' AND i.starts_at <= now() ORDER BY i.starts_at, i.id LIMIT ${limit}`;
}

/** The item begins, in this transaction. @returns false when somebody else has begun it, or it is gone */
export async function takeItem(tx: Transaction, id: string): Promise<boolean> {
  const taken = await tx.$executeRaw`
    UPDATE policy_run_items SET state = 'running', started_at = now() WHERE id = ${id}::uuid AND state = 'waiting'`;
  return taken === 1;
}

/** What was begun for the item that this transaction has taken. */
export async function noteBegun(
  tx: Transaction,
  id: string,
  begun: { operationId: string; backupId: string | null; incremental: boolean; reason: string | null },
): Promise<void> {
  await tx.policyRunItem.update({ where: { id }, data: begun });
}

/** The item could not begin: it waits for `waitMs`, or has ended. Not when somebody else has begun it meanwhile. */
export async function putOffItem(
  database: Database,
  id: string,
  { reason, waitMs }: { reason: string; waitMs: number },
): Promise<void> {
  await database.$executeRaw`
    UPDATE policy_run_items SET starts_at = now() + ${waitMs}::float8 * interval '1 millisecond', reason = ${reason}
    WHERE id = ${id}::uuid AND state = 'waiting'`;
}

export async function endItem(
  database: Database,
  id: string,
  { state, reason }: { state: "failed" | "skipped"; reason: string },
): Promise<void> {
  await database.$executeRaw`
    UPDATE policy_run_items SET state = ${state}, reason = ${reason}, finished_at = now()
    WHERE id = ${id}::uuid AND state = 'waiting'`;
}

/** An item whose backup is done and to be verified. */
export interface ItemToVerify {
  id: string;
  runId: string;
  policyId: string;
  projectId: string;
  userId: string | null;
  operationId: string | null;
}

export async function itemsToVerify(database: Database, limit: number): Promise<ItemToVerify[]> {
  return database.$queryRaw<ItemToVerify[]>`
    SELECT i.id, i.run_id AS "runId", i.policy_id AS "policyId", i.project_id AS "projectId", r.user_id AS "userId",
      i.operation_id AS "operationId"
    FROM policy_run_items i JOIN policy_runs r ON r.id = i.run_id
    WHERE i.verify = 'wanted' AND i.state = 'succeeded' ORDER BY i.finished_at LIMIT ${limit}`;
}

/** The item's backups are verified, by what this transaction begins. @returns false when somebody else has begun it */
export async function takeToVerify(tx: Transaction, id: string): Promise<boolean> {
  const taken = await tx.$executeRaw`
    UPDATE policy_run_items SET verify = 'begun' WHERE id = ${id}::uuid AND verify = 'wanted'`;
  return taken === 1;
}

/** Items whose operations have ended, or are forgotten, end with them. */
export async function settleItems(database: Database): Promise<void> {
  await database.$executeRaw`
    UPDATE policy_run_items i SET state = CASE WHEN o.state = 'succeeded' THEN 'succeeded' ELSE 'failed' END,
      reason = CASE WHEN o.state = 'succeeded' THEN i.reason ELSE coalesce(o.fail_reason, i.reason) END,
      finished_at = coalesce(o.finished_at, now())
    FROM policy_run_items j LEFT JOIN operations o ON o.id = j.operation_id
    WHERE j.id = i.id AND i.state = 'running' AND (o.id IS NULL OR o.finished_at IS NOT NULL)`;
}

/** Runs that begin in the future, by a clock that has been set back since, have begun now; so does what of them waits for longer than their windows. */
export async function realignRuns(database: Database): Promise<void> {
  await database.$executeRaw`
    WITH ahead AS (
      UPDATE policy_runs SET started_at = now(), window_end = now() + (window_end - started_at)
      WHERE finished_at IS NULL AND started_at > now() RETURNING id, window_end)
    UPDATE policy_run_items i SET starts_at = now() FROM ahead a
    WHERE i.run_id = a.id AND i.state = 'waiting' AND i.starts_at > a.window_end`;
}

/** A run of which nothing is left to do. */
export interface EndedRun {
  id: string;
  policyId: string;
  state: RunState;
  dueAt: Date;
  succeeded: number;
  failed: number;
  skipped: number;
}

/** Ends the runs of which nothing is left to do. */
export async function endRuns(tx: Transaction): Promise<EndedRun[]> {
  return tx.$queryRaw<EndedRun[]>`
    WITH ended AS (
      UPDATE policy_runs r SET finished_at = now() WHERE finished_at IS NULL
        AND NOT EXISTS (SELECT FROM policy_run_items i WHERE i.run_id = r.id AND i.state IN ('waiting', 'running'))
      RETURNING id, policy_id, state, due_at
    )
    SELECT e.id, e.policy_id AS "policyId", e.state, e.due_at AS "dueAt", (count(*) FILTER (WHERE i.state = 'succeeded'))::int AS succeeded,
      (count(*) FILTER (WHERE i.state = 'failed'))::int AS failed, (count(*) FILTER (WHERE i.state = 'skipped'))::int AS skipped
    FROM ended e LEFT JOIN policy_run_items i ON i.run_id = e.id GROUP BY e.id, e.policy_id, e.state, e.due_at ORDER BY e.due_at`;
}

/** Removes runs that began longer than `days` ago, one batch. @returns whether there may be more */
export async function forgetPolicyRuns(database: Database, days: number): Promise<boolean> {
  const removed = await database.$executeRaw`
    WITH old AS (
      SELECT id FROM policy_runs WHERE created_at < now() - ${days}::float8 * interval '1 day' AND finished_at IS NOT NULL
      ORDER BY created_at LIMIT ${forgottenAtOnce / 10} FOR UPDATE SKIP LOCKED)
    DELETE FROM policy_runs WHERE id IN (SELECT id FROM old)`;
  return removed === forgottenAtOnce / 10;
}
