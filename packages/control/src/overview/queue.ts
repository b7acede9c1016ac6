import type { Config } from "../config.ts";
import type { Database } from "../db/database.ts";
import type { Principal } from "../principal.ts";
import { getOperation, type OperationProgress } from "../queue/list-operations.ts";
import { explainOperation, type Why } from "./why.ts";

/** Tasks that have not ended. */
export interface TaskCounts {
  ready: number;
  dispatched: number;
  running: number;
  blocked: number;
}

export interface QueueState {
  asOf: Date;
  byState: TaskCounts;
  byKind: (TaskCounts & { kind: string })[];
  /** At most fifty, those with most tasks first. */
  byProject: (TaskCounts & { projectId: string })[];
  oldestSeconds: number;
  /** Tasks that were handed to the queue, and should have arrived at a worker by now. */
  overdue: number;
  /** The operation that has waited longest, and why; null: none waits. */
  oldest: { operation: OperationProgress; why: Why | null } | null;
}

const projectsMax = 50;

/** What waits and runs, of all projects. */
export async function readQueue(database: Database, config: Config, principal: Principal): Promise<QueueState> {
  const rows = await database.$queryRaw<(TaskCounts & { kind: string | null; projectId: string | null })[]>`
    SELECT kind, project_id AS "projectId", count(*) FILTER (WHERE state = 'ready')::int AS ready,
      count(*) FILTER (WHERE state = 'dispatched')::int AS dispatched, count(*) FILTER (WHERE state = 'running')::int AS running,
      count(*) FILTER (WHERE state = 'blocked')::int AS blocked
    FROM tasks WHERE state IN ('ready', 'dispatched', 'running', 'blocked')
    GROUP BY GROUPING SETS ((), (kind), (project_id)) ORDER BY count(*) DESC, kind, project_id`;
  const [now] = await database.$queryRaw<
    { asOf: Date; oldestSeconds: number; overdue: number; oldest: string | null }[]
  >`
    SELECT now() AS "asOf",
      greatest(0, coalesce((SELECT extract(epoch FROM now() - min(queued_at)) FROM tasks WHERE state IN ('ready', 'dispatched')), 0))::float8
        AS "oldestSeconds",
      (SELECT count(*) FROM tasks WHERE state = 'dispatched'
        AND dispatched_at < now() - ${config.tasks.dispatch_timeout_ms} * interval '1 millisecond')::int AS overdue,
      (SELECT id FROM operations WHERE state = 'queued' ORDER BY created_at, id LIMIT 1) AS oldest`;
  if (!now) throw new Error("PostgreSQL returned no row");
  const none = { ready: 0, dispatched: 0, running: 0, blocked: 0 };
  const {
    kind: _,
    projectId: __,
    ...byState
  } = rows.find((row) => row.kind === null && row.projectId === null) ?? { ...none, kind: null, projectId: null };
  const oldest = now.oldest === null ? null : await getOperation(database, principal, now.oldest).catch(() => null);
  return {
    ...{ asOf: now.asOf, oldestSeconds: now.oldestSeconds, overdue: now.overdue, byState },
    byKind: rows.flatMap(({ kind, projectId: _, ...counts }) => (kind === null ? [] : [{ kind, ...counts }])),
    byProject: rows
      .flatMap(({ kind: _, projectId, ...counts }) => (projectId === null ? [] : [{ projectId, ...counts }]))
      .slice(0, projectsMax),
    oldest: oldest && { operation: oldest, why: await explainOperation(database, config, principal, oldest) },
  };
}
