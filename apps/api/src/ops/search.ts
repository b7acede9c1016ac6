import { search as find } from "@tephra/control";
import { type AnswerOf, requests } from "@tephra/wire";
import { defineOps } from "./serve.ts";

export const search = {
  /** Finds by the beginning of an id or a name, or by the id of a request. */
  find: defineOps({
    ...requests["GET /ops/search"],
    handle: async ({ database }, { principal, query }) => {
      const rows = await find(database, principal, query.q);
      const hits = rows.map(({ projectId, ...hit }) => ({ ...hit, project_id: projectId }));
      return { status: 200, body: { hits } satisfies AnswerOf<"GET /ops/search"> };
    },
  }),
};
