import { requestReap, requestRescan } from "@tephra/control";
import type { AnswerOf } from "@tephra/wire";
import { z } from "zod";
import { defineOps } from "./serve.ts";

const RescanBody = z
  .strictObject({
    project_id: z
      .string()
      .regex(/^[\w.-]{1,255}$/, "is not a valid project id")
      .nullish(),
  })
  .prefault({});

const ReapBody = z.strictObject({ dry_run: z.boolean().default(false) }).prefault({});

export const repositories = {
  /** Removes what is no longer needed; a dry run only reports it. */
  reap: defineOps({
    body: ReapBody,
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
    body: RescanBody,
    handle: async ({ database, config }, { principal, params, body }) => {
      const { id } = await requestRescan(database, config, principal, {
        repository: params["name"] ?? "",
        projectId: body.project_id ?? null,
      });
      return { status: 202, body: { operation: { id } } satisfies AnswerOf<"POST /ops/repositories/:name/rescan"> };
    },
  }),
};
