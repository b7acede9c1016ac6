import { z } from "zod";
import { time } from "./fields.ts";
import { Operation, OperationWhy } from "./operations.ts";

const count = z.number().int().nonnegative();

/** Tasks that have not ended. `blocked`: they wait for other tasks. */
const tasks = { ready: count, dispatched: count, running: count, blocked: count };

/**
 * `by_project`: at most fifty, those with most tasks first; `cap`: how many of one project run while others wait, null: any number. `oldest`: the
 * operation that has waited longest, and why. `queues`: jobs in Redis for each live worker. `drift`: whether both agree: `overdue` tasks should
 * have arrived at a worker by now; `dispatched` ones have a job in Redis each. `jobs` and `agrees` are null while Redis does not answer.
 */
export const QueueState = z
  .object({
    as_of: time,
    postgres: z.object({
      by_state: z.object(tasks),
      by_kind: z.array(z.object({ kind: z.string(), ...tasks })),
      by_project: z.array(z.object({ project_id: z.string(), ...tasks })),
      cap: z.number().int().positive().nullable(),
      oldest_seconds: z.number().nonnegative(),
      oldest: z.object({ operation: Operation, why: OperationWhy.nullable() }).nullable(),
    }),
    redis: z.object({
      reachable: z.boolean(),
      queues: z.array(z.object({ name: z.string(), waiting: count, active: count, delayed: count })),
    }),
    drift: z.object({ dispatched: count, jobs: count.nullable(), overdue: count, agrees: z.boolean().nullable() }),
  })
  .meta({ id: "QueueState" });
export type QueueState = z.infer<typeof QueueState>;
