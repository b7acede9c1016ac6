import { redisRefusals } from "@tephra/control";
import type { Context } from "../context.ts";
import type { PublicAction } from "./serve.ts";

/** A prober must get its answer while the database hangs. */
const answerWithinMs = 3_000;

/** A read of each table, with every column that this program knows; of no row. */
function readsOf({ database }: Context): Promise<unknown>[] {
  const none = { where: { OR: [] } };
  return [
    database.volume.findFirst(none),
    database.attachment.findFirst(none),
    database.transfer.findFirst(none),
    database.snapshot.findFirst(none),
    database.backup.findFirst(none),
    database.instance.findFirst(none),
    database.group.findFirst(none),
    database.groupType.findFirst(none),
    database.groupSnapshot.findFirst(none),
    database.operation.findFirst(none),
    database.task.findFirst(none),
    database.worker.findFirst(none),
    database.disabledService.findFirst(none),
    database.schedule.findFirst(none),
    database.condemnedPlace.findFirst(none),
    database.counter.findFirst(none),
    database.auditEntry.findFirst(none),
    database.notification.findFirst(none),
    database.delivery.findFirst(none),
    database.message.findFirst(none),
    database.quota.findFirst(none),
    database.quotaClass.findFirst(none),
  ];
}

/** A missing migration shows as an error. */
async function findSchemaProblem(context: Context): Promise<string | null> {
  const failed = (await Promise.allSettled(readsOf(context))).find((r) => r.status === "rejected");
  if (!failed) return null;
  const code = (failed.reason as { code?: unknown }).code;
  return code === "P2021" || code === "P2022" ? "the database lacks migrations" : "the database does not answer";
}

/** What makes work slow, though it is done. Nobody waits for it. */
async function findWarnings({ database, config }: Context): Promise<string[]> {
  const refusals = await redisRefusals(database, config.worker.down_ms);
  return refusals.map(
    ({ reason, workers, of }) =>
      `Redis cannot be used by ${workers} of ${of} workers, which find their tasks by looking; that is slow: ${reason}`,
  );
}

async function findReasons(context: Context): Promise<string[]> {
  const problem = await findSchemaProblem(context);
  return problem === null ? [] : [problem];
}

async function inTime(reasons: Promise<string[]>): Promise<string[]> {
  const { promise: late, resolve } = Promise.withResolvers<string[]>();
  const timer = setTimeout(() => resolve(["the database does not answer in time"]), answerWithinMs);
  try {
    return await Promise.race([reasons.catch(() => ["the database does not answer"]), late]);
  } finally {
    clearTimeout(timer);
  }
}

export const health = {
  /** The process serves requests; says nothing of anything else. */
  alive: { handle: async () => ({ status: 200, body: { status: "ok" } }) },

  /** 200 when requests can be accepted: the database answers and has its migrations. Workers may come later: `/metrics` counts them. What makes them slow is named. */
  ready: {
    handle: async (context) => {
      const reasons = await inTime(findReasons(context));
      if (reasons.length > 0) return { status: 503, body: { status: "unavailable", reasons } };
      const warnings = await inTime(findWarnings(context));
      return { status: 200, body: { status: "ready", ...(warnings.length === 0 ? {} : { warnings }) } };
    },
  },

  metrics: {
    handle: async ({ metrics }) => {
      return { status: 200, body: await metrics.render(), contentType: metrics.contentType };
    },
  },
} satisfies Record<string, PublicAction>;
