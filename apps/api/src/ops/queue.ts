import { type QueueState as QueueRow, readQueue } from "@tephra/control";
import { laneQueues, liveQueues } from "@tephra/control/process";
import type { AnswerOf, QueueState } from "@tephra/wire";
import type { Context } from "../context.ts";
import { defineOps } from "./serve.ts";
import { viewOperation } from "./views.ts";

/** Jobs of live workers, and of those that tasks were handed to; null while Redis does not answer. */
async function readJobs({ database, config, queues }: Context): Promise<QueueState["redis"]["queues"] | null> {
  try {
    await queues.reach();
    const live = await liveQueues(database, config.worker.down_ms);
    const handed = await database.task.findMany({
      where: { state: "dispatched", queue: { not: null } },
      distinct: ["queue"],
      select: { queue: true },
    });
    const names = new Set([...live, ...handed].flatMap(({ queue }) => Object.values(laneQueues(queue ?? ""))));
    return await Promise.all(
      [...names].sort().map(async (name) => {
        const {
          wait = 0,
          prioritized = 0,
          active = 0,
          delayed = 0,
        } = await queues.queueOf(name).getJobCounts("wait", "prioritized", "active", "delayed");
        return { name, waiting: wait + prioritized, active, delayed };
      }),
    );
  } catch {
    return null;
  }
}

/** What was handed out while Redis was being asked is not there at both times, and does not count. */
function driftOf(before: QueueRow, after: QueueRow, jobs: QueueState["redis"]["queues"] | null): QueueState["drift"] {
  const dispatched = Math.min(before.byState.dispatched, after.byState.dispatched);
  const { overdue } = after;
  if (jobs === null) return { dispatched, jobs: null, overdue, agrees: null };
  const total = jobs.reduce((sum, { waiting, active, delayed }) => sum + waiting + active + delayed, 0);
  return { dispatched, jobs: total, overdue, agrees: overdue === 0 && dispatched <= total };
}

export const queue = {
  /** What waits and runs, of whom, and whether PostgreSQL and Redis agree on it. */
  show: defineOps({
    handle: async (context, { principal }) => {
      const { database, config } = context;
      const before = await readQueue(database, config, principal);
      const jobs = await readJobs(context);
      const row = await readQueue(database, config, principal);
      const { oldest } = row;
      const body: { queue: QueueState } = {
        queue: {
          as_of: row.asOf.toISOString(),
          postgres: {
            by_state: row.byState,
            by_kind: row.byKind,
            by_project: row.byProject.map(({ projectId, ...counts }) => ({ project_id: projectId, ...counts })),
            cap: config.dispatcher.project_cap,
            oldest_seconds: row.oldestSeconds,
            oldest: oldest && {
              operation: viewOperation(oldest.operation, principal),
              why: oldest.why && { ...oldest.why, since: oldest.why.since?.toISOString() ?? null },
            },
          },
          redis: { reachable: jobs !== null, queues: jobs ?? [] },
          drift: driftOf(before, row, jobs),
        },
      };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/queue"> };
    },
  }),
};
