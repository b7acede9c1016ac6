import type { AnswerOf } from "@tephra/wire";
import { defineOps } from "./serve.ts";
import { viewOverview } from "./views.ts";

export const overview = {
  /** What can be restored, what needs somebody, what runs. */
  show: defineOps({
    handle: async ({ overviews }, { principal }) => {
      const body = { overview: viewOverview(await overviews(principal), principal) };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/overview"> };
    },
  }),
};
