import type { Context } from "../context.ts";
import type { PublicAction } from "./serve.ts";

/** A prober must get its answer while the database hangs. */
const answerWithinMs = 3_000;

const noRow = "00000000-0000-0000-0000-000000000000";

/** Asks every table for every column that this program knows: a missing migration shows as an error. Reads no row. */
async function findSchemaProblem({ database }: Context): Promise<string | null> {
  const where = { id: noRow };
  const reads = [
    database.volume.findUnique({ where }),
    database.attachment.findUnique({ where }),
    database.snapshot.findUnique({ where }),
    database.backup.findUnique({ where }),
    database.operation.findUnique({ where }),
    database.task.findUnique({ where }),
    database.worker.findUnique({ where }),
    database.notification.findUnique({ where }),
    database.delivery.findUnique({ where }),
    database.message.findUnique({ where }),
    database.quota.findUnique({ where: { projectId: "" } }),
  ];
  const failed = (await Promise.allSettled(reads)).find((r) => r.status === "rejected");
  if (!failed) return null;
  const code = (failed.reason as { code?: unknown }).code;
  return code === "P2021" || code === "P2022" ? "the database lacks migrations" : "the database does not answer";
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

  /** 200 when requests can be accepted: the database answers and has its migrations. Workers may come later: `/metrics` counts them. */
  ready: {
    handle: async (context) => {
      const reasons = await inTime(findReasons(context));
      return reasons.length === 0
        ? { status: 200, body: { status: "ready" } }
        : { status: 503, body: { status: "unavailable", reasons } };
    },
  },

  metrics: {
    handle: async ({ metrics }) => {
      return { status: 200, body: await metrics.render(), contentType: metrics.contentType };
    },
  },
} satisfies Record<string, PublicAction>;
