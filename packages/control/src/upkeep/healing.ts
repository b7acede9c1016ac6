import type { Config } from "../config.ts";
import { sayWhy } from "../db/actor.ts";
import { type Database, inTransaction, Prisma } from "../db/database.ts";
import { isLiveOperation, isLiveWorker } from "../db/live.ts";
import { endBare, isLive, lockOperation, type OperationRow } from "../queue/operations.ts";
import { backupBinary } from "../queue/services.ts";
import { giveUpTask } from "../queue/tasks.ts";
import { whyUnreachable } from "../queue/workers.ts";
import { releaseGroup } from "../rows/groups.ts";
import { releaseRows } from "../rows/release.ts";
import type { Failure } from "./failing.ts";

/** Maximum number of operations that one step of a pass ends. */
const batch = 100;

/** Ends an operation that nobody works on any more. Errors of that operation alone are never thrown. */
export type EndOperation = (id: string, failure: Failure) => Promise<void>;

interface Poisoned {
  id: string;
  operation_id: string;
  kind: string;
  attempts: number;
  fail_reason: string | null;
}

/**
 * Too many claims have failed: the operation ends, with a reason that a person can act on. A clean-up that kills its workers is given up:
 * what it was to remove is left to the reaper.
 */
export async function failPoisoned(database: Database, config: Config, endOperation: EndOperation): Promise<number> {
  const tasks = await database.$queryRaw<Poisoned[]>`
    SELECT id, operation_id, kind, attempts, fail_reason FROM tasks
    WHERE state = 'ready' AND attempts > 0 AND attempts >= ${config.tasks.attempts_max} LIMIT ${batch}`;
  for (const task of tasks) {
    const last = task.fail_reason ? ` The last error was: ${task.fail_reason}` : "";
    const reason = `Gave up after ${task.attempts} workers were lost at task ${task.kind} without progress.${last}`;
    if (task.kind !== "tidy") await endOperation(task.operation_id, { reason });
    else await giveUpTask(database, task.id, reason);
  }
  return tasks.length;
}

/** A place in the walk of `failStuck` through all live operations: the last one that was examined. */
export interface Place {
  createdAt: Date;
  id: string;
}

/** Number of operations that one pass examines, so that a pass does not take longer the more there are. */
const walkMax = 100;

/**
 * A live operation with no unfinished task cannot result from any commit of ours, so somebody removed its tasks: it ends with a reason. Each
 * call examines the next few live operations, oldest first.
 *
 * @param after the previous call's `next`; null: from the oldest
 * @returns how many ended, and where to go on; null: at the oldest
 */
export async function failStuck(
  database: Database,
  config: Config,
  after: Place | null,
  endOperation: EndOperation,
): Promise<{ ended: number; next: Place | null }> {
  const from =
    after === null
      ? Prisma.empty
      : Prisma.sql`AND (o.created_at, o.id) > (${after.createdAt}::timestamptz, ${after.id}::uuid)`;
  const walked = await database.$queryRaw<(Place & { stuck: boolean })[]>`
    WITH walked AS MATERIALIZED (
      SELECT o.id, o.created_at, coalesce(o.updated_at, o.created_at) AS changed_at FROM operations o
      WHERE ${isLiveOperation("o")} ${from} ORDER BY o.created_at, o.id LIMIT ${walkMax}
    )
    SELECT o.id, o.created_at AS "createdAt", o.changed_at < now() - ${config.tasks.unplaced_timeout_ms} * interval '1 millisecond'
      AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.operation_id = o.id AND t.state IN ('ready', 'dispatched', 'running', 'blocked')
        AND (t.state <> 'blocked' OR t.kind IN ('remove-backup', 'remove-volume', 'remove-snapshot')))
      AND NOT EXISTS (SELECT 1 FROM operations p WHERE p.parent_id = o.id AND ${isLiveOperation("p")}) AS stuck
    FROM walked o ORDER BY o.created_at, o.id`;
  const stuck = walked.filter((operation) => operation.stuck);
  for (const { id } of stuck) await endOperation(id, { reason: "The operation has no task left to run." });
  const last = walked.at(-1);
  return { ended: stuck.length, next: last !== undefined && walked.length === walkMax ? last : null };
}

const noService: Readonly<Record<string, string>> = {
  "backup-create": "Service not found for creating backup.",
};

// Tasks may be many, but what they need is one of a few lists. Looked up by tasks_ready_needs_idx, one by one.
const kinds = Prisma.sql`
    kinds AS (
      (SELECT needs FROM tasks WHERE state = 'ready' ORDER BY needs LIMIT 1)
      UNION ALL
      SELECT (SELECT t.needs FROM tasks t WHERE t.state = 'ready' AND t.needs > k.needs ORDER BY t.needs LIMIT 1)
      FROM kinds k WHERE k.needs IS NOT NULL
    )`;

