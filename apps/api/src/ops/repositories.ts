import { requestReap, requestRescan } from "@tephra/control";
import { type AnswerOf, requests } from "@tephra/wire";
import { defineOps } from "./serve.ts";

export const repositories = {
  /** Removes what is no longer needed; a dry run only reports it. */
  reap: defineOps({
    ...requests["POST /ops/repositories/:name/reap"],
    handle: async ({ database, config }, { principal, params, body }) => {
      const { id } = await requestReap(database, config, principal, {
        repository: params["name"] ?? "",
        dryRun: body.dry_run,
      });
      return { status: 202, body: { operation: { id } } satisfies AnswerOf<"POST /ops/repositories/:name/reap"> };
    },
  }),

  /** Every backup goes to the project recorded in it, unless the body names one for all of them. */
  rescan: defineOps({
    ...requests["POST /ops/repositories/:name/rescan"],
    handle: async ({ database, config }, { principal, params, body }) => {
      const { id } = await requestRescan(database, config, principal, {
        repository: params["name"] ?? "",
        projectId: body.project_id ?? null,
      });
      return { status: 202, body: { operation: { id } } satisfies AnswerOf<"POST /ops/repositories/:name/rescan"> };
    },
  }),
};
