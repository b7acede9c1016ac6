import { formatCursor, parseCursor, readChanges } from "@tephra/control";
import { type AnswerOf, type Change, requests } from "@tephra/wire";
import { defineOps } from "./serve.ts";
import { mayBeTold, viewChange } from "./views.ts";

export const changes = {
  /** What has changed since; without a cursor, where to begin. For readers whose streams something on the way holds up. */
  list: defineOps({
    ...requests["GET /ops/changes"],
    handle: async ({ database }, { principal, query }) => {
      const after = query.after === undefined ? null : parseCursor(query.after);
      const read = await readChanges(database, after);
      const told: Change[] = [];
      let next = after === null || read.isLost ? read.horizon : after;
      for (const row of read.isLost ? [] : read.changes) {
        if (told.length >= query.limit) break;
        if (row.settled) next = row.cursor;
        if (mayBeTold(principal, row)) told.push(viewChange(row));
      }
      const body = { changes: told, next: formatCursor(next), resync: read.isLost };
      return { status: 200, body: body satisfies AnswerOf<"GET /ops/changes"> };
    },
  }),

  /** The same as they come, as server-sent events, with the progress of what runs, and a pulse. */
  stream: defineOps({
    ...requests["GET /ops/events"],
    handle: async ({ events }, { principal, token, query, lastEventId }) => {
      const after = lastEventId ?? query.after;
      const stream = events.admit({ principal, token, topics: query.topics, after: after ?? null });
      return { status: 200, stream };
    },
  }),
};