/** SQL: whether a live worker has all of `needs`. One on a disabled host counts only for what has `begun`. */
const isReached = (needs: "needs" | "t.needs", begun: string, downMs: number): Prisma.Sql => Prisma.sql`
    EXISTS (SELECT 1 FROM workers w WHERE ${Prisma.raw(needs)} <@ w.reaches AND ${isLiveWorker("w", downMs)}
      AND (${Prisma.raw(begun)} OR NOT EXISTS (
        SELECT 1 FROM disabled_services d WHERE d.binary = ${backupBinary} AND d.host = w.host)))`;

/** Whether any task is without a capable worker, or was when somebody last looked: hardly ever, and then the rest need not be asked. */
async function mayBeUnplaced(database: Database, downMs: number): Promise<boolean> {
  const [row] = await database.$queryRaw<{ some: boolean }[]>`
    WITH RECURSIVE ${kinds}
    SELECT EXISTS (SELECT 1 FROM kinds WHERE needs IS NOT NULL AND NOT ${isReached("needs", "false", downMs)})
      OR EXISTS (SELECT 1 FROM tasks WHERE unplaced_at IS NOT NULL AND state IN ('ready', 'dispatched', 'running')) AS some`;
  return row?.some === true;
}

/** Notes since when no live worker is able to run a task, and forgets it when one is. */
async function markUnplaced(database: Database, downMs: number): Promise<void> {
  const mayBePlaced = Prisma.sql`t.state = 'ready' AND t.kind <> 'tidy' AND t.run_after <= now() AND ${isLiveOperation("o")}`;
  await database.$executeRaw`
    WITH RECURSIVE ${kinds}, unreached AS MATERIALIZED (
      SELECT needs FROM kinds WHERE needs IS NOT NULL AND NOT ${isReached("needs", "false", downMs)}
    ), looked AS MATERIALIZED (
      SELECT t.id, true AS unplaced FROM unreached u JOIN tasks t ON t.needs = u.needs JOIN operations o ON o.id = t.operation_id
      WHERE t.unplaced_at IS NULL AND ${mayBePlaced} AND NOT ${isReached("t.needs", "o.state = 'running'", downMs)}
      UNION ALL
      SELECT t.id, false FROM tasks t JOIN operations o ON o.id = t.operation_id
      WHERE t.unplaced_at IS NOT NULL AND t.state IN ('ready', 'dispatched', 'running')
        AND NOT (${mayBePlaced} AND NOT ${isReached("t.needs", "o.state = 'running'", downMs)})
    ), changed AS (
      SELECT t.id, looked.unplaced FROM tasks t JOIN looked ON looked.id = t.id
      WHERE looked.unplaced <> (t.unplaced_at IS NOT NULL) FOR UPDATE OF t SKIP LOCKED
    )
    UPDATE tasks t SET unplaced_at = CASE WHEN changed.unplaced THEN now() END FROM changed WHERE t.id = changed.id`;
}

/**
 * A task that no live worker is able to run fails after a while, as in Cinder, with the reasons that workers report. Disabled workers do
 * not count, but tasks that they had begun wait for them. The period starts when a reconciler first sees that there is no capable worker,
 * so that a task that has waited long for its turn survives a restart of the workers, or of everything.
 */
export async function failUnplaced(database: Database, config: Config, endOperation: EndOperation): Promise<number> {
  const downMs = config.worker.down_ms;
  if (!(await mayBeUnplaced(database, downMs))) return 0;
  await markUnplaced(database, downMs);
  const rows = await database.$queryRaw<{ operation_id: string; kind: string; needs: string[] }[]>`
    SELECT DISTINCT t.operation_id, o.kind, t.needs FROM tasks t JOIN operations o ON o.id = t.operation_id
    WHERE t.state = 'ready' AND ${isLiveOperation("o")}
      AND t.unplaced_at < now() - ${config.tasks.unplaced_timeout_ms} * interval '1 millisecond' LIMIT ${batch}`;
  for (const row of rows) {
    const why = await whyUnreachable(database, row.needs, downMs);
    const base = noService[row.kind] ?? "No worker reaches what the operation needs.";
    const reason = why.length > 0 ? `${base} ${why.join(" ")}` : base;
    await endOperation(row.operation_id, { reason, unplaced: true });
  }
  return rows.length;
}

/**
 * Ends an operation whose regular ending throws, for instance because this release does not know its kind: the rows that it holds are set to
 * error, and there is no clean-up, since only its kind could say what to remove. The reaper finds what it left behind.
 */
export async function endBluntly(database: Database, id: string, reason: string): Promise<void> {
  await inTransaction(database, async (tx) => {
    const operation = await lockOperation(tx, id);
    if (!isLive(operation)) return;
    await sayWhy(tx, { reason, operation });
    const parts = (await tx.operation.findMany({ where: { parentId: id }, orderBy: { id: "asc" } })) as OperationRow[];
    for (const one of [...parts, operation]) await releaseRows(tx, one, reason);
    await releaseGroup(tx, id);
    const ended = [id, ...parts.filter(isLive).map((part) => part.id)];
    await endBare(tx, ended, reason);
  });
}
