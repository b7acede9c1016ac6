import { findDatabaseProblems, redisRefusals } from "@tephra/control/process";
import type { AnswerOf } from "@tephra/wire";
import type { Context } from "../context.ts";
import type { PublicAction } from "./serve.ts";

/** A probe must get its answer even while the database hangs. */
const answerWithinMs = 3_000;

/** Problems that slow work down without stopping it. The probe does not wait for them. */
async function findWarnings({ database, config }: Context): Promise<string[]> {
  const refusals = await redisRefusals(database, config.worker.down_ms);
  return refusals.map(
    ({ reason, workers, of }) =>
      `Redis cannot be used by ${workers} of ${of} workers, which poll for tasks instead, more slowly: ${reason}`,
  );
}

/** Uses dedicated connections, which requests cannot exhaust. */
async function findReasons({ health, tellProblems }: Context): Promise<string[]> {
  const problems = await findDatabaseProblems(health);
  tellProblems(problems.length === 0 ? null : problems.map(({ reason, detail }) => `${reason}: ${detail}`).join("; "));
  return problems.map(({ reason }) => reason);
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
  /** The process serves requests; says nothing about its dependencies. */
  alive: { handle: async () => ({ status: 200, body: { status: "ok" } satisfies AnswerOf<"GET /healthz"> }) },

  /**
   * 200 when requests can be accepted: the database responds and is fully migrated. Workers may start later: `/metrics` counts them.
   * Causes of slow work are listed.
   */
  ready: {
    handle: async (context) => {
      const reasons = await inTime(findReasons(context));
      if (reasons.length > 0) {
        return { status: 503, body: { status: "unavailable", reasons } satisfies AnswerOf<"GET /readyz"> };
      }
      const warnings = await inTime(findWarnings(context));
      const body = {
        status: "ready",
        ...(warnings.length === 0 ? {} : { warnings }),
      } satisfies AnswerOf<"GET /readyz">;
      return { status: 200, body };
    },
  },

  metrics: {
    handle: async ({ metrics }) => {
      return { status: 200, body: await metrics.render(), contentType: metrics.contentType };
    },
  },
} satisfies Record<string, PublicAction>;
